"""All settings of a run in one frozen object: ``RunConfig``.

Each part is a dataclass beside the code that it configures, and checks its own values; the rules between parts are
here. Nothing here imports torch, so that a wrong flag is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint.config import CheckpointConfig
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_fields, flag_name, flag_values, settings_lines
from megatron.ltd.forecast.config import PlanConfig
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Dense, Method, ModelFacts, build_method
from megatron.ltd.methods.base import Entry as MethodEntry
from megatron.ltd.models.config import check_loss_fusion
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.models.fp8_sizes import check_layers
from megatron.ltd.models.graph_rules import check_graphs
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import check_model, check_recompute, sequence_parts
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.training.config import LoggingConfig

if TYPE_CHECKING:
    from megatron.ltd.workloads.base import Workload

WORKLOAD_PARTS = ("model", "tokenizer", "data", "scores")
"""Parts for which each workload has its own flags."""
_ROUNDS = 20
"""More than needed: a step more in the length changes it by a third of a step at most."""
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
class Entry:
    """One workload on the command line."""

    id: str
    """Its name in files."""
    name: str
    """Its name on screens."""
    description: str
    parts: Mapping[str, type]
    """The dataclasses of its own flags: "model" and "data", and "tokenizer" if it reads text."""
    open: Callable[[RunConfig], Workload]
    """Check tokenizer and data. Raises ``UserError``."""
    sizes: Callable[[RunConfig], ModelSizes]
    """The sizes of the model, from the flags alone if they are enough, without data. Raises ``UserError``."""
    check: Callable[[RunConfig], None] | None = None
    """Refuse combinations of flags that it does not support, before reading anything. Raises ``UserError``."""
    weights: str | None = None
    """The id of the workload whose weights it starts from, if that is another one."""


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run in parts; the classes of ``model``, ``tokenizer`` and ``data`` are the workload's.

    ``tokenizer`` is None for a workload that reads no text, and ``scores`` for one whose model is not scored on
    lm-eval's tasks.
    """

    workload: Entry
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
    """Questions to a plan. They are not part of the run, and not among ``parts``."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The flags that were given, by field, before the settings of a checkpoint were taken."""
    typed: Collection[str] = ()
    """The fields of those that stand on the command line, not in a file."""
    notes: tuple[str, ...] = ()
    """Lines about flags that were accepted, renamed or completed, for the start of the run."""

    def __post_init__(self) -> None:
        check_model(self.parallel, self.model)
        check_recompute(self.recompute, self.parallel, self.model.num_layers)
        check_loss_fusion(self.model, self.precision)
        check_layers(self.model, self.precision, self.parallel)
        check_graphs(self)
        if self.workload.check is not None:
            self.workload.check(self)
        self.build_method()

    @property
    def parts(self) -> dict[str, Any]:
        """Every part but the methods, by name."""
        return {name: getattr(self, name) for name in (*self.workload.parts, *PARTS)}

    def build_method(self, special_ids: tuple[int, ...] = ()) -> Method:
        """The method that the flags switch on. Raises ``UserError`` if it does not fit the model.

        ``special_ids`` are the tokenizer's; a plan does not depend on them.
        """
        facts = self._facts(special_ids)
        if any(entry.follows_length(self.methods[name]) for name, entry in METHODS.items()):
            facts = dataclasses.replace(facts, num_steps=self._num_steps(facts))
        return build_method(METHODS, self.methods, facts)

    def _facts(self, special_ids: tuple[int, ...]) -> ModelFacts:
        return ModelFacts(
            num_layers=self.model.num_layers,
            seq_length=self.model.seq_length,
            seed=self.training.seed,
            sequence_parts=sequence_parts(self.parallel),
            seq_length_name=self.model.seq_length_name,
            special_ids=special_ids,
            kernels="triton" if self.model.ltd_kernels == "triton" else "torch",
        )

    def _num_steps(self, facts: ModelFacts) -> int | None:
        """Steps of the run, for defaults that are a share of them; None if the flags do not say.

        On the clock of layer tokens a method that drops more takes more steps, so that the default and the length
        depend on each other: from the dense run's steps a few rounds settle both, the same for the same flags.
        """
        training, batch = self.training, self.training.global_batch_size
        if self.planning.plan_gpu_hours is not None:
            return None
        if training.train_iters is not None or batch is None:
            return training.train_iters

        def steps_of(method: Method) -> int:
            clock = RunClock.build(self.model.shape(1), batch, method, training, self.optimizer)
            return clock.plan().num_steps

        steps = steps_of(Dense(facts))
        for _ in range(_ROUNDS):
            before = steps
            steps = steps_of(build_method(METHODS, self.methods, dataclasses.replace(facts, num_steps=steps)))
            if steps == before:
                break
        return steps

    @property
    def growth_flag(self) -> str:
        """The flag of the growth length of the method that is on and has one."""
        _, entry = self._growing_entry
        return flag_name(entry.config_class, str(entry.growth))

    def growing_over(self, growth_steps: int) -> RunConfig:
        """The same run with this growth length; a method that has one is on."""
        name, entry = self._growing_entry
        changed = dataclasses.replace(self.methods[name], **{str(entry.growth): growth_steps})
        return dataclasses.replace(self, methods={**self.methods, name: changed})

    @property
    def _growing_entry(self) -> tuple[str, MethodEntry]:
        return next((name, entry) for name, entry in METHODS.items() if entry.growth and self.methods[name].enabled)

    @property
    def warnings(self) -> list[str]:
        """Lines about typed flags that have no effect; a file may serve runs with and without a method."""
        lines = []
        for name, entry in METHODS.items():
            typed = [field.name for field in flag_fields(entry.config_class) if field.name in self.typed]
            if typed and not self.methods[name].enabled:
                flags = ", ".join(flag_name(entry.config_class, field) for field in typed)
                lines.append(f"warning: {flags}: no effect without {entry.flag}; add it, or leave them out")
        return lines

    def global_batch_size(self, data_parallel_size: int) -> int:
        """Samples per step, checked against the layout. Raises ``UserError``."""
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
        """The flags that must be the same on all processes, by spelling: all but those that affect nothing."""
        configs = [*self.parts.values(), *self.methods.values()]
        return {
            spelling: value
            for config in configs
            for spelling, value in flag_values(config, but_affecting="nothing").items()
        }

    def settings_file(self) -> str:
        """The settings as YAML for ``--config``, which makes the same run again: what was given, the rest as comments.

        What was not given stays open, since some rules depend on it: a checkpoint's shape, or the length of a run.
        """
        configs = [*self.parts.values(), *self.methods.values()]
        sections = ["\n".join(settings_lines(config, self.given)) for config in configs]
        head = f"# The settings of a run ({self.workload.id}). --config FILE reads them; other values are comments."
        return "\n\n".join([head, *sections]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, for metrics.jsonl and checkpoints."""
        parts: dict[str, Any] = {name: dataclasses.asdict(part) for name, part in self.parts.items()}
        return parts | {"methods": {name: dataclasses.asdict(config) for name, config in self.methods.items()}}


def flag_classes(workload: Entry) -> list[type]:
    """All flags of the command that trains ``workload``: its own, those of every run, and every method's."""
    return [*workload.parts.values(), *PARTS.values(), *(entry.config_class for entry in METHODS.values()), PlanConfig]
