"""How the processes of a planned run share the work: sizes only, no torch and no process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_name
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import layers_per_stage, layout_text, virtual_stages

_SIZES = ("tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size")


@dataclass(frozen=True)
class Layout:
    """``num_gpus`` processes, one per GPU, which divide the work as in ``parallel``."""

    parallel: ParallelConfig
    num_gpus: int
    num_layers: int

    @classmethod
    def of(cls, parallel: ParallelConfig, num_gpus: int | None, num_started: int, num_layers: int) -> Layout:
        """On ``--plan-gpus``, or else on the started processes, at least as many as hold one copy of the model.

        Raises ``UserError`` if the GPUs are not a whole number of copies.
        """
        one_copy = parallel.model_parallel_size
        num_gpus = max(one_copy, num_started) if num_gpus is None else num_gpus
        if num_gpus % one_copy:
            layout = " x ".join(f"{flag_name(ParallelConfig, name)} {getattr(parallel, name)}" for name in _SIZES)
            raise UserError(
                f"--plan-gpus {num_gpus}: one copy of the model takes {layout} = {one_copy}; give a multiple of "
                f"{one_copy}"
            )
        return cls(parallel, num_gpus, num_layers)

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model."""
        return self.num_gpus // self.parallel.model_parallel_size

    @property
    def num_chunks(self) -> int:
        """Chunks of layers that a process holds: more than 1 if the pipeline is interleaved."""
        return virtual_stages(self.parallel, self.num_layers) or 1

    def layers_of(self, stage: int) -> list[int]:
        """1-based numbers of the layers that the 0-based pipeline ``stage`` holds, chunk after chunk."""
        sizes = layers_per_stage(self.parallel, self.num_layers)
        if self.num_chunks == 1:
            first = sum(sizes[:stage])
            return list(range(first + 1, first + sizes[stage] + 1))
        size = sizes[stage] // self.num_chunks
        firsts = [(chunk * len(sizes) + stage) * size for chunk in range(self.num_chunks)]
        return [first + layer + 1 for first in firsts for layer in range(size)]

    @property
    def text(self) -> str:
        """Such as "64 GPUs: tensor 2 with sequence parallelism x data 32 with distributed optimizer"."""
        parts = layout_text(self.parallel, self.data_parallel_size, self.num_chunks)
        return f"{self.num_gpus} GPU{'s' if self.num_gpus > 1 else ''}" + (f": {parts}" if parts else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "gpus": self.num_gpus,
            "tensor": self.parallel.tensor_model_parallel_size,
            "sequence_parallel": self.parallel.sequence_parallel,
            "context": self.parallel.context_parallel_size,
            "pipeline": self.parallel.pipeline_model_parallel_size,
            "chunks": self.num_chunks,
            "data": self.data_parallel_size,
            "distributed_optimizer": self.parallel.use_distributed_optimizer,
        }
