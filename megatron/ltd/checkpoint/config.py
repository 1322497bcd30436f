"""Where checkpoints are saved and loaded: flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO

_NEEDS_LOAD = (
    *("ckpt_fully_parallel_load", "no_load_optim", "finetune", "override_data", "use_checkpoint_args"),
    "exit_on_missing_checkpoint",
)


@dataclass(frozen=True)
class CheckpointConfig(Settings):
    """checkpoints"""

    save: str | None = flag(None, affects="start", metavar="DIR", help="folder to save checkpoints in")
    load: str | None = flag(
        None,
        affects="start",
        metavar="DIR",
        help="folder to continue from, or one checkpoint in it; with --finetune to start from, which may be Hugging "
        "Face's (GPT-2, Llama) or Megatron-LM's",
    )
    ckpt_step: int | None = flag(
        None,
        range=COUNT_OR_ZERO,
        affects="start",
        metavar="STEP",
        help="load the checkpoint of this step (default: the newest complete one)",
    )
    pretrained_checkpoint: str | None = flag(
        None,
        affects="start",
        metavar="DIR",
        help="start from the weights in this folder while --load holds no checkpoint: one command then starts and "
        "continues a finetuning run",
    )
    save_interval: int | None = flag(
        None, affects="start", help="steps between checkpoints (default: save at the end only)"
    )
    keep_last: int | None = flag(
        None, affects="start", help="checkpoints to keep; older ones are removed after a save (default: all)"
    )
    async_save: bool = flag(
        False, affects="start", help="continue training while a checkpoint is written from a copy in memory"
    )
    no_save_optim: bool = flag(
        False, affects="start", help="save the weights alone, from which no run continues exactly"
    )
    ckpt_fully_parallel_save: bool = flag(
        True,
        affects="start",
        name="no-ckpt-fully-parallel-save",
        help="let the first data-parallel process write all weights, in place of sharing them out",
    )
    ckpt_fully_parallel_load: bool = flag(
        False,
        affects="start",
        help="let data-parallel processes read a share of the weights each, and send it to the others: for a file "
        "system that many nodes would read at once",
    )
    no_load_optim: bool = flag(False, affects="start", help="load only the weights, and start with a new optimizer")
    finetune: bool = flag(False, affects="start", help="load only the weights, and start at step 0")
    override_data: bool = flag(
        False,
        affects="start",
        help="continue with the training data, --seq-length and --seed of these flags where they differ from the "
        "checkpoint's: from their first sample on, with all else kept",
    )
    exit_on_missing_checkpoint: bool = flag(
        False, affects="start", help="end if --load has no checkpoint, also where it is the folder of --save"
    )
    use_checkpoint_args: bool = flag(
        False, affects="start", help="take the model's shape and the tokenizer from --load"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_last is not None and self.save is None:
            raise UserError(f"--keep-last {self.keep_last}: it needs --save; give the folder to save in")
        if self.save_interval is not None and self.save is None:
            raise UserError(f"--save-interval {self.save_interval}: it needs --save; give the folder to save in")
        if self.async_save and self.save is None:
            raise UserError("--async-save: it needs --save; give the folder to save in")
        if self.no_save_optim and self.save is None:
            raise UserError("--no-save-optim: it needs --save; give the folder to save in")
        if self.ckpt_step is not None and self.load is None:
            raise UserError(f"--ckpt-step {self.ckpt_step}: it needs --load; give the folder to load from")
        for name in _NEEDS_LOAD:
            if getattr(self, name) and self.load is None:
                raise UserError(f"--{name.replace('_', '-')}: it needs --load; give the folder to load from")
        if self.override_data and self.finetune:
            raise UserError("--override-data and --finetune: a run that starts at step 0 takes any data; keep one")
