"""The shape of the model: flags only, no torch. Names, meanings and defaults are Megatron-LM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.plan.accounting import ModelShape


@dataclass(frozen=True)
class LayersConfig:
    """layers"""

    unfit_parallelism: ClassVar[Mapping[str, str]] = {}
    """Settings of ``ParallelConfig`` that this kind of model cannot use: the reason, and what to use instead."""
    seq_length_name: ClassVar[str] = "--seq-length"
    """The flag or expression that sets the tokens of a sample, for messages."""

    num_layers: int = flag(24, affects="model", help="transformer layers")
    hidden_size: int = flag(1024, affects="model", help="width of the hidden states")
    ffn_hidden_size: int | None = flag(
        None, affects="model", help="width of the MLP (default: 4 x hidden; with --swiglu 8/3, to a multiple of 64)"
    )
    num_attention_heads: int = flag(16, affects="model", help="attention heads")
    group_query_attention: bool = flag(
        False, affects="model", help="share key and value heads (see --num-query-groups)"
    )
    num_query_groups: int = flag(1, affects="model", help="key-value heads with --group-query-attention")
    kv_channels: int | None = flag(None, affects="model", help="size of a head (default: hidden / heads)")
    normalization: str = flag(
        "LayerNorm", affects="model", choices=("LayerNorm", "RMSNorm"), help="norm before attention and MLP"
    )
    norm_epsilon: float = flag(1e-5, affects="numbers", help="epsilon of the norms")
    swiglu: bool = flag(False, affects="model", help="gated SiLU in the MLP instead of GELU")
    openai_gelu: bool = flag(False, affects="model", help="GELU's tanh approximation, as in GPT-2")
    add_bias_linear: bool = flag(
        True, affects="model", name="disable-bias-linear", help="no biases in the linear layers"
    )
    attention_dropout: float = flag(0.1, affects="numbers", help="dropout of attention weights")
    hidden_dropout: float = flag(0.1, affects="numbers", help="dropout of hidden states")
    init_method_std: float = flag(0.02, affects="numbers", help="standard deviation of the initial weights")
    transformer_impl: str = flag(
        "auto",
        affects="execution",
        choices=("auto", "local", "transformer_engine"),
        help="implementation of the layers; auto uses Transformer Engine on CUDA if it is installed",
    )
    attention_backend: str = flag(
        "auto",
        affects="execution",
        choices=("auto", "flash", "fused", "unfused", "local"),
        help="kernels of attention: flash, fused (cuDNN) or unfused; local replaces Transformer Engine's attention by "
        "torch's kernels",
    )

    def __post_init__(self) -> None:
        self._at_least_one(
            "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"
        )
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
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be in [0, 1)")
        for name in ("norm_epsilon", "init_method_std"):
            if getattr(self, name) <= 0.0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be above 0")

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least 1")

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
    def mlp_size(self) -> int:
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return int(4 * self.hidden_size * 2 / 3 / 64) * 64 if self.swiglu else 4 * self.hidden_size

    def layers_identity(self) -> dict[str, Any]:
        """What two runs must agree on to share the weights of layers, by id."""
        return {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.mlp_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.query_groups,
            "kv_channels": self.head_size,
            "normalization": self.normalization,
            "swiglu": self.swiglu,
            "openai_gelu": self.openai_gelu,
            "add_bias_linear": self.add_bias_linear,
        }

    def layers_shape(self) -> dict[str, Any]:
        """The sizes of ``ModelShape`` that belong to layers."""
        return {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.mlp_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.query_groups,
            "kv_channels": self.head_size,
            "gated_mlp": self.swiglu,
        }


@dataclass(frozen=True)
class ModelConfig(LayersConfig):
    """model"""

    seq_length: int = flag(1024, affects="order", help="tokens in a sample")
    max_position_embeddings: int | None = flag(None, affects="model", help="learned positions (default: --seq-length)")
    position_embedding_type: str = flag(
        "learned_absolute",
        affects="model",
        choices=("learned_absolute", "rope", "none"),
        help="position embedding",
    )
    rotary_base: int = flag(10000, affects="model", help="base period of RoPE")
    rotary_percent: float = flag(1.0, affects="model", help="share of each head that RoPE rotates")
    tied_embeddings: bool = flag(
        True,
        affects="model",
        name="untie-embeddings-and-output-weights",
        help="use an output matrix of its own instead of the embedding's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("seq_length", "max_position_embeddings", "rotary_base")
        if self.learned_positions and self.learned_positions < self.seq_length:
            raise UserError(
                f"--max-position-embeddings {self.max_position_embeddings}: it must be at least --seq-length "
                f"{self.seq_length}; raise it"
            )
        if not 0.0 < self.rotary_percent <= 1.0:
            raise UserError(f"--rotary-percent {self.rotary_percent}: it must be above 0 and at most 1")

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
            "tied_embeddings": self.tied_embeddings,
            "padded_vocab_size": padded_vocab_size,
        }

    def shape(self, padded_vocab_size: int) -> ModelShape:
        """The sizes that the accounting needs."""
        return ModelShape(**self.layers_shape(), vocab_size=padded_vocab_size, seq_length=self.seq_length)


@dataclass(frozen=True)
class PrecisionConfig:
    """precision"""

    bf16: bool = flag(False, affects="numbers", help="compute in bfloat16, keep fp32 main weights")
    fp16: bool = flag(False, affects="numbers", help="compute in float16 with loss scaling, keep fp32 main weights")
    loss_scale: float | None = flag(None, affects="numbers", help="constant loss scale for --fp16 (default: dynamic)")
    initial_loss_scale: float = flag(2.0**32, affects="numbers", help="first value of the dynamic loss scale")
    min_loss_scale: float = flag(1.0, affects="numbers", help="smallest value of the dynamic loss scale")
    loss_scale_window: int = flag(1000, affects="numbers", help="steps without overflow before the loss scale doubles")
    hysteresis: int = flag(2, affects="numbers", help="overflows before the loss scale halves")

    def __post_init__(self) -> None:
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16: a run computes in one type; drop one")

    @property
    def dtype(self) -> str:
        """Name of the torch type of weights and activations."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


@dataclass(frozen=True)
class RecomputeConfig:
    """activation recompute"""

    recompute_granularity: str | None = flag(
        None, affects="execution", choices=("full", "selective"), help="what the backward pass recomputes"
    )
    recompute_method: str | None = flag(
        None, affects="execution", choices=("uniform", "block"), help="how full recompute groups the layers"
    )
    recompute_num_layers: int | None = flag(
        None, affects="execution", help="layers per group (uniform) or layers recomputed (block)"
    )
    recompute_modules: tuple[str, ...] = flag(
        (),
        affects="execution",
        choices=("core_attn", "mlp"),
        help="modules that selective recompute runs again (default: core_attn)",
    )

    def __post_init__(self) -> None:
        full = self.recompute_granularity == "full"
        if full and (self.recompute_method is None or self.recompute_num_layers is None):
            raise UserError(
                "--recompute-granularity full: it needs --recompute-method (uniform or block) and "
                "--recompute-num-layers; add them"
            )
        if not full and (self.recompute_method is not None or self.recompute_num_layers is not None):
            raise UserError(
                "--recompute-method, --recompute-num-layers: they need --recompute-granularity full; add it, or drop "
                "them"
            )
        if self.recompute_modules and self.recompute_granularity != "selective":
            raise UserError("--recompute-modules: it needs --recompute-granularity selective; add it, or drop the list")
