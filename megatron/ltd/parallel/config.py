"""Parallel layout, processes and devices of a run: flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, Range

PIPELINE_FLAGS = (
    "num_layers_per_virtual_pipeline_stage",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
)


@dataclass(frozen=True)
class ParallelConfig(Settings):
    """parallelism and device"""

    device: str = flag(
        "auto",
        affects="execution",
        choices=("auto", "cuda", "cpu"),
        help="device to compute on; auto uses CUDA if a device is available",
    )
    deterministic_mode: bool = flag(
        False, affects="execution", help="slower kernels on GPUs that give the same bits every time, or an error"
    )
    tensor_model_parallel_size: int = flag(
        1, range=Range(1, 1 << 16), affects="execution", help="processes that share each layer"
    )
    sequence_parallel: bool = flag(
        False, affects="execution", help="split norms and dropout over the tensor-parallel processes too"
    )
    context_parallel_size: int = flag(
        1, range=Range(1, 1 << 16), affects="execution", help="processes that share each sample's sequence"
    )
    pipeline_model_parallel_size: int = flag(1, range=Range(1, 1 << 12), affects="execution", help="pipeline stages")
    num_layers_per_virtual_pipeline_stage: int | None = flag(
        None,
        affects="execution",
        help="interleave the pipeline: layers of each of the chunks of a process",
    )
    decoder_first_pipeline_num_layers: int | None = flag(
        None, affects="execution", help="layers of the first stage; the stages without a number share the rest equally"
    )
    decoder_last_pipeline_num_layers: int | None = flag(None, affects="execution", help="layers of the last stage")
    use_cpu_initialization: bool = flag(
        False,
        affects="numbers",
        help="draw initial weights on the CPU, which makes them the same under every tensor-parallel layout",
    )
    use_distributed_optimizer: bool = flag(
        False, affects="execution", help="shard the optimizer's state over data-parallel processes"
    )
    overlap_grad_reduce: bool = flag(False, affects="execution", help="reduce gradients while the backward pass runs")
    ddp_bucket_size: int | None = flag(
        None,
        affects="execution",
        help="parameters per bucket of overlapped reduces and gathers (default: 40 million or more)",
    )
    ddp_num_buckets: int | None = flag(None, affects="execution", help="number of these buckets, instead of their size")
    ddp_pad_buckets_for_high_nccl_busbw: bool = flag(
        False, affects="execution", help="pad the distributed optimizer's buckets to sizes that NCCL moves faster"
    )
    overlap_param_gather: bool = flag(
        False, affects="execution", help="gather updated weights while the forward pass runs"
    )
    distributed_timeout_minutes: float = flag(
        10.0,
        range=Range(0, 1e6, above=True),
        affects="execution",
        help="minutes that a collective may take before the run ends",
    )
    check_routing_every: int = flag(
        1000,
        range=COUNT_OR_ZERO,
        affects="execution",
        help="steps between checks that all processes keep the same tokens; 0 checks at the start only",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ddp_bucket_size", "ddp_num_buckets"):
            value = getattr(self, name)
            if value is not None and not self.overlap_grad_reduce:
                flag_and_value = f"--{name.replace('_', '-')} {value}"
                raise UserError(f"{flag_and_value}: it needs --overlap-grad-reduce; add that or drop it")
        if self.ddp_bucket_size is not None and self.ddp_num_buckets is not None:
            raise UserError("--ddp-bucket-size and --ddp-num-buckets: each decides the other; drop one")
        if self.ddp_pad_buckets_for_high_nccl_busbw and not self.use_distributed_optimizer:
            raise UserError("--ddp-pad-buckets-for-high-nccl-busbw: it needs --use-distributed-optimizer; add it")
        if self.pipeline_model_parallel_size == 1:
            for name in PIPELINE_FLAGS:
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name.replace('_', '-')} {getattr(self, name)}: it has no effect with "
                        "--pipeline-model-parallel-size 1; drop it, or raise --pipeline-model-parallel-size"
                    )
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise UserError(
                "--sequence-parallel: it has no effect with --tensor-model-parallel-size 1; drop it, or raise "
                "--tensor-model-parallel-size"
            )
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            raise UserError(
                "--overlap-param-gather: it needs --use-distributed-optimizer and --overlap-grad-reduce; add them"
            )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model, and share each sample."""
        return self.tensor_model_parallel_size * self.context_parallel_size * self.pipeline_model_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model in ``world_size`` processes. Raises ``UserError`` if the layout does not divide them."""
        if world_size % self.model_parallel_size:
            sizes = " x ".join(
                f"--{name.replace('_', '-')} {getattr(self, name)}"
                for name in ("tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size")
                if name != "context_parallel_size" or self.context_parallel_size > 1
            )
            raise UserError(
                f"{world_size} process{'es were' if world_size > 1 else ' was'} started, but {sizes} = "
                f"{self.model_parallel_size} does not divide them: start a multiple of {self.model_parallel_size}"
            )
        return world_size // self.model_parallel_size
