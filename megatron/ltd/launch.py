"""Start a run, or print its plan: what each training script does after reading its flags. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.checkpoint.files import how_to_continue

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
from megatron.ltd.forecast.forecast import say_plan


def launch(config: RunConfig) -> None:
    """Build the run, train it to its end or until it is asked to stop, and print how it ended; or print its plan."""
    if config.planning.plan:
        for note in config.notes:
            print(note)
        say_plan(config)
        return
    scores = config.scores is not None and bool(config.scores.eval_tasks)
    if scores:
        from megatron.ltd.evaluation.lm_eval.during_training import build_scorer, find_tasks

        tasks = find_tasks(config.scores, config.parallel)
    from megatron.ltd.parallel.contact import keeping_contact
    from megatron.ltd.parallel.deterministic import deterministic_mode
    from megatron.ltd.parallel.mesh import initialize

    with (
        deterministic_mode(enabled=config.parallel.deterministic_mode),
        initialize(config.parallel, agree_on=config.shared_flags()) as mesh,
        keeping_contact(mesh, lambda: how_to_continue(config.checkpoint.save)),
    ):
        from megatron.ltd.training.build import build_run
        from megatron.ltd.training.header import print_header
        from megatron.ltd.training.loop import train
        from megatron.ltd.training.signals import INTERRUPTED

        run = build_run(config, mesh)
        try:
            print_header(run)
            reason = train(run, build_scorer(run, tasks) if scores else None)
            run.log.print_line("done" if reason is None else f"left after step {run.progress.iteration}: {reason}")
        finally:
            run.log.close()
    if reason == INTERRUPTED:
        raise KeyboardInterrupt
