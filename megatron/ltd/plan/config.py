"""Length, batch and learning rate of a run: flags only, no torch.

Names and meanings are Megatron-LM's where it has them. Each length is given in one unit: iterations, samples, or tokens
on the run's clock (``plan.clock``).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import ABOVE_ZERO, COUNT_OR_ZERO, SEED, SHARE, SIZE, Range


def at_most_one(config: object, *names: str) -> None:
    """Refuse more than one of these flags."""
    given = [name for name in names if getattr(config, name) is not None]
    if len(given) > 1:
        spelled = [f"--{name.replace('_', '-')} {getattr(config, name)}" for name in given]
        raise UserError(f"{' and '.join(spelled)}: both set the same length; keep one")


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """training"""

    micro_batch_size: int = flag(1, range=SIZE, affects="numbers", help="samples that a process computes at a time")
    global_batch_size: int | None = flag(
        None, range=SIZE, affects="schedule", help="samples per step (default: one micro-batch per process)"
    )
    rampup_batch_size: tuple[int, ...] = flag(
        (),
        affects="schedule",
        metavar="N",
        help="START INCREMENT SAMPLES: grow the global batch from START by INCREMENT over SAMPLES",
    )
    step_batch_size_schedule: tuple[str, ...] = flag(
        (),
        affects="schedule",
        metavar="TOKENS:SAMPLES",
        help="global batches by the tokens after which each begins, such as 0:16 2.4B:320 (K, M, B, T); the last is "
        "--global-batch-size",
    )
    train_iters: int | None = flag(None, affects="numbers", help="length of the run in steps")
    train_samples: int | None = flag(
        None, range=Range(1, 1 << 62), affects="numbers", help="length of the run in samples"
    )
    train_tokens: int | None = flag(
        None,
        range=Range(1, 1 << 62),
        affects="numbers",
        help="length of the run in tokens on its clock (layer tokens / layers with a method)",
    )
    seed: int = flag(1234, range=SEED, affects="order", help="seed of weights, data order, dropout and kept tokens")
    exit_interval: int | None = flag(
        None, affects="start", help="save and exit after a step that is a multiple of this"
    )
    exit_duration_in_mins: float | None = flag(
        None, range=Range(0, 1e9), affects="start", help="save and exit after this many minutes"
    )
    eval_interval: int = flag(1000, affects="execution", help="steps between evaluations")
    eval_iters: int = flag(
        100,
        range=COUNT_OR_ZERO,
        affects="execution",
        help="global batches per evaluation (labelled data: always all); 0 disables evaluation",
    )
    eval_at_start: bool = flag(False, affects="execution", help="evaluate before the first step too")
    skip_train: bool = flag(False, affects="start", help="evaluate the weights of --load and end, without a step")
    manual_gc: bool = flag(
        False, affects="execution", help="collect Python's garbage every --manual-gc-interval steps, and not in between"
    )
    manual_gc_interval: int = flag(
        0, range=COUNT_OR_ZERO, affects="execution", help="steps between collections; 0 never collects"
    )
    empty_unused_memory_level: int = flag(
        0,
        range=Range(0, 1),
        affects="execution",
        help="1 returns CUDA's unused memory to the device after every step; 0 keeps it",
    )
    check_for_nan_in_loss_and_grad: bool = flag(True, affects="execution", help="continue when the loss is not finite")
    max_skipped_updates: int = flag(
        100,
        affects="execution",
        help="stop after this many updates in a row that were skipped, because gradients overflowed or were not finite",
    )
    check_for_spiky_loss: bool = flag(
        False, affects="execution", help="stop when the loss exceeds --spiky-loss-factor times its recent median"
    )
    spiky_loss_factor: float = flag(
        3.0,
        range=Range(1, 1e18, above=True),
        affects="execution",
        help="a loss above this many times its recent median is a spike for --check-for-spiky-loss",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_most_one(self, "train_iters", "train_samples", "train_tokens")
        if self.train_iters is None and self.train_samples is None and self.train_tokens is None:
            raise UserError(
                "--train-iters: required; give it, or --train-samples or --train-tokens, for the length of the run"
            )
        if self.rampup_batch_size and len(self.rampup_batch_size) != 3:
            raise UserError(
                f"--rampup-batch-size {' '.join(map(str, self.rampup_batch_size))}: it takes three values; give START "
                "INCREMENT SAMPLES"
            )
        if self.step_batch_size_schedule and self.rampup_batch_size:
            raise UserError("--step-batch-size-schedule and --rampup-batch-size: both set the batch; keep one")
        if self.manual_gc_interval and not self.manual_gc:
            raise UserError(
                f"--manual-gc-interval {self.manual_gc_interval}: it has no effect without --manual-gc; add it"
            )
        if self.skip_train and not self.eval_iters:
            raise UserError("--skip-train: --eval-iters 0 disables evaluation; drop one of the two")
        if self.eval_at_start and not self.eval_iters:
            raise UserError("--eval-at-start: --eval-iters 0 disables evaluation; drop one of the two")


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """optimizer and learning rate"""

    lr: float = flag(
        None, range=ABOVE_ZERO, affects="schedule", help="peak learning rate; required",
        required="give the peak learning rate, such as 3e-4",
    )  # fmt: skip
    min_lr: float = flag(0.0, affects="schedule", help="learning rate at the end of the decay")
    decoupled_lr: float | None = flag(
        None,
        range=ABOVE_ZERO,
        affects="schedule",
        help="peak learning rate of the embedding of tokens and of the output matrix",
    )
    decoupled_min_lr: float | None = flag(
        None, affects="schedule", help="their learning rate at the end of the decay (default: --min-lr)"
    )
    lr_decay_style: str = flag(
        "linear",
        affects="schedule",
        choices=("constant", "linear", "cosine", "inverse-square-root", "WSD"),
        help="shape of the decay",
    )
    lr_clock: str = flag(
        "layer-tokens", affects="schedule", choices=("layer-tokens", "tokens", "samples"),
        help="what the learning rate and --train-tokens count; layer tokens equal tokens in a dense run",
    )  # fmt: skip
    lr_decay_iters: int | None = flag(None, affects="schedule", help="steps to decay over (default: the whole run)")
    lr_decay_samples: int | None = flag(None, affects="schedule", help="samples to decay over")
    lr_decay_tokens: int | None = flag(
        None, range=Range(1, 1 << 62), affects="schedule", help="tokens on the run's clock to decay over"
    )
    lr_warmup_iters: int | None = flag(
        None, range=COUNT_OR_ZERO, affects="schedule", help="steps to warm up over (default: no warm-up)"
    )
    lr_warmup_samples: int | None = flag(None, range=COUNT_OR_ZERO, affects="schedule", help="samples to warm up over")
    lr_warmup_tokens: int | None = flag(
        None, range=Range(0, 1 << 62), affects="schedule", help="tokens on the run's clock to warm up over"
    )
    lr_warmup_fraction: float | None = flag(
        None, range=SHARE, affects="schedule", help="share of the decay's length to warm up over"
    )
    lr_warmup_init: float = flag(0.0, affects="schedule", help="learning rate at the start of warm-up")
    lr_wsd_decay_style: str = flag(
        "exponential",
        affects="schedule",
        choices=("linear", "cosine", "exponential", "minus_sqrt"),
        help="shape of WSD's final decay",
    )
    lr_wsd_decay_iters: int | None = flag(None, affects="schedule", help="steps of WSD's final decay")
    lr_wsd_decay_samples: int | None = flag(None, affects="schedule", help="samples of WSD's final decay")
    lr_wsd_decay_tokens: int | None = flag(
        None, affects="schedule", help="tokens on the run's clock of WSD's final decay"
    )
    override_opt_param_scheduler: bool = flag(
        False, affects="start", help="with --load, take the schedule from the flags and not from the checkpoint"
    )
    weight_decay: float = flag(0.01, affects="numbers", help="decoupled weight decay; biases and norms have none")
    adam_beta1: float = flag(0.9, range=SHARE, affects="numbers", help="Adam's first decay")
    adam_beta2: float = flag(0.999, range=SHARE, affects="numbers", help="Adam's second decay")
    adam_eps: float = flag(1e-8, range=ABOVE_ZERO, affects="numbers", help="Adam's epsilon")
    clip_grad: float = flag(1.0, affects="numbers", help="largest norm of the gradient; 0 disables clipping")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.min_lr <= self.lr:
            raise UserError(f"--min-lr {self.min_lr}: it must be between 0 and --lr {self.lr}")
        if self.decoupled_lr is None and self.decoupled_min_lr is not None:
            raise UserError(
                f"--decoupled-min-lr {self.decoupled_min_lr}: it has no effect without --decoupled-lr; add it"
            )
        if self.decoupled_lr is not None:
            lowest = self.min_lr if self.decoupled_min_lr is None else self.decoupled_min_lr
            if not 0.0 <= lowest <= self.decoupled_lr:
                raise UserError(
                    f"--decoupled-min-lr {lowest}: it must be between 0 and --decoupled-lr {self.decoupled_lr}"
                )
        if not 0.0 <= self.lr_warmup_init <= self.lr:
            raise UserError(f"--lr-warmup-init {self.lr_warmup_init}: it must be between 0 and --lr {self.lr}")
        at_most_one(self, "lr_decay_iters", "lr_decay_samples", "lr_decay_tokens")
        at_most_one(self, "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_tokens", "lr_warmup_fraction")
        at_most_one(self, "lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_tokens")
        for name in ("lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_tokens"):
            if getattr(self, name) is not None and self.lr_decay_style != "WSD":
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: it has no effect with --lr-decay-style "
                    f"{self.lr_decay_style}; drop it, or use --lr-decay-style WSD"
                )
