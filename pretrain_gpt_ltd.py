#!/usr/bin/env python3
"""Pretrain a GPT on Megatron-Core: dense, with random-LTD, TokenBypass or progressive layer dropping.

    python pretrain_gpt_ltd.py --data-path PREFIX --tokenizer-type ... --num-layers ... --random-ltd ...
    torchrun --nproc-per-node 8 pretrain_gpt_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. See README.md and examples/quickstart/.
"""

from __future__ import annotations

from megatron.ltd.config import RunConfig, parse_run_config
from megatron.ltd.errors import run_command
from megatron.ltd.training.checkpoint_files import how_to_continue


def main() -> None:
    pretrain(parse_run_config(None))


def pretrain(config: RunConfig) -> None:
    """Build the run, train it to its end or until it is asked to leave, and say how it ended."""
    from megatron.ltd.parallel.contact import keeping_contact
    from megatron.ltd.parallel.mesh import initialize

    with (
        initialize(config.parallel, agree_on=config.flag_values()) as mesh,
        keeping_contact(mesh, lambda: how_to_continue(config.checkpoint.save)),
    ):
        from megatron.ltd.training.header import say_header
        from megatron.ltd.training.loop import train
        from megatron.ltd.training.run import build_run
        from megatron.ltd.training.signals import INTERRUPTED

        run = build_run(config, mesh)
        try:
            say_header(run)
            reason = train(run)
            run.log.say("done" if reason is None else f"left after step {run.progress.iteration}: {reason}")
        finally:
            run.log.close()
    if reason == INTERRUPTED:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
