"""The flags of the soak test. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import SEED

_STEPS_PER_KILL = 20


@dataclass(frozen=True)
class SoakConfig(Settings):
    """soak test"""

    kills: int = flag(30, help="number of kills")
    seed: int = flag(1234, range=SEED, help="seed of the kills")
    async_save: bool = flag(False, help="run with --async-save")
    steps: int | None = flag(None, help=f"length of the run (default: {_STEPS_PER_KILL} steps for each kill)")
    save_interval: int = flag(3, help="steps between checkpoints")
    work_dir: str | None = flag(None, metavar="DIR", help="folder of the runs, kept (default: a temporary one)")
    output_prefix: str | None = flag(
        None,
        metavar="PATH",
        help="also write PATH.md and PATH.json; results there of the other kind of save are kept",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 2 * self.kills:
            raise UserError(
                f"--steps {self.num_steps}: must be at least {2 * self.kills} for {self.kills} kills; give more"
            )

    @property
    def num_steps(self) -> int:
        return _STEPS_PER_KILL * self.kills if self.steps is None else self.steps

    @property
    def mode(self) -> str:
        """The name of the kind of save."""
        return "asynchronous" if self.async_save else "synchronous"

    def run_flags(self, data: str, save: str) -> list[str]:
        """The flags of the run, which resumes if it can: two data-parallel processes with the distributed optimizer."""
        return (
            "--device cpu --tokenizer-type ByteTokenizer --num-layers 4 --hidden-size 128 --num-attention-heads 4 "
            "--seq-length 64 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --lr-decay-style cosine "
            "--random-ltd --ltd-min-kept-tokens 16 --ltd-granularity 16 --use-distributed-optimizer --no-progress "
            f"--ltd-growth-steps {max(1, self.num_steps // 2)} --train-iters {self.num_steps} --log-interval 10000 "
            f"--eval-iters 2 --eval-interval {max(1, self.num_steps // 6)} --train-data-path {data} "
            f"--valid-data-path {data} --save {save} --load {save} --save-interval {self.save_interval} --keep-last 3"
        ).split() + (["--async-save"] if self.async_save else [])
