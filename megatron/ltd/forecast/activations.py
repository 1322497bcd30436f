"""Activations that a layer stores for backward, and memory that its backward pass adds: bytes of one process.

n tokens that the layer computes (kept x micro-batch / context), s those of its sequence-parallel share, m those that it
attends to, h heads, e bytes per number; H hidden, Q queries, G keys, F feed-forward; Q, G, F and h are those of the
tensor-parallel share.

    residuals      2 s H                input of either norm
                   2 s H                dropout masks, with dropout (one byte each on a GPU)
    norm outputs   2 s H                input of either first product
                   2 s H                normalized values in fp32, of RMSNorm on a CPU, which has no kernel for it
    projections    n (Q + 2 G)          queries, keys and values together, unless attention reads copies of all of them
                   n Q, n G             copies: queries that are rotated, gathered, in groups or have a norm; keys that
                                        are rotated or have a norm
                   2 c n G              keys and values that are gathered from c context-parallel processes
                   2 n Q                keys and values that are repeated for the queries of a group
                   n Q                  output of attention, input of the output projection
    core           n h                  log-sums of a flash kernel, in fp32
                   3 h n m              probabilities, dropout mask and their product, in fp32: on a CPU, which has no
                                        flash kernel with dropout
                   n m                  an explicit mask, in the type of the activations
    MLP            2 n F, 5 n F gated   input and output of the activation; if it is gated, also of its parts
                   3 n F                gated, with a fused kernel, which computes the parts again

A routed layer stores nothing of the tokens that skip it. Backward adds the gradients that exist at the same time. These
are counts of our layers (``layers``, Megatron-Core's ``TransformerLayer``); a test compares them with an allocator.
Transformer Engine stores about the same; its fused norms may store less.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.plan.accounting import ModelShape

BLOCK_TOKENS = 128
"""Queries per block of causal attention on a CPU, as in ``layers.causal_blocks``, which imports torch."""


@dataclass(frozen=True)
class Numbers:
    """Types and features of the computation."""

    bytes_each: int
    """Of a weight or an activation: 4 in fp32, 2 in bf16 and fp16."""
    on_cpu: bool
    hidden_dropout: bool
    attention_dropout: bool
    rotary_share: float
    """Share of a head that is rotated; 0 without rotary positions."""
    explicit_mask: bool
    rms_norm: bool = False
    fused_gate: bool = False
    """Whether a gated activation is one kernel, see ``models.fusions``."""
    head_norms: bool = False
    """Whether the queries and keys of each head have a norm."""


@dataclass(frozen=True)
class Share:
    """The share of a layer that one process computes."""

    micro_batch: int
    tensor: int
    sequence: int
    """Tensor-parallel size with sequence parallelism, else 1."""
    context: int


@dataclass(frozen=True)
class LayerBytes:
    """The bytes of one layer, by what recompute can drop."""

    residuals: int
    norm_outputs: int
    projections: int
    core: int
    mlp: int
    mlp_work: int
    """Added by the backward pass of the MLP."""
    attention_work: int
    """Added by the backward pass of attention, when the MLP's activations are freed."""

    @property
    def kept(self) -> int:
        """Stored for backward without recompute."""
        return self.residuals + self.norm_outputs + self.projections + self.core + self.mlp


def layer_bytes(
    shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, *, attends_to_all: bool = False
) -> LayerBytes:
    """Bytes of a layer that keeps this many tokens of each sample; ``attends_to_all``: it is an entry layer."""
    return _Layer(shape, numbers, share, kept_tokens, attends_to_all).bytes()


def norm_copies(numbers: Numbers) -> int:
    """Bytes for each number that a norm stores beside its input: those of RMSNorm on a CPU, see above."""
    return (8 if numbers.bytes_each < 4 else 4) if numbers.on_cpu and numbers.rms_norm else 0


def _replaced(numbers: Numbers) -> int:
    """As ``norm_copies``, where nothing else needs the input, which a copy in fp32 replaces."""
    copies = norm_copies(numbers)
    return copies - numbers.bytes_each if copies and numbers.bytes_each < 4 else copies


