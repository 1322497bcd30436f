"""How a run is laid out over processes and devices: flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag


@dataclass(frozen=True)
class ParallelConfig:
    """parallelism and device"""

    device: str = flag(
        "auto", choices=("auto", "cuda", "cpu"), help="where to compute; auto takes CUDA where there is one"
    )
    tensor_model_parallel_size: int = flag(1, help="processes that share each layer")
    sequence_parallel: bool = flag(False, help="split norms and dropout over the tensor-parallel processes too")
    pipeline_model_parallel_size: int = flag(1, help="pipeline stages")
    use_distributed_optimizer: bool = flag(False, help="shard the optimizer's state over data-parallel processes")
    overlap_grad_reduce: bool = flag(False, help="reduce gradients while the backward pass runs")
    overlap_param_gather: bool = flag(False, help="gather updated weights while the forward pass runs")
    distributed_timeout_minutes: int = flag(10, help="minutes a collective may take before the run ends")

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise UserError(
                "--sequence-parallel is on with --tensor-model-parallel-size 1: it splits over tensor-parallel "
                "processes; drop it or raise --tensor-model-parallel-size"
            )
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            raise UserError(
                "--overlap-param-gather is on: it needs --use-distributed-optimizer and --overlap-grad-reduce; add them"
            )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model in ``world_size`` processes. Raises ``UserError`` if the layout does not divide them."""
        if world_size % self.model_parallel_size:
            raise UserError(
                f"{world_size} processes were started, but --tensor-model-parallel-size "
                f"{self.tensor_model_parallel_size} x "
                f"--pipeline-model-parallel-size {self.pipeline_model_parallel_size} = {self.model_parallel_size} "
                "does not "
                f"divide them: start a multiple of {self.model_parallel_size}"
            )
        return world_size // self.model_parallel_size
