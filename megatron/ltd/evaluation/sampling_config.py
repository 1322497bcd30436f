"""The flags of text generation; no torch, so that a wrong flag is reported at once."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.parallel.config import ParallelConfig


@dataclass(frozen=True)
class SamplingConfig:
    """text generation"""

    load: str | None = flag(
        None,
        metavar="DIR",
        help="folder of checkpoints (--save of a run), or one of them; the newest complete one is loaded",
    )
    ckpt_step: int | None = flag(None, metavar="STEP", help="load the checkpoint of this step")
    prompt: str | None = flag(None, metavar="TEXT", help="text to continue")
    num_tokens_to_generate: int = flag(
        100, metavar="N", help="most tokens to generate; an end-of-document token ends the text earlier"
    )
    temperature: float = flag(
        1.0, help="sharpens (below 1) or flattens the distribution; 0 always takes the likeliest token"
    )
    top_k: int | None = flag(None, metavar="N", help="sample among the N likeliest tokens only (default: all)")
    top_p: float = flag(1.0, help="sample among the likeliest tokens that together have this probability only")
    seed: int = flag(1234, help="seed of the samples; the same seed gives the same text")
    device: str = flag(
        ParallelConfig.device,
        choices=("auto", "cuda", "cpu"),
        help="where to compute; auto takes CUDA if there is a device",
    )

    def __post_init__(self) -> None:
        if self.load is None:
            raise UserError("--load: required; give the folder of checkpoints, which is --save of a run")
        if not self.prompt:
            raise UserError("--prompt: required; give some text to continue")
        if self.num_tokens_to_generate < 1:
            raise UserError(
                f"--num-tokens-to-generate {self.num_tokens_to_generate}: must be at least 1; give a larger number"
            )
        if self.temperature < 0.0:
            raise UserError(
                f"--temperature {self.temperature}: must not be negative; give 0 for the likeliest token, or more"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: must be at least 1; leave it out to sample among all tokens")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"--top-p {self.top_p}: must be above 0 and at most 1; give 1 to sample among all tokens")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be in [0, 2^63); give another number")