class _Layer:
    """One layer on one process."""

    def __init__(
        self, shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, attends_to_all: bool
    ) -> None:
        self.shape, self.numbers, self.share, self.kept_tokens = shape, numbers, share, kept_tokens
        self.attends_to_all, self.is_routed = attends_to_all, kept_tokens < shape.seq_length
        self.all_tokens = shape.seq_length * share.micro_batch // share.context
        self.tokens = kept_tokens * share.micro_batch // share.context  # n
        self.read_tokens = self.all_tokens if attends_to_all else self.tokens  # with queries, keys and values
        self.columns = shape.seq_length if attends_to_all else kept_tokens  # what a query attends to
        self.queries, self.keys = shape.query_size // share.tensor, shape.key_value_size // share.tensor
        self.is_grouped = shape.num_query_groups < shape.num_attention_heads
        self.is_masked = numbers.explicit_mask or attends_to_all or share.context > 1
        # Attention is computed in blocks of queries: causal, in fp32 on a CPU.
        plain = numbers.on_cpu and not numbers.attention_dropout and not self.is_masked
        self.by_blocks = plain and shape.causal and numbers.bytes_each >= 4 and kept_tokens > BLOCK_TOKENS
        # Keys and values are repeated for the queries of a group where the kernel has no groups.
        on_gpu = not numbers.on_cpu and (self.is_masked or numbers.bytes_each >= 4)
        self.repeats = self.is_grouped and (on_gpu or self.by_blocks)

    def bytes(self) -> LayerBytes:
        """All of its bytes."""
        shape, numbers, share, tokens = self.shape, self.numbers, self.share, self.tokens
        each, hidden, ffn = numbers.bytes_each, shape.hidden_size, shape.ffn_hidden_size // share.tensor
        own, own_read = tokens // share.sequence, self.read_tokens // share.sequence
        masks = own * hidden * (each if numbers.on_cpu else 1) if numbers.hidden_dropout else 0
        core, core_work = self._core()
        widths = (3 if numbers.fused_gate else 5) if shape.gated_mlp else 2
        gradients = (self.all_tokens // share.sequence + (own if self.is_routed else 0)) * hidden * each
        gathered = tokens * hidden * each if share.sequence > 1 else 0
        # One gradient beside that of the matrix; or both parts' beside that of their product.
        in_mlp, mlp_weight = tokens * ffn * each, hidden * ffn * each
        return LayerBytes(
            residuals=(own_read + own) * hidden * each + 2 * masks + 16 * own + (16 * own if self.is_routed else 0),
            norm_outputs=(own_read + own) * hidden * (each + _replaced(numbers)),
            projections=self._projections(),
            core=core,
            mlp=widths * tokens * ffn * each,
            mlp_work=gradients + gathered + max(in_mlp + mlp_weight, 2 * in_mlp if shape.gated_mlp else 0),
            attention_work=gradients + self.read_tokens * (self.queries + 2 * self.keys) * each + core_work,
        )

    def _projections(self) -> int:
        """Queries, keys and values, whichever of them attention stores, and its output."""
        shape, numbers, context = self.shape, self.numbers, self.share.context
        tokens, read_tokens, queries, keys = self.tokens, self.read_tokens, self.queries, self.keys
        is_rotated = numbers.rotary_share > 0.0
        own_queries = is_rotated or self.is_grouped or self.attends_to_all or numbers.head_norms
        own_values = context > 1 or self.repeats  # and keys
        stored = tokens * queries
        if own_queries:
            stored += tokens * queries
        if not (own_queries and own_values) or numbers.head_norms:
            stored += read_tokens * (queries + 2 * keys)
        if (is_rotated or numbers.head_norms) and not own_values:
            stored += read_tokens * keys
        if numbers.head_norms and self.is_grouped:
            stored += read_tokens * queries  # the input of their norm
        if context > 1:  # keys and values gathered and ordered; the merged results of two chunks
            stored += 2 * context * tokens * keys + tokens * queries
        if self.repeats:
            read = self.columns * (2 * context + 1) // (2 * context) if context > 1 else self.columns
            stored += 2 * read * self.share.micro_batch * queries
        if is_rotated:
            positions = tokens if self.is_routed else shape.seq_length // context
            stored += 2 * 2 * positions * round(shape.kv_channels * numbers.rotary_share)  # cosines and sines of each
        norms = 0
        if numbers.head_norms:
            heads = (queries + keys) // shape.kv_channels
            norms = read_tokens * ((queries + keys) * _replaced(numbers) + heads * (4 if numbers.rms_norm else 8))
        return stored * numbers.bytes_each + norms

    def _core(self) -> tuple[int, int]:
        """Stored by the attention kernel, and added by its backward pass."""
        shape, numbers, share, tokens = self.shape, self.numbers, self.share, self.tokens
        each, heads = numbers.bytes_each, shape.num_attention_heads // share.tensor
        mask = 0
        if numbers.explicit_mask or self.attends_to_all:
            mask = tokens * self.columns * each
        elif share.context > 1:  # for two chunks of queries, the same for each sample
            run = self.kept_tokens // (2 * share.context)
            mask = run * run * (2 * share.context + 1) * each
        if numbers.on_cpu and numbers.attention_dropout:  # plain products, in fp32
            pairs = heads * tokens * self.columns * 4
            values = shape.key_value_size if each < 4 else 0
            scaled = tokens * (shape.query_size + shape.key_value_size + values) // share.tensor * 4
            return 3 * pairs + scaled + mask, pairs
        blocks = BLOCK_TOKENS * self.kept_tokens * each if self.by_blocks else 0
        return tokens * heads * 4 + mask + blocks, 0
