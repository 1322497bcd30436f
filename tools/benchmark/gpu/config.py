"""The flags of the GPU benchmark. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO

SHAPES = ("1.3b", "350m")
CONTENDERS = {
    "local": "ours on PyTorch's kernels",
    "transformer_engine": "ours on Transformer Engine",
    "hugging_face": "Hugging Face's GPT-2",
    "hugging_face_fused": "Hugging Face's GPT-2 with a fused GELU",
    "plain": "plain PyTorch",
    "plain_compiled": "plain PyTorch with torch.compile",
    "one_sample": "ours at micro-batch 1",
    "one_sample_graphs": "ours at micro-batch 1 by CUDA graphs",
}
"""What is measured, by id: its name on screens"""
OURS = ("local", "transformer_engine")
"""Those that have methods, and are measured at the recipe's micro-batch."""
LAUNCH_BOUND = {
    "one_sample": ("--transformer-impl", "local"),
    "one_sample_graphs": ("--transformer-impl", "local", "--cuda-graph-impl", "local"),
}
"""Flags of those that are measured on the smallest model, one sample at a time: they may wait for their launches."""
AS_IN_A_RUN = (*OURS, *LAUNCH_BOUND)
"""Those that are built as in a training run."""


@dataclass(frozen=True)
class GpuConfig(Settings):
    """GPU benchmark"""

    output: str = flag(
        "runs/gpu", metavar="DIR", help="folder of gpu.json and gpu.md; rows that it has are not measured"
    )
    tiny: bool = flag(False, help="tiny models of both shapes: whether the program works, on any machine")
    shapes: tuple[str, ...] = flag(SHAPES, choices=SHAPES, help="models of GPT-3 to measure")
    contenders: tuple[str, ...] = flag(
        tuple(CONTENDERS), choices=tuple(CONTENDERS), metavar="NAME", help="what to measure, in this order"
    )
    visits: int = flag(2, help="times that every contender has its turn; each time it is built again")
    rounds: int = flag(5, help="measured rounds of a visit; each is a step of the dense model and one of the row")
    warmup_rounds: int = flag(2, range=COUNT_OR_ZERO, help="rounds before them that are not measured")
    ltd_kernels: tuple[str, ...] = flag(
        ("torch",), choices=("torch", "triton"), help="kernels of the rows with random-LTD, one row for each"
    )
    run_flags: str | None = flag(
        None,
        help='further flags of pretrain_gpt_ltd.py for our models, as --run-flags="--attention-backend flash"; with '
        "--fp8-format the peak is that of fp8",
    )
    retry_failed: bool = flag(False, help="measure rows again that have failed")
    device: str = flag("auto", choices=("auto", "cuda", "cpu"), help="where to compute")
