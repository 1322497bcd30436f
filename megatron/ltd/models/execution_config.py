"""How a model is computed, whatever its shape: kernels, precision and recompute. Flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag, flag_name, shown
from megatron.ltd.flags.ranges import LOSS_SCALE, Range

_LAYERS = Range(0, 1 << 16)


@dataclass(frozen=True)
class KernelsConfig(Settings):
    """kernels"""

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
    ltd_kernels: str = flag(
        "auto",
        affects="execution",
        choices=("auto", "triton", "torch"),
        help="whose kernels draw kept tokens and write them back; auto is torch's, until a GPU has measured Triton's",
    )
    bias_gelu_fusion: bool | None = flag(
        None, affects="execution", help="add the bias in the kernel of --openai-gelu (default: on CUDA)"
    )
    bias_swiglu_fusion: bool | None = flag(
        None, affects="execution", help="compute SwiGLU, with its bias, in one kernel (default: on CUDA)"
    )
    bias_dropout_fusion: bool | None = flag(
        None, affects="execution", help="compute bias, dropout and residual in one kernel (default: on CUDA)"
    )
    rope_fusion: bool | None = flag(
        None, affects="execution", help="rotate by Transformer Engine's kernel (default: where it is available)"
    )
    gradient_accumulation_fusion: bool | None = flag(
        None,
        affects="execution",
        help="let Transformer Engine's products add up gradients of weights themselves (default: in its layers, "
        "without CUDA graphs)",
    )
    cuda_graph_impl: str = flag(
        "none",
        affects="execution",
        choices=("none", "local", "transformer_engine"),
        help="launch each layer of a training step as a CUDA graph (local), captured again whenever its kept tokens "
        "change in number; for models and micro-batches so small that launching kernels takes longer than they do",
    )
    cuda_graph_warmup_steps: int = flag(
        3, range=Range(1, 64), affects="execution", help="passes of a layer before its graph is captured"
    )


@dataclass(frozen=True)
class PrecisionConfig(Settings):
    """precision"""

    bf16: bool = flag(False, affects="numbers", help="compute in bfloat16, keep fp32 main weights")
    fp16: bool = flag(False, affects="numbers", help="compute in float16 with loss scaling, keep fp32 main weights")
    grad_reduce_in_bf16: bool = flag(
        False, affects="numbers", help="sum and reduce gradients in bfloat16, with --bf16 (default: in fp32)"
    )
    loss_scale: float | None = flag(
        None, range=LOSS_SCALE, affects="numbers", help="constant loss scale for --fp16 (default: dynamic)"
    )
    initial_loss_scale: float = flag(
        2.0**32, range=LOSS_SCALE, affects="numbers", help="first value of the dynamic loss scale"
    )
    min_loss_scale: float = flag(
        1.0, range=LOSS_SCALE, affects="numbers", help="smallest value of the dynamic loss scale"
    )
    loss_scale_window: int = flag(1000, affects="numbers", help="steps without overflow before the loss scale doubles")
    hysteresis: int = flag(2, affects="numbers", help="overflows before the loss scale halves")
    fp8_format: str | None = flag(
        None,
        affects="numbers",
        choices=("e4m3", "hybrid"),
        help="multiply 8-bit numbers in Transformer Engine's layers, with --bf16; hybrid: gradients have e5m2",
    )
    fp8_recipe: str = flag(
        "delayed",
        affects="numbers",
        choices=("delayed", "tensorwise", "blockwise", "mxfp8"),
        help="scale of 8-bit numbers: of a tensor, from its earlier values (delayed) or its own (tensorwise); or of "
        "blocks of 128 (blockwise) or 32 values (mxfp8)",
    )
    fp8_margin: int = flag(0, range=Range(0, 64), affects="numbers", help="delayed: divide scales by 2 to this power")
    fp8_amax_history_len: int = flag(
        1, range=Range(1, 1 << 20), affects="numbers", help="delayed: microbatches whose largest values are held"
    )
    fp8_amax_compute_algo: str = flag(
        "most_recent",
        affects="numbers",
        choices=("most_recent", "max"),
        help="delayed: scale by the latest of them, or by the largest",
    )
    first_last_layers_bf16: bool = flag(
        False, affects="numbers", help="compute the first and the last layers without fp8"
    )
    num_layers_at_start_in_bf16: int = flag(
        1, range=_LAYERS, affects="numbers", help="first layers with --first-last-layers-bf16"
    )
    num_layers_at_end_in_bf16: int = flag(
        1, range=_LAYERS, affects="numbers", help="last layers with --first-last-layers-bf16"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16: a run computes in one type; drop one")
        if self.min_loss_scale > self.initial_loss_scale:
            raise UserError(
                f"--min-loss-scale {self.min_loss_scale:g}: it must be at most --initial-loss-scale "
                f"{self.initial_loss_scale:g}; lower it"
            )
        if self.grad_reduce_in_bf16 and not self.bf16:
            raise UserError("--grad-reduce-in-bf16: it needs --bf16; add it, or drop the flag")
        if self.fp8_format is None:
            self._need("--fp8-format", OF_FP8[1:])
        elif not self.bf16:
            raise UserError(f"--fp8-format {self.fp8_format}: everything else of such a run is in bfloat16; add --bf16")
        if self.fp8_recipe != "delayed":
            self._need("--fp8-recipe delayed", _OF_DELAYED_SCALING)
        elif self.first_last_layers_bf16:
            raise UserError(
                "--first-last-layers-bf16: --fp8-recipe delayed finds the scales of all layers together, when the last "
                "one has been computed; use --fp8-recipe tensorwise"
            )
        if not self.first_last_layers_bf16:
            self._need("--first-last-layers-bf16", OF_FP8[-2:])

    def _need(self, flag_needed: str, names: tuple[str, ...]) -> None:
        """Refuse fields that are set and have no effect without a flag."""
        for name in names:
            value = getattr(self, name)
            if value != getattr(PrecisionConfig, name):
                typed = flag_name(PrecisionConfig, name) + ("" if value is True else f" {shown(value)}")
                raise UserError(f"{typed}: it has no effect without {flag_needed}; add that, or drop the flag")

    @property
    def dtype(self) -> str:
        """Name of the torch type of weights and activations."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    @property
    def product_dtype(self) -> str:
        """The type of the factors in products of layers, by which a peak is chosen: ``dtype``, or "float8"."""
        return self.dtype if self.fp8_format is None else "float8"

    def layers_in_fp8(self, num_layers: int) -> range:
        """The numbers of the layers whose products are in fp8."""
        if self.fp8_format is None:
            return range(0)
        if not self.first_last_layers_bf16:
            return range(1, num_layers + 1)
        return range(self.num_layers_at_start_in_bf16 + 1, num_layers - self.num_layers_at_end_in_bf16 + 1)

    def without_fp8(self) -> PrecisionConfig:
        """The same with layers in ``dtype``, which take any number of tokens."""
        return replace(self, **{name: getattr(PrecisionConfig, name) for name in OF_FP8})


_OF_DELAYED_SCALING = ("fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo")
OF_FP8 = (
    *("fp8_format", "fp8_recipe", *_OF_DELAYED_SCALING),
    *("first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"),
)
"""The fields of fp8, as Megatron-Core's configuration has them but for the first, which is its ``fp8``."""


@dataclass(frozen=True)
class RecomputeConfig(Settings):
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
        choices=("core_attn", "mlp", "layernorm"),
        help="modules that selective recompute runs again: core_attn, the default, and mlp; layernorm is refused",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "layernorm" in self.recompute_modules:
            raise UserError(
                "--recompute-modules layernorm: is not available, because Transformer Engine's norms are part of the "
                "product after them; leave layernorm out, or use mlp"
            )
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
