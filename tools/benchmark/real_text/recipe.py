"""What is compared: the shape, the length and the variants, as flags of ``pretrain_gpt_ltd.py``.

    dense                 N steps
    random-ltd            N steps, layers 2..L-1 on fewer tokens, the same data in the same order
    ...                   the other variants of ``METHOD_VARIANTS``: N steps and the same data too
    dense-equal-flops     n steps with n * (dense FLOPs a step) = random-LTD's FLOPs, to the nearest step

Each variant warms up over the same share of its own run and falls to the end of its own run (cosine), on its own clock:
the short dense run is planned, not cut off. How long and how costly a run is comes from the product's own planner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.config import RunConfig, parse_run_config
from megatron.ltd.planner import RunPlan
from megatron.ltd.schedules import KeptTokensSchedule
from megatron.ltd.tokenizers.config import model_vocab_size
from megatron.ltd.training.clock import RunClock

DENSE, RANDOM_LTD, DENSE_EQUAL_FLOPS = "dense", "random-ltd", "dense-equal-flops"
EQUAL_FLOPS_VARIANTS = (DENSE, RANDOM_LTD, DENSE_EQUAL_FLOPS)

_PARTS = {
    DENSE: (),
    RANDOM_LTD: ("growing",),
    "random-ltd, lr by steps": ("growing", "lr by steps"),
    "random-ltd constant": ("constant",),
    "random-ltd constant, lr by steps": ("constant", "lr by steps"),
    "token-bypass": ("token bypass",),
    "token-bypass random": ("token bypass", "random"),
    "layer-drop": ("layer drop",),
    "random-ltd + layer-drop": ("growing", "layer drop"),
    DENSE_EQUAL_FLOPS: (),
}
"""What each variant switches on; the flags of each part are a recipe's."""

METHOD_VARIANTS = tuple(variant for variant in _PARTS if variant != DENSE_EQUAL_FLOPS)


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of the comparison; the defaults take about eight CPU-minutes a run on one core."""

    vocab_size: int = 1024
    num_layers: int = 6
    hidden_size: int = 128
    num_attention_heads: int = 4
    seq_length: int = 256
    init_std: float = 0.05
    batch_samples: int = 8
    train_steps: int = 1320
    lr: float = 3e-3
    min_lr: float = 3e-4
    warmup_fraction: float = 0.05
    min_kept_tokens: int = 64
    granularity: int = 16
    growth_steps: int = 880
    layer_drop_theta: float = 0.5
    save_steps: int = 220
    max_held_out_batches: int | None = None
    """At most this many global batches of held-out text; None: all of it."""

    def model_flags(self) -> list[str]:
        """The model: rotary positions, RMSNorm, SwiGLU, untied embeddings, no biases, no dropout."""
        return [
            *("--num-layers", f"{self.num_layers}", "--hidden-size", f"{self.hidden_size}"),
            *("--num-attention-heads", f"{self.num_attention_heads}", "--seq-length", f"{self.seq_length}"),
            *("--position-embedding-type", "rope", "--normalization", "RMSNorm", "--swiglu", "--disable-bias-linear"),
            *("--untie-embeddings-and-output-weights", "--init-method-std", f"{self.init_std}"),
            *("--attention-dropout", "0", "--hidden-dropout", "0"),
        ]

    def training_flags(self, steps: int) -> list[str]:
        """Batch, length and learning rate of a run of ``steps`` steps; it is evaluated once, at its end."""
        return [
            *("--device", "cpu", "--micro-batch-size", f"{self.batch_samples}"),
            *("--global-batch-size", f"{self.batch_samples}", "--train-iters", f"{steps}"),
            *("--lr", f"{self.lr}", "--min-lr", f"{self.min_lr}", "--lr-decay-style", "cosine"),
            *("--lr-warmup-fraction", f"{self.warmup_fraction}"),
            *("--weight-decay", "0.1", "--adam-beta2", "0.95"),
            *("--eval-interval", f"{steps}", "--log-interval", "50"),
        ]

    def method_flags(self, variant: str) -> list[str]:
        """What a variant switches on; nothing for the dense ones."""
        flags = {
            "growing": (
                *("--random-ltd", "--ltd-min-kept-tokens", f"{self.min_kept_tokens}"),
                *("--ltd-granularity", f"{self.granularity}", "--ltd-growth-steps", f"{self.growth_steps}"),
            ),
            "constant": (
                *("--random-ltd", "--ltd-schedule", "constant"),
                *("--ltd-min-kept-tokens", f"{self.mean_kept_tokens}"),
            ),
            "token bypass": ("--token-bypass",),
            "random": ("--token-bypass-selector", "random"),
            "layer drop": (
                *("--layer-drop", "--layer-drop-theta", f"{self.layer_drop_theta}"),
                *("--layer-drop-gamma", f"{100 / self.train_steps:.6f}"),
            ),
            "lr by steps": ("--lr-clock", "samples"),  # every step has as many samples
        }
        return [flag for part in _PARTS[variant] for flag in flags[part]]

    @property
    def mean_kept_tokens(self) -> int:
        """The growing run's mean, rounded: kept at every step they are as many layer tokens."""
        growing = KeptTokensSchedule(self.min_kept_tokens, self.seq_length, self.growth_steps, self.granularity)
        return round(growing.total_kept_tokens(self.train_steps) / self.train_steps)


