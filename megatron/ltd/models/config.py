"""The shape of the model: flags only, no torch. Names, meanings and defaults are Megatron-LM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.flags.ranges import ABOVE_ZERO, SHARE, SIZE, Range
from megatron.ltd.models.execution_config import KernelsConfig, PrecisionConfig
from megatron.ltd.plan.accounting import ModelShape


@dataclass(frozen=True)
class LayersConfig(KernelsConfig):
    """layers"""

    unfit_parallelism: ClassVar[Mapping[str, str]] = {}
    """Settings of ``ParallelConfig`` that this kind of model cannot use: the reason, and what to use instead."""
    seq_length_name: ClassVar[str] = "--seq-length"
    """The flag or expression that sets the tokens of a sample, for messages."""

    num_layers: int = flag(24, range=Range(1, 1 << 12), affects="model", help="transformer layers")
    hidden_size: int = flag(1024, range=SIZE, affects="model", help="width of the hidden states")
    ffn_hidden_size: int | None = flag(
        None,
        range=SIZE,
        affects="model",
        help="width of the MLP (default: 4 x hidden; with --swiglu 8/3, to a multiple of 64)",
    )
    num_attention_heads: int = flag(16, range=SIZE, affects="model", help="attention heads")
    group_query_attention: bool = flag(
        False, affects="model", help="share key and value heads (see --num-query-groups)"
    )
    num_query_groups: int = flag(1, range=SIZE, affects="model", help="key-value heads with --group-query-attention")
    kv_channels: int | None = flag(None, range=SIZE, affects="model", help="size of a head (default: hidden / heads)")
    normalization: str = flag(
        "LayerNorm", affects="model", choices=("LayerNorm", "RMSNorm"), help="norm before attention and MLP"
    )
    norm_epsilon: float = flag(1e-5, range=ABOVE_ZERO, affects="numbers", help="epsilon of the norms")
    swiglu: bool = flag(False, affects="model", help="gated SiLU in the MLP instead of GELU")
    openai_gelu: bool = flag(False, affects="model", help="GELU's tanh approximation, as in GPT-2")
    add_bias_linear: bool = flag(
        True, affects="model", name="disable-bias-linear", help="no biases in the linear layers"
    )
    add_qkv_bias: bool = flag(
        False, affects="model", help="biases of queries, keys and values, also with --disable-bias-linear"
    )
    qk_layernorm: bool = flag(False, affects="model", help="a norm of the queries and keys of each head")
    apply_layernorm_1p: bool = flag(
        False, affects="model", help="store the weights of norms minus 1, so that weight 0 leaves values as they are"
    )
    attention_dropout: float = flag(0.1, range=SHARE, affects="numbers", help="dropout of attention weights")
    hidden_dropout: float = flag(0.1, range=SHARE, affects="numbers", help="dropout of hidden states")
    init_method_std: float = flag(
        0.02, range=ABOVE_ZERO, affects="numbers", help="standard deviation of the initial weights"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_query_groups != 1 and not self.group_query_attention:
            raise UserError(
                f"--num-query-groups {self.num_query_groups}: it needs --group-query-attention; add it, or drop "
                "--num-query-groups"
            )
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"--hidden-size {self.hidden_size}: it is not a multiple of --num-attention-heads "
                f"{self.num_attention_heads}; change one, or give the size of a head with --kv-channels"
            )
        if self.num_attention_heads % self.query_groups:
            raise UserError(
                f"--num-query-groups {self.num_query_groups}: it must divide --num-attention-heads "
                f"{self.num_attention_heads}; change one of them"
            )
        if self.mlp_size < 1:
            raise UserError(
                f"--hidden-size {self.hidden_size}: the MLP of --swiglu would have width 0 (8/3 x hidden, rounded down "
                "to a multiple of 64); give --ffn-hidden-size"
            )
        if self.swiglu and self.openai_gelu:
            raise UserError("--swiglu and --openai-gelu: the MLP has one activation; drop one")
        if self.bias_swiglu_fusion and not self.swiglu:
            raise UserError("--bias-swiglu-fusion: the MLP has no SwiGLU; add --swiglu, or drop the flag")
        if self.bias_gelu_fusion and not self.has_fusible_gelu:
            raise UserError(
                "--bias-gelu-fusion: Megatron-Core's kernel adds biases and computes GELU's tanh approximation; use "
                "--openai-gelu, which is that, without --swiglu and --disable-bias-linear, or drop the flag"
            )

    @property
    def layer_numbers(self) -> range:
        return range(1, self.num_layers + 1)

    @property
    def head_size(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        return self.num_query_groups if self.group_query_attention else self.num_attention_heads

    @property
    def has_fusible_gelu(self) -> bool:
        """Whether Megatron-Core's fused kernel of bias and GELU computes the same function, to rounding."""
        return self.openai_gelu and self.add_bias_linear

    @property
    def has_qkv_bias(self) -> bool:
        return self.add_bias_linear or self.add_qkv_bias

    @property
    def mlp_size(self) -> int:
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return int(4 * self.hidden_size * 2 / 3 / 64) * 64 if self.swiglu else 4 * self.hidden_size

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.mlp_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.query_groups,
            "kv_channels": self.head_size,
        }

    def layers_identity(self) -> dict[str, Any]:
        """What two runs must agree on to share the weights of layers, by id."""
        return self._sizes | {
            "normalization": self.normalization,
            "swiglu": self.swiglu,
            "openai_gelu": self.openai_gelu,
            "add_bias_linear": self.add_bias_linear,
            # None where not given, so that older checkpoints continue.
            "add_qkv_bias": self.add_qkv_bias or None,
            "qk_layernorm": self.qk_layernorm or None,
            "apply_layernorm_1p": self.apply_layernorm_1p or None,
        }

    def layers_shape(self) -> dict[str, Any]:
        """The sizes of ``ModelShape`` that belong to layers."""
        return self._sizes | {"gated_mlp": self.swiglu}


