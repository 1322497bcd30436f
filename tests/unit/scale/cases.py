"""The ranks of large runs that the tests of this folder examine."""

from __future__ import annotations

from dataclasses import dataclass

_COMMON = (
    "--device cpu --bf16 --vocab-size 51200 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --train-iters 100 "
    "--random-ltd --ltd-growth-steps 80 --ltd-block-size 16 --use-distributed-optimizer"
)


@dataclass(frozen=True)
class Case:
    """One rank of a run of ``world_size`` processes, at three numbers of kept tokens."""

    world_size: int
    rank: int
    command: str
    steps: tuple[int, ...] = (0, 40, 99)

    @property
    def flags(self) -> list[str]:
        """The flags of ``pretrain_gpt_ltd.py``."""
        return f"{_COMMON} {self.command}".split()


_SMALL = (
    "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --micro-batch-size 8 "
    "--global-batch-size 512"
)
_MIDDLE = (
    "--num-layers 40 --hidden-size 5120 --num-attention-heads 40 --seq-length 4096 --micro-batch-size 1 "
    "--global-batch-size 512 --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --tensor-model-parallel-size 4 --sequence-parallel "
    "--context-parallel-size 2 --pipeline-model-parallel-size 4 --ltd-strata 8 --ltd-granularity 128"
)
_LARGE = (
    "--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 --micro-batch-size 1 "
    "--global-batch-size 1536 --tensor-model-parallel-size 8 --sequence-parallel --pipeline-model-parallel-size 16 "
    "--num-layers-per-virtual-pipeline-stage 3 --ltd-strata 8 --ltd-granularity 128"
)

CASES = {
    "1.3B on 64": Case(64, 37, _SMALL),
    "13B on 256, first stage": Case(256, 5, _MIDDLE),
    "13B on 256, last stage": Case(256, 255, f"{_MIDDLE} --bias-swiglu-fusion"),
    "175B on 1024, first stage": Case(1024, 11, _LARGE),
    "175B on 1024, last stage": Case(1024, 1023, _LARGE),
}
