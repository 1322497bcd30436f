"""The whole of a run's settings, one frozen object: ``RunConfig``.

Each part is a dataclass beside the code it steers and checks its own values; here are the rules that hold between
parts. No torch here: a wrong flag is answered before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags import FlagParser, add_flags, flag_name, flag_values, from_record, read_flags
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Entry as MethodEntry
from megatron.ltd.methods.base import Method, ModelFacts, build_method
from megatron.ltd.models.config import PrecisionConfig, RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import check_model, sequence_runs
from megatron.ltd.planning.config import PlanConfig
from megatron.ltd.tasks import GPT
from megatron.ltd.tasks.base import Entry
from megatron.ltd.training.checkpoint_files import candidates, stored_config
from megatron.ltd.training.config import CheckpointConfig, LoggingConfig, OptimizerConfig, TrainingConfig

TASK_PARTS = ("model", "tokenizer", "data", "scores")
"""What each task has its own flags for."""
PARTS: dict[str, type] = {
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "precision": PrecisionConfig,
    "recompute": RecomputeConfig,
    "parallel": ParallelConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that the command line says, in parts; ``model``, ``tokenizer`` and ``data`` are of the task's classes.

    ``tokenizer`` is None for a task that reads no text, ``scores`` for one whose model no other tasks are put to.
    """

    task: Entry
    model: Any
    tokenizer: Any
    data: Any
    scores: Any
    training: TrainingConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    recompute: RecomputeConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    methods: Mapping[str, Any]
    planning: PlanConfig = PlanConfig()
    """What is asked of a plan: no part of the run, and not among ``parts``."""

    def __post_init__(self) -> None:
        check_model(self.parallel, self.model)
        if self.task.check is not None:
            self.task.check(self)
        self.build_method()

    @property
    def parts(self) -> dict[str, Any]:
        """Every part but the methods, by name."""
        return {name: getattr(self, name) for name in (*self.task.parts, *PARTS)}

    def build_method(self, special_ids: tuple[int, ...] = ()) -> Method:
        """The method that the flags switch on. Raises ``UserError`` where it does not fit the model.

        ``special_ids`` are the tokenizer's; a plan does not depend on them.
        """
        facts = ModelFacts(
            num_layers=self.model.num_layers,
            seq_length=self.model.seq_length,
            seed=self.training.seed,
            sequence_runs=sequence_runs(self.parallel),
            seq_length_name=self.model.seq_length_name,
            special_ids=special_ids,
        )
        return build_method(METHODS, self.methods, facts)

    @property
    def growth_flag(self) -> str:
        """The flag of the growth length of the method that is on and has one."""
        _, entry = self._growing_entry
        return flag_name(entry.config_class, str(entry.growth))

    def growing_over(self, growth_steps: int) -> RunConfig:
        """The same run whose kept tokens grow over so many steps; a method that has a growth is on."""
        name, entry = self._growing_entry
        changed = dataclasses.replace(self.methods[name], **{str(entry.growth): growth_steps})
        return dataclasses.replace(self, methods={**self.methods, name: changed})

    @property
    def _growing_entry(self) -> tuple[str, MethodEntry]:
        return next((name, entry) for name, entry in METHODS.items() if entry.growth and self.methods[name].enabled)

    def global_batch_size(self, data_parallel_size: int) -> int:
        """Samples a step, checked against the layout. Raises ``UserError``."""
        per_round = self.training.micro_batch_size * data_parallel_size
        size = self.training.global_batch_size or per_round
        if size % per_round:
            raise UserError(
                f"--global-batch-size {size} is not a multiple of --micro-batch-size "
                f"{self.training.micro_batch_size} x "
                f"{data_parallel_size} data-parallel processes = {per_round}: use one that is"
            )
        return size

    def shared_flags(self) -> dict[str, Any]:
        """The flags that every process must be given alike, by spelling: all but those that affect nothing."""
        configs = [*self.parts.values(), *self.methods.values()]
        return {
            spelling: value
            for config in configs
            for spelling, value in flag_values(config, but_affecting="nothing").items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, for metrics.jsonl and checkpoints."""
        parts: dict[str, Any] = {name: dataclasses.asdict(part) for name, part in self.parts.items()}
        return parts | {"methods": {name: dataclasses.asdict(config) for name, config in self.methods.items()}}


def flag_classes(task: Entry) -> list[type]:
    """The classes of all flags of the command that trains ``task``: its parts, those of every run, and every method."""
    return [*task.parts.values(), *PARTS.values(), *(entry.config_class for entry in METHODS.values()), PlanConfig]


def build_parser(task: Entry = GPT) -> FlagParser:
    """The command line of ``task``."""
    parser = FlagParser(task.description)
    for config_class in flag_classes(task):
        add_flags(parser, config_class)
    return parser


def parse_run_config(arguments: Sequence[str] | None, task: Entry = GPT) -> RunConfig:
    """Read the command line. Raises ``UserError`` for values that no run can have.

    With ``--use-checkpoint-args`` the model's shape and the tokenizer of the checkpoint, or of the Hugging Face folder,
    replace the defaults; a flag that was typed still wins.
    """
    namespace = build_parser(task).parse_args(arguments)
    planning = read_flags(namespace, PlanConfig)
    _leave_open(namespace, planning)
    _settle_pretrained(namespace)
    if getattr(namespace, "use_checkpoint_args", False) and hasattr(namespace, "load"):
        folder = Path(namespace.load)
        stored = described_flags(folder) if is_hugging_face(folder) else stored_config(folder)
        for part in {"model", "tokenizer"} & task.parts.keys():
            if stored.get(part):
                from_record(stored[part], task.parts[part], f"--load {folder}", part)
            for name, value in _as_flags(stored.get(part) or {}).items():
                if not hasattr(namespace, name):
                    setattr(namespace, name, value)
    classes = {**dict.fromkeys(TASK_PARTS), **task.parts, **PARTS}
    parts: dict[str, Any] = {
        name: None if config_class is None else read_flags(namespace, config_class)
        for name, config_class in classes.items()
    }
    methods: dict[str, Any] = {name: read_flags(namespace, entry.config_class) for name, entry in METHODS.items()}
    return RunConfig(task=task, **parts, methods=methods, planning=planning)


def _leave_open(flags: argparse.Namespace, planning: PlanConfig) -> None:
    """Put the least in place of what a plan is asked to find, which must not be given.

    Raises ``UserError`` where it is given, or where there is nothing to find.
    """
    if planning.plan_gpu_hours is not None:
        question = f"--plan-gpu-hours {planning.plan_gpu_hours:g}"
        for name in ("train_iters", "train_samples", "train_tokens"):
            if hasattr(flags, name):
                typed = f"--{name.replace('_', '-')} {getattr(flags, name)}"
                raise UserError(f"{question} finds the length of the run, and {typed} gives one: keep one")
        flags.train_iters = 1
    if planning.plan_target_saving is not None:
        question = f"--plan-target-saving {planning.plan_target_saving:g}"
        on = [entry for entry in METHODS.values() if read_flags(flags, entry.config_class).enabled and entry.growth]
        if not on:
            able = " or ".join(entry.flag for entry in METHODS.values() if entry.growth)
            raise UserError(f"{question} finds the growth of a method, and none that has one is on: add {able}")
        growth = str(on[0].growth)
        if hasattr(flags, growth):
            typed = f"{flag_name(on[0].config_class, growth)} {getattr(flags, growth)}"
            raise UserError(f"{question} finds the growth, and {typed} gives one: keep one")
        if not read_flags(flags, on[0].config_class).grows:
            raise UserError(
                f"{question} finds the growth, and the schedule of {on[0].flag} does not grow: use one that does"
            )
        setattr(flags, growth, 1)


def _settle_pretrained(flags: argparse.Namespace) -> None:
    """Where ``--load`` holds no checkpoint yet, take ``--pretrained-checkpoint`` in its place, for its weights alone.

    Nodes that see the folder differently then have other flags, and are told so when they meet.
    """
    if not hasattr(flags, "pretrained_checkpoint"):
        return
    if not hasattr(flags, "load") or hasattr(flags, "finetune"):
        what = "with --finetune" if hasattr(flags, "finetune") else "without --load"
        raise UserError(
            f"--pretrained-checkpoint {flags.pretrained_checkpoint} is given {what}: give it with the folder of --save "
            "as --load, and without --finetune"
        )
    if not candidates(Path(flags.load)):
        flags.load, flags.finetune = flags.pretrained_checkpoint, True


def _as_flags(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a checkpoint's settings as flags that mean the same beside another ``--seq-length``."""
    if stored.get("max_position_embeddings", 0) is None:  # as many as its samples had tokens
        return {**stored, "max_position_embeddings": stored["seq_length"]}
    return dict(stored)
