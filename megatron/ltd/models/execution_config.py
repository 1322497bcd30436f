"""How a model is computed, whatever its shape: kernels, precision and recompute. Flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import LOSS_SCALE


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
        help="let Transformer Engine's products add up gradients of weights themselves (default: in its layers)",
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

    @property
    def dtype(self) -> str:
        """Name of the torch type of weights and activations."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


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
        choices=("core_attn", "mlp"),
        help="modules that selective recompute runs again (default: core_attn)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
