"""A run that is ready to train: its parts, its microbatches, and how it is saved."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint.load import Progress, TrainingState
from megatron.ltd.checkpoint.save import CheckpointSaver
from megatron.ltd.data.microbatches import Microbatch, SampleSource, microbatches
from megatron.ltd.methods.base import Method
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.training.log import RunLog
from megatron.ltd.training.optimizer import base_learning_rate, whole_weights
from megatron.ltd.training.signals import ExitRequests
from megatron.ltd.training.step import Stepper
from megatron.ltd.training.throughput import Throughput
from megatron.ltd.training.upkeep import Upkeep

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
    from megatron.ltd.workloads.base import Workload


@dataclass
class Run:
    """What ``build.build_run`` makes and ``loop.train`` drives."""

    config: RunConfig
    mesh: Mesh
    workload: Workload
    method: Method
    clock: RunClock
    plan: RunPlan
    state: TrainingState
    stepper: Stepper
    train_data: SampleSource
    eval_data: Mapping[str, tuple[SampleSource, int]]
    """What is evaluated, see ``Workload.eval_samples``, and how many of its samples."""
    log: RunLog
    saver: CheckpointSaver
    exits: ExitRequests
    upkeep: Upkeep
    throughput: Throughput
    record: Mapping[str, Any]
    """What ``run.json`` of every checkpoint holds besides the progress."""
    changes_schedule: bool
    """Whether method, batch or learning rate are others than in the steps that a checkpoint has done."""

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        return base_learning_rate(self.state.optimizer)

    def microbatches_of(self, samples: int) -> int:
        """Microbatches of each rank for ``samples`` over all ranks."""
        return samples // (self.config.training.micro_batch_size * self.mesh.data_parallel_size)

    def batches(self, data: SampleSource, consumed_samples: int) -> Generator[Microbatch, None, None]:
        """This rank's microbatches of ``data`` from ``consumed_samples`` on. The caller closes the generator."""
        mesh = self.mesh
        shard = SequenceShard.of(mesh.context_parallel_rank, mesh.context_parallel_size)
        return microbatches(
            data,
            self.workload.collate(shard, whole_tokens=self.method.observes),
            consumed_samples=consumed_samples,
            micro_batch_size=self.config.training.micro_batch_size,
            data_parallel_rank=mesh.data_parallel_rank,
            data_parallel_size=mesh.data_parallel_size,
            num_workers=self.config.data.workers_on(mesh.device.type),
            pin_memory=mesh.device.type == "cuda",
        )

    def save(self) -> None:
        """Save the current state, if the run has a ``--save`` folder."""
        with whole_weights(self.state.chunks):
            self.saver.save(self.state, self.record)
