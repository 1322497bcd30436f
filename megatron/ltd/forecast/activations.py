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
    each, seq_length, routed = numbers.bytes_each, shape.seq_length, kept_tokens < shape.seq_length
    queries, keys = shape.query_size // share.tensor, shape.key_value_size // share.tensor
    ffn, hidden = shape.ffn_hidden_size // share.tensor, shape.hidden_size
    tokens = kept_tokens * share.micro_batch // share.context  # n
    all_tokens = seq_length * share.micro_batch // share.context
    read_tokens = all_tokens if attends_to_all else tokens  # their queries, keys and values are computed
    own, own_read = tokens // share.sequence, read_tokens // share.sequence
    masks = own * hidden * (each if numbers.on_cpu else 1) if numbers.hidden_dropout else 0
    projections = _projections(shape, numbers, share, kept_tokens, attends_to_all=attends_to_all)
    core, core_work = _core(shape, numbers, share, kept_tokens, attends_to_all=attends_to_all)
    widths = (3 if numbers.fused_gate else 5) if shape.gated_mlp else 2
    gradients = (all_tokens // share.sequence + (own if routed else 0)) * hidden * each
    gathered = tokens * hidden * each if share.sequence > 1 else 0
    mlp_weight = hidden * ffn * each
    in_mlp = tokens * ffn * each  # one gradient beside that of the matrix; or both parts' beside that of their product
    mlp_work = gradients + gathered + max(in_mlp + mlp_weight, 2 * in_mlp if shape.gated_mlp else 0)
    attention_work = gradients + (read_tokens * (queries + 2 * keys)) * each + core_work
    return LayerBytes(
        residuals=(own_read + own) * hidden * each + 2 * masks + 16 * own + (16 * own if routed else 0),
        norm_outputs=(own_read + own) * hidden * (each + _replaced(numbers)),
        projections=projections,
        core=core,
        mlp=widths * tokens * ffn * each,
        mlp_work=mlp_work,
        attention_work=attention_work,
    )


def norm_copies(numbers: Numbers) -> int:
    """Bytes for each number that a norm stores beside its input: those of RMSNorm on a CPU, see above."""
    return (8 if numbers.bytes_each < 4 else 4) if numbers.on_cpu and numbers.rms_norm else 0


def _projections(shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, *, attends_to_all: bool) -> int:
    """Queries, keys and values, whichever of them attention stores, and its output."""
    queries, keys = shape.query_size // share.tensor, shape.key_value_size // share.tensor
    tokens = kept_tokens * share.micro_batch // share.context
    read_tokens = shape.seq_length * share.micro_batch // share.context if attends_to_all else tokens
    is_rotated, is_grouped = numbers.rotary_share > 0.0, shape.num_query_groups < shape.num_attention_heads
    repeats = _repeats(shape, numbers, share, kept_tokens, attends_to_all=attends_to_all)
    own_queries = is_rotated or is_grouped or attends_to_all or numbers.head_norms
    own_values = share.context > 1 or repeats  # and keys
    stored = tokens * queries
    if own_queries:
        stored += tokens * queries
    if not (own_queries and own_values) or numbers.head_norms:
        stored += read_tokens * (queries + 2 * keys)
    if (is_rotated or numbers.head_norms) and not own_values:
        stored += read_tokens * keys
    if numbers.head_norms and is_grouped:
        stored += read_tokens * queries  # the input of their norm
    if share.context > 1:  # keys and values gathered and ordered; the merged results of two chunks
        stored += 2 * share.context * tokens * keys + tokens * queries
    if repeats:
        columns = shape.seq_length if attends_to_all else kept_tokens
        read = columns * (2 * share.context + 1) // (2 * share.context) if share.context > 1 else columns
        stored += 2 * read * share.micro_batch * queries
    if is_rotated:
        positions = tokens if kept_tokens < shape.seq_length else shape.seq_length // share.context
        stored += 2 * 2 * positions * round(shape.kv_channels * numbers.rotary_share)  # cosines and sines of each
    norms = 0
    if numbers.head_norms:
        heads = (queries + keys) // shape.kv_channels
        norms = read_tokens * ((queries + keys) * _replaced(numbers) + heads * (4 if numbers.rms_norm else 8))
    return stored * numbers.bytes_each + norms


def _replaced(numbers: Numbers) -> int:
    """As ``norm_copies``, where nothing else needs the input, which a copy in fp32 replaces."""
    copies = norm_copies(numbers)
    return copies - numbers.bytes_each if copies and numbers.bytes_each < 4 else copies


def _is_masked(numbers: Numbers, share: Share, *, attends_to_all: bool) -> bool:
    return numbers.explicit_mask or attends_to_all or share.context > 1


def _by_blocks(shape: ModelShape, numbers: Numbers, kept_tokens: int, *, masked: bool) -> bool:
    """Whether attention is computed in blocks of queries: causal, in fp32 on a CPU."""
    without = numbers.on_cpu and not numbers.attention_dropout and not masked
    return without and shape.causal and numbers.bytes_each >= 4 and kept_tokens > BLOCK_TOKENS


def _repeats(shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, *, attends_to_all: bool) -> bool:
    """Whether keys and values are repeated for the queries of a group: where the kernel has no groups."""
    masked = _is_masked(numbers, share, attends_to_all=attends_to_all)
    on_gpu = not numbers.on_cpu and (masked or numbers.bytes_each >= 4)
    grouped = shape.num_query_groups < shape.num_attention_heads
    return grouped and (on_gpu or _by_blocks(shape, numbers, kept_tokens, masked=masked))


def _core(
    shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, *, attends_to_all: bool
) -> tuple[int, int]:
    """Stored by the attention kernel, and added by its backward pass."""
    each, heads = numbers.bytes_each, shape.num_attention_heads // share.tensor
    tokens = kept_tokens * share.micro_batch // share.context
    columns = shape.seq_length if attends_to_all else kept_tokens
    mask = 0
    if numbers.explicit_mask or attends_to_all:
        mask = tokens * columns * each
    elif share.context > 1:  # for two chunks of queries, the same for each sample
        run = kept_tokens // (2 * share.context)
        mask = run * run * (2 * share.context + 1) * each
    if numbers.on_cpu and numbers.attention_dropout:  # plain products, in fp32
        pairs = heads * tokens * columns * 4
        values = shape.key_value_size if each < 4 else 0
        scaled = tokens * (shape.query_size + shape.key_value_size + values) // share.tensor * 4
        return 3 * pairs + scaled + mask, pairs
    core = tokens * heads * 4 + mask
    if _by_blocks(shape, numbers, kept_tokens, masked=_is_masked(numbers, share, attends_to_all=attends_to_all)):
        core += BLOCK_TOKENS * kept_tokens * each
    return core, 0