FULL = Recipe()
FULL_METHODS = Recipe(train_steps=900, growth_steps=600, save_steps=150)
"""About five CPU-minutes a run: there are nine variants."""
TINY = Recipe(
    vocab_size=512,
    num_layers=3,
    hidden_size=32,
    num_attention_heads=2,
    seq_length=32,
    batch_samples=4,
    train_steps=12,
    min_kept_tokens=8,
    granularity=4,
    growth_steps=8,
    save_steps=5,
    max_held_out_batches=4,
)
"""Seconds, not minutes: shows that everything runs, says nothing about quality."""


@dataclass(frozen=True)
class Comparison:
    """Which variants, in the order of the tables, and at which size."""

    title: str
    variants: tuple[str, ...]
    full: Recipe
    seeds: tuple[int, ...]
    """Where the user names none."""


COMPARISONS = {
    "equal-flops": Comparison("Real text: random-LTD against dense", EQUAL_FLOPS_VARIANTS, FULL, (1, 2, 3)),
    "methods": Comparison("Real text: every method at equal steps", METHOD_VARIANTS, FULL_METHODS, (1, 2)),
}


@dataclass(frozen=True)
class RunData:
    """What the runs read: prefixes of indexed tokens and the tokenizer, and how many batches an evaluation takes."""

    train_prefix: Path
    valid_prefix: Path
    tokenizer_model: Path
    eval_batches: int

    def flags(self) -> list[str]:
        """As flags of ``pretrain_gpt_ltd.py``."""
        return [
            *("--train-data-path", f"{self.train_prefix}", "--valid-data-path", f"{self.valid_prefix}"),
            *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", f"{self.tokenizer_model}"),
            *("--eval-iters", f"{self.eval_batches}"),
        ]


@dataclass(frozen=True)
class RunSpec:
    """One run of the comparison: who it is, where it writes, what it will compute."""

    variant: str
    seed: int
    steps: int
    planned_flops: int
    folder: Path
    flags: tuple[str, ...]
    """Of ``script``; it saves in ``folder``, so that starting it again goes on."""
    script: str = "pretrain_gpt_ltd.py"

    @property
    def name(self) -> str:
        """For progress lines: ``"random-ltd seed 2"``."""
        return f"{self.variant} seed {self.seed}"


def plan_flags(flags: tuple[str, ...], vocab_size: int) -> RunPlan:
    """The plan of a run with these flags, as the training loop will follow it."""
    config: RunConfig = parse_run_config(flags)
    shape = config.model.shape(model_vocab_size(config.tokenizer, vocab_size, 1))
    return RunClock.build(
        shape, config.global_batch_size(1), config.build_method(), config.training, config.optimizer
    ).plan()


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where a run writes."""
    return folder / f"{re.sub(r'[^a-z]+', '-', variant)}-seed{seed}"


def plan_runs(
    recipe: Recipe, variants: tuple[str, ...], data: RunData, seeds: tuple[int, ...], folder: Path
) -> list[RunSpec]:
    """All runs, seed by seed, so that a comparison stopped half way has whole seeds."""

    def flags_of(variant: str, steps: int) -> tuple[str, ...]:
        return (*recipe.model_flags(), *data.flags(), *recipe.training_flags(steps), *recipe.method_flags(variant))

    ltd = plan_flags(flags_of(RANDOM_LTD, recipe.train_steps), recipe.vocab_size)
    dense_flops_a_step = ltd.dense_flops(1)
    equal_flops_steps = round(ltd.flops(ltd.num_steps) / dense_flops_a_step)
    runs = []
    for seed in seeds:
        for variant in variants:
            flags = flags_of(variant, equal_flops_steps if variant == DENSE_EQUAL_FLOPS else recipe.train_steps)
            plan = plan_flags(flags, recipe.vocab_size)
            place = run_folder(folder, variant, seed)
            flags += ("--seed", f"{seed}", *_save_flags(place, recipe.save_steps))
            runs.append(RunSpec(variant, seed, plan.num_steps, plan.flops(plan.num_steps), place, flags))
    return runs


def _save_flags(place: Path, save_steps: int) -> tuple[str, ...]:
    """Where a run writes, and that it goes on from what is there."""
    checkpoints = f"{place / 'checkpoints'}"
    return (
        *("--save", checkpoints, "--load", checkpoints, "--save-interval", f"{save_steps}", "--keep-last", "1"),
        *("--log-dir", f"{place}"),
    )
