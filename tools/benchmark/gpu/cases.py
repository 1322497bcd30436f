"""What is measured, as data: the models of the GPT-3 recipe, and the rows of each contender as command lines of ours.

    dense              the step that all savings are relative to
    random-LTD         K = S/16, S/4 and S/2 kept tokens in all layers but the first and the last, single and in blocks

A step is what one of eight GPUs computes in a step of the recipe: as many microbatches, and the update, but without the
messages between GPUs. Dropout is off everywhere, since the models of others have none. No torch here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from itertools import product

from common.corpus import REPOSITORY

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.errors import UserError
from megatron.ltd.flags.fields import flag_fields, flag_name
from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.forecast.report import Forecast
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.run_plan import RunPlan

from .config import LAUNCH_BOUND, OURS, SHAPES, GpuConfig

KEPT_PARTS = (16, 4, 2)
"""The kept tokens K of the rows are the sequence length over these."""
BLOCK_SIZES = (1, 16)
RECIPES = {1: "random_ltd", 16: "random_ltd_blocks"}
"""Block size -> the variant of the recipe that draws such blocks"""
MICRO_BATCH_HALVINGS = 3
_RECIPE_GPUS = 8
_TINY = (
    "--num-layers 3 --hidden-size 32 --num-attention-heads 2 --seq-length 256 --max-position-embeddings 256 "
    "--vocab-size 512 --micro-batch-size 2 --global-batch-size 32 --ltd-layers 2 --ltd-min-kept-tokens 16 "
    "--ltd-growth-steps 8 --train-tokens 80000 --lr-warmup-tokens 800"
)


@dataclass(frozen=True)
class Model:
    """A model of the recipe, or a tiny one in its place."""

    name: str
    tiny: bool

    @property
    def dense(self) -> RunConfig:
        """The recipe of the dense run."""
        return _recipe(self, "dense")

    @property
    def shape(self) -> ModelShape:
        """The sizes that decide FLOPs."""
        return _planned(self, "dense").sizes.shape

    def run_plan(self, block_size: int) -> RunPlan:
        """The plan of the recipe's whole run with random-LTD."""
        return _planned(self, RECIPES[block_size]).plan

    @property
    def micro_batch_size(self) -> int:
        """Samples that the recipe computes at a time."""
        return self.dense.training.micro_batch_size

    @property
    def step_samples(self) -> int:
        """Samples of a step of one GPU."""
        return self.dense.global_batch_size(_RECIPE_GPUS) // _RECIPE_GPUS

    def flags(self, micro_batch_size: int) -> list[str]:
        """The flags of a run of this model on made-up text."""
        model = self.dense.model
        vocab_size = self.dense.tokenizer.vocab_size
        return (
            f"--num-layers {model.num_layers} --hidden-size {model.hidden_size} "
            f"--num-attention-heads {model.num_attention_heads} --seq-length {model.seq_length} "
            f"--init-method-std {model.init_method_std:g} --attention-dropout 0 --hidden-dropout 0 --bf16 "
            f"--micro-batch-size {micro_batch_size} --global-batch-size {self.step_samples} --train-iters 1 "
            f"--lr 1e-4 --eval-iters 0 --mock-data --tokenizer-type ByteTokenizer --vocab-size {vocab_size} "
            "--no-progress"
        ).split()


@cache
def _recipe(model: Model, variant: str) -> RunConfig:
    """The settings of the recipe's run."""
    folder = REPOSITORY / "examples"
    files = ("gpt3/recipe.yaml", f"gpt3_{model.name}/recipe.yaml", f"gpt3/{variant}.yaml")
    unread = ("--save", "unused", "--vocab-file", "unused", "--merge-file", "unused")
    tiny = _TINY.split() if model.tiny else ()
    return parse_run_config(["--config", *(str(folder / file) for file in files), *unread, *tiny])


@cache
def _planned(model: Model, variant: str) -> Forecast:
    return plan_ahead(_recipe(model, variant))


