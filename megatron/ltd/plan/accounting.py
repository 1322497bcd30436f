"""Layer tokens and floating-point operations of a step, from the kept tokens of each layer.

One multiply-add is 2 FLOPs. One layer, forward, for one sample of n tokens, with Hq = heads * kv_channels and
Hkv = query groups * kv_channels:

    queries, keys, values      2 n H (Hq + 2 Hkv)
    scores and weighted values 2 * 2 * pairs * Hq       pairs = n (n + 1) / 2 causal, n * n otherwise
    attention output           2 n Hq H
    feed-forward               2 n H F * 2              * 3 when gated (SwiGLU has a third matrix)

A layer whose n kept tokens attend to all S (``StepPlan.entry_layers``) projects queries, keys and values of all S,
since the projection is fused, and has pairs = n (S + 1) / 2 causal, the expected number for a uniform draw, n * S
otherwise.

    LM head                    2 S H V                  always all S positions: every token is in the loss
    layers in BERT's head      2 S H H                  before the LM head
    head on [CLS]              2 H C                    C classes, one position
    patches of an image        2 (S - 1) P H            P numbers a patch, projected; the other token is [CLS]

Backward computes two products (for the input and for the weight) where forward computes one: a step is 3 x forward,
but 2 x for patches, whose pixels need no gradient.
Layers are summed one by one. Attention is quadratic in n, so that the mean of n over layers or steps would give too few
FLOPs.

Left out: norms, softmax, activations, rotary, biases, embedding lookup, loss, sentence order (one token), gathering and
scattering, optimizer, and the forward work that activation recompute repeats (a cost, not useful work). Causal
attention is counted as computed by a kernel that skips masked pairs; padding inside a sample counts as tokens. No torch
here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron.ltd.schedules.step_plan import StepPlan


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder or encoder that decide its FLOPs and parameters; names as in Megatron-Core.

    ``vocab_size`` is the padded one; ``seq_length`` is S in tokens; ``gated_mlp`` is True for SwiGLU; ``causal`` is
    False for an encoder; ``head_layers`` are H x H layers before its head. For a classifier ``vocab_size`` is the
    number of classes, and ``head_tokens`` the number of positions that its head reads (None: all S). ``patch_values``:
    numbers in a patch of an image, 0 for text.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    gated_mlp: bool
    vocab_size: int
    seq_length: int
    causal: bool = True
    head_tokens: int | None = None
    head_layers: int = 0
    patch_values: int = 0

    @property
    def query_size(self) -> int:
        """Hq: size of all queries of a token."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Hkv: size of all keys of a token, and of all values."""
        return self.num_query_groups * self.kv_channels


def layer_flops(shape: ModelShape, kept_tokens: int, *, attends_to_all: bool = False) -> int:
    """Forward FLOPs of one layer for one sample with ``kept_tokens`` (0: the layer is skipped).

    ``attends_to_all``: the kept tokens attend to all S tokens.
    """
    n, m = kept_tokens, shape.seq_length if attends_to_all else kept_tokens
    pairs = n * (m + 1) // 2 if shape.causal else n * m
    projections = 2 * shape.hidden_size * (m * (shape.query_size + 2 * shape.key_value_size) + n * shape.query_size)
    attention = 2 * 2 * pairs * shape.query_size
    feed_forward = 2 * n * shape.hidden_size * shape.ffn_hidden_size * (3 if shape.gated_mlp else 2)
    return projections + attention + feed_forward


def head_flops(shape: ModelShape) -> int:
    """Forward FLOPs of the head and its layers for one sample: all S positions, or those that it reads."""
    tokens = shape.seq_length if shape.head_tokens is None else shape.head_tokens
    return 2 * tokens * shape.hidden_size * (shape.vocab_size + shape.head_layers * shape.hidden_size)


def patch_flops(shape: ModelShape) -> int:
    """Forward FLOPs of projecting the patches of one image; 0 for text, whose embedding is a lookup."""
    return 2 * (shape.seq_length - 1) * shape.patch_values * shape.hidden_size


def step_flops(shape: ModelShape, plan: StepPlan, num_samples: int) -> int:
    """FLOPs of an optimizer step, forward and backward, over ``num_samples`` samples on all devices together.

    A sample has ``plan.seq_length`` tokens. A layer that is dropped with some probability counts with its expected
    FLOPs, rounded.
    """
    assert len(plan.kept_tokens) == shape.num_layers, (len(plan.kept_tokens), shape.num_layers)
    shape = replace(shape, seq_length=plan.seq_length)
    layers = 0
    for work, num_layers in plan.work.items():
        flops = layer_flops(shape, work.kept_tokens, attends_to_all=work.attends_to_all) * num_samples
        layers += num_layers * _expected(flops, work.keep_probability)
    return 3 * (layers + num_samples * head_flops(shape)) + 2 * num_samples * patch_flops(shape)


def dense_step_flops(shape: ModelShape, num_samples: int) -> int:
    """``step_flops`` of the dense model: every layer computes all S tokens."""
    return step_flops(shape, StepPlan.dense(shape.seq_length, shape.num_layers), num_samples)


def layer_tokens(plan: StepPlan, num_samples: int) -> int:
    """Layer tokens of a step: kept tokens summed over layers, times samples. Dense: L * S * samples.

    A layer that is dropped with some probability counts with its expected tokens, rounded: the learning rate follows a
    smooth clock that can be planned, not the draw. Source: the LayerToken of random-LTD (Yao et al., 2022), section
    3.3.
    """
    return sum(
        num_layers * _expected(work.kept_tokens * num_samples, work.keep_probability)
        for work, num_layers in plan.work.items()
    )


def _expected(amount: int, probability: float) -> int:
    """``amount`` times ``probability``, rounded; exact if the layer is always computed."""
    return amount if probability == 1.0 else round(amount * probability)
