"""The flags of text generation; no torch, so that a wrong flag is reported at once."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, Range
from megatron.ltd.parallel.config import ParallelConfig


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """text generation"""

    load: str = flag(
        None,
        metavar="DIR",
        help="folder of checkpoints (--save of a run), or one of them; the newest complete one is loaded",
        required="give the folder of checkpoints, which is --save of a run",
    )
    ckpt_step: int | None = flag(None, range=COUNT_OR_ZERO, metavar="STEP", help="load the checkpoint of this step")
    prompt: str = flag(None, metavar="TEXT", help="text to continue", required="give some text to continue")
    num_tokens_to_generate: int = flag(
        100, metavar="N", help="most tokens to generate; an end-of-document token ends the text earlier"
    )
    temperature: float = flag(
        1.0,
        range=Range(0, 1e6),
        help="sharpens (below 1) or flattens the distribution; 0 always takes the likeliest token",
    )
    top_k: int | None = flag(None, metavar="N", help="sample among the N likeliest tokens only (default: all)")
    top_p: float = flag(
        1.0,
        range=Range(0, 1, above=True),
        help="sample among the likeliest tokens that together have this probability only",
    )
    seed: int = flag(1234, range=Range(0, (1 << 63) - 1), help="seed of the samples; the same seed gives the same text")
    device: str = flag(
        ParallelConfig.device,
        choices=("auto", "cuda", "cpu"),
        help="where to compute; auto takes CUDA if there is a device",
    )