@dataclass(frozen=True)
class ModelConfig(LayersConfig):
    """model"""

    seq_length: int = flag(1024, range=SIZE, affects="order", help="tokens in a sample")
    max_position_embeddings: int | None = flag(
        None, range=SIZE, affects="model", help="learned positions (default: --seq-length)"
    )
    position_embedding_type: str = flag(
        "learned_absolute",
        affects="model",
        choices=("learned_absolute", "rope", "none"),
        help="position embedding",
    )
    rotary_base: int = flag(10000, affects="model", help="base period of RoPE")
    rotary_percent: float = flag(
        1.0, range=Range(0, 1, above=True), affects="model", help="share of each head that RoPE rotates"
    )
    use_rope_scaling: bool = flag(
        False, affects="model", help="stretch RoPE's longer periods as Llama 3.1 does, beyond 8192 positions"
    )
    rope_scaling_factor: float = flag(
        8.0, range=Range(1, 1e6), affects="model", help="by how much --use-rope-scaling stretches them"
    )
    tied_embeddings: bool = flag(
        True,
        affects="model",
        name="untie-embeddings-and-output-weights",
        help="use an output matrix of its own instead of the embedding's",
    )
    cross_entropy_loss_fusion: bool = flag(
        False, affects="execution", help="compute the loss of the logits in fused kernels"
    )
    cross_entropy_fusion_impl: str = flag(
        "native",
        affects="execution",
        choices=("native", "te"),
        help="whose kernels: Megatron-Core's, which round the gradient to bfloat16, or Transformer Engine's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learned_positions and self.learned_positions < self.seq_length:
            raise UserError(
                f"--max-position-embeddings {self.max_position_embeddings}: it must be at least --seq-length "
                f"{self.seq_length}; raise it"
            )
        if self.position_embedding_type == "rope" and (self.rotary_size % 2 or not self.rotary_size):
            raise UserError(
                f"--position-embedding-type rope: it rotates pairs, and --rotary-percent {self.rotary_percent:g} of a "
                f"head of {self.head_size} is {self.rotary_size}; change --kv-channels or --rotary-percent so that it "
                "is even and above 0"
            )
        if self.use_rope_scaling and self.position_embedding_type != "rope":
            raise UserError(
                f"--use-rope-scaling: it has no effect with --position-embedding-type {self.position_embedding_type}; "
                "drop it, or use --position-embedding-type rope"
            )
        if self.rope_scaling_factor != 8.0 and not self.use_rope_scaling:
            raise UserError(
                f"--rope-scaling-factor {self.rope_scaling_factor}: it has no effect without --use-rope-scaling; add it"
            )
        if self.rope_fusion and self.position_embedding_type != "rope":
            raise UserError(
                f"--rope-fusion: it has no effect with --position-embedding-type {self.position_embedding_type}; drop "
                "it, or use --position-embedding-type rope"
            )
        if self.cross_entropy_fusion_impl != "native" and not self.cross_entropy_loss_fusion:
            raise UserError(
                f"--cross-entropy-fusion-impl {self.cross_entropy_fusion_impl}: it has no effect without "
                "--cross-entropy-loss-fusion; add it"
            )

    @property
    def rotary_size(self) -> int:
        """Numbers of each head that RoPE rotates, rounded as Megatron-Core does."""
        return int(self.head_size * self.rotary_percent)

    @property
    def learned_positions(self) -> int:
        """Rows of the position embedding; 0 if positions are not learned."""
        if self.position_embedding_type != "learned_absolute":
            return 0
        return self.max_position_embeddings if self.max_position_embeddings is not None else self.seq_length

    def identity(self, padded_vocab_size: int) -> dict[str, Any]:
        """What two runs must agree on to share weights, by id."""
        return {
            **self.layers_identity(),
            "position_embedding_type": self.position_embedding_type,
            "max_position_embeddings": self.learned_positions,
            "rotary_base": self.rotary_base,
            "rotary_percent": self.rotary_percent,
            "use_rope_scaling": self.use_rope_scaling or None,
            "rope_scaling_factor": self.rope_scaling_factor if self.use_rope_scaling else None,
            "tied_embeddings": self.tied_embeddings,
            "padded_vocab_size": padded_vocab_size,
        }

    def shape(self, padded_vocab_size: int) -> ModelShape:
        """The sizes that the accounting needs."""
        return ModelShape(**self.layers_shape(), vocab_size=padded_vocab_size, seq_length=self.seq_length)


LOSS_FUSION = ("cross_entropy_loss_fusion", "cross_entropy_fusion_impl")
"""The fields of the kernels of the loss."""


def check_loss_fusion(model: LayersConfig, precision: PrecisionConfig) -> None:
    """Raise ``UserError`` if a fused kernel would compute another gradient of the loss, than to rounding."""
    if not isinstance(model, ModelConfig) or not model.cross_entropy_loss_fusion or precision.bf16:
        return
    if model.cross_entropy_fusion_impl == "native":
        raise UserError(
            "--cross-entropy-loss-fusion: Megatron-Core's kernel rounds the gradient of logits to bfloat16, which "
            f"loses digits in {precision.dtype}; add --bf16, or --cross-entropy-fusion-impl te"
        )
