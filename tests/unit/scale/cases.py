"""The ranks of large runs that the tests of this folder examine."""

from __future__ import annotations

from dataclasses import dataclass

_COMMON = (
    "--device cpu --bf16 --vocab-size 51200 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --train-iters 100 "
    "--use-distributed-optimizer"
)
_GROWING = "--random-ltd --ltd-growth-steps 80 --ltd-block-size 16"


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
    f"{_GROWING} --num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --micro-batch-size 8 "
    "--global-batch-size 512"
)
_MIDDLE = (
    f"{_GROWING} --num-layers 40 --hidden-size 5120 --num-attention-heads 40 --seq-length 4096 --micro-batch-size 1 "
    "--global-batch-size 512 --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --tensor-model-parallel-size 4 --sequence-parallel "
    "--context-parallel-size 2 --pipeline-model-parallel-size 4 --ltd-strata 8 --ltd-granularity 128"
)
_LARGE = (
    f"{_GROWING} --num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 --micro-batch-size 1 "
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

_SHORT = (
    "--num-layers 6 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --micro-batch-size 4 "
    "--global-batch-size 512 --num-workers 0"
)
_DROPS = "--random-ltd --ltd-schedule constant --ltd-min-kept-tokens 512"
_SPAN = "--token-bypass --token-bypass-selector random --token-bypass-schedule constant --token-bypass-kept-tokens 512"
_FULL = "--recompute-granularity full --recompute-method"
_LLAMA = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear"
_SPLIT = "--tensor-model-parallel-size 4 --sequence-parallel --ltd-strata 8"


def _tracked(world_size: int, command: str) -> Case:
    return Case(world_size, 1, f"{_SHORT} {command}", steps=(0,))


TRACKED = {
    "dense": _tracked(2, ""),
    "random-LTD": _tracked(2, _DROPS),
    "random-LTD, selective": _tracked(2, f"{_DROPS} --recompute-granularity selective --recompute-modules mlp"),
    "random-LTD, full uniform": _tracked(2, f"{_DROPS} {_FULL} uniform --recompute-num-layers 2"),
    "random-LTD, full block": _tracked(2, f"{_DROPS} {_FULL} block --recompute-num-layers 3"),
    "Llama, tensor and sequence": _tracked(8, f"{_DROPS} {_LLAMA} {_SPLIT}"),
    "Llama, tensor, sequence and context": _tracked(16, f"{_DROPS} {_LLAMA} {_SPLIT} --context-parallel-size 2"),
    "random span": _tracked(2, _SPAN),
    "random span, full uniform": _tracked(2, f"{_SPAN} {_FULL} uniform --recompute-num-layers 1"),
}
"""Ranks of short models with one stage, whose memory torch's tracker counts at one number of kept tokens."""

GRAPHED = {
    "tensor and sequence, graphs": _tracked(
        8, f"{_DROPS} --position-embedding-type rope {_SPLIT} --device auto --cuda-graph-impl local"
    )
}
"""The same, with layers as CUDA graphs."""