@dataclass(frozen=True)
class Arm:
    """One way to compute a step of ours."""

    kept_tokens: int | None = None
    """None: dense"""
    block_size: int = 1
    kernels: str = "torch"
    """What ``--ltd-kernels`` is"""

    @property
    def name(self) -> str:
        """Its name in the table."""
        if self.kept_tokens is None:
            return "dense"
        blocks = f" in blocks of {self.block_size}" if self.block_size > 1 else ""
        kernels = "" if self.kernels == "torch" else f", --ltd-kernels {self.kernels}"
        return f"random-LTD{blocks}, K = {self.kept_tokens}{kernels}"

    @property
    def flags(self) -> list[str]:
        """The flags that it adds to those of the dense run."""
        if self.kept_tokens is None:
            return []
        return (
            f"--random-ltd --ltd-schedule constant --ltd-min-kept-tokens {self.kept_tokens} "
            f"--ltd-block-size {self.block_size} --ltd-kernels {self.kernels}"
        ).split()


@dataclass(frozen=True)
class Case:
    """A contender at a micro-batch size, in one of its turns."""

    model: Model
    contender: str
    micro_batch_size: int
    visit: int
    device: str
    run_flags: str
    ltd_kernels: tuple[str, ...] = ("torch",)

    @property
    def arms(self) -> list[Arm]:
        """Its rows; dense is the first."""
        length = self.model.shape.seq_length
        if self.contender in LAUNCH_BOUND:
            return [Arm(), Arm(length // 4)]
        if self.contender not in OURS:
            return [Arm()]
        each = product(KEPT_PARTS, BLOCK_SIZES, self.ltd_kernels)
        return [Arm(), *(Arm(length // part, size, kernels) for part, size, kernels in each)]

    @property
    def num_microbatches(self) -> int:
        return self.model.step_samples // self.micro_batch_size

    def command(self, arm: Arm) -> list[str]:
        """The row as flags of pretrain_gpt_ltd.py."""
        impl = ("--transformer-impl", self.contender) if self.contender in OURS else ()
        impl = LAUNCH_BOUND.get(self.contender, impl)
        flags = self.model.flags(self.micro_batch_size)
        return [*flags, "--device", self.device, *impl, *arm.flags, *shlex.split(self.run_flags)]

    def config(self, arm: Arm) -> RunConfig:
        """The settings of the run that ``command`` starts."""
        return parse_run_config(self.command(arm))

    def forecast(self, arm: Arm) -> Forecast:
        """The plan of that run: FLOPs of its only step, and its memory."""
        return plan_ahead(self.config(arm))


def cases(config: GpuConfig, device: str) -> list[list[Case]]:
    """The turns in order. Each lists its cases by falling micro-batch size; the first one that fits counts."""
    turns = []
    for visit in range(1, config.visits + 1):
        for name in config.shapes:
            model = Model(name, config.tiny)
            sizes = [model.micro_batch_size >> halvings for halvings in range(MICRO_BATCH_HALVINGS + 1)]
            for contender in config.contenders:
                more = (visit, device, config.run_flags or "", config.ltd_kernels)
                if contender not in LAUNCH_BOUND:
                    turns.append([Case(model, contender, size, *more) for size in sizes if size])
                elif name == SHAPES[-1]:
                    turns.append([Case(model, contender, 1, *more)])
    return turns


def check_run_flags(config: GpuConfig) -> str:
    """The type of products of our models, by which their peak is chosen.

    Raises ``UserError`` if ``--run-flags`` do not exist, fit no model, or change more than how a step is computed.
    """
    try:
        words = shlex.split(config.run_flags or "")
    except ValueError as error:
        raise UserError(f"--run-flags {config.run_flags}: {error}; quote it as a shell would") from None
    run = parse_run_config([*Model("1.3b", config.tiny).flags(1), *words])
    for contender in set(config.contenders) & set(OURS):
        parse_run_config([*Model("1.3b", config.tiny).flags(1), *words, "--transformer-impl", contender])
    given = vars(build_parser().parse_args(words))
    for name, part in {**run.parts, **run.methods}.items():
        for field in flag_fields(part):
            if field.name in given and (name == "data" or field.metadata["affects"] not in ("execution", "numbers")):
                raise UserError(
                    f"--run-flags {config.run_flags}: {flag_name(type(part), field.name)} changes more than how a step "
                    "is computed, and the rows would no longer be what they are called; leave it out"
                )
    return run.precision.product_dtype
