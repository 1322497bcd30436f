"""Saving a run, while training waits or continues.

    start    folder -> what this rank writes (rank_shard) -> a thread that writes it (writer)
    ...      files and their checksums, on every rank
    finish   outcomes exchanged -> .metadata, run.json, manifest -> name, tracker (files)

With ``asynchronous`` training continues between start and finish, and a copy is written; otherwise training waits. The
previous checkpoint stays current until the last action. A write error on any rank ends the run on every rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.ltd.checkpoint import files
from megatron.ltd.checkpoint.config import CheckpointConfig
from megatron.ltd.checkpoint.load import TrainingState, first_of_all_ranks
from megatron.ltd.checkpoint.rank_shard import RankPlan, Written
from megatron.ltd.checkpoint.writer import Outcome, Writer
from megatron.ltd.errors import RunStopped, first_line
from megatron.ltd.parallel.mesh import Mesh

_WAIT_SECONDS = 1.0


@dataclass
class _Pending:
    """A checkpoint between start and finish."""

    iteration: int
    partial: Path
    path: Path
    record: Mapping[str, Any]
    plan: RankPlan
    writer: Writer
    started: float
    waited_seconds: float = 0.0


class CheckpointSaver:
    """Saves the checkpoints of a run in ``--save``, one at a time; without that every call does nothing.

    Every rank makes every call. If a checkpoint cannot be written, for example because a disk is full, the call raises
    ``RunStopped`` on every rank.
    """

    def __init__(self, flags: CheckpointConfig, mesh: Mesh, print_line: Callable[[str], None]) -> None:
        self._folder = None if flags.save is None else Path(flags.save)
        self._mesh = mesh
        self._keep_last = flags.keep_last
        self._asynchronous = flags.async_save
        self._writers = mesh.groups.dp_cp if flags.ckpt_fully_parallel_save else None
        self._weights_only = flags.no_save_optim
        self._print_line = print_line
        self._pending: _Pending | None = None
        self._layout_checked = False

    def save(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        """Save the current ``state``. ``record`` is written to ``run.json``, with the progress added."""
        if self._folder is None:
            return
        self.finish()
        self._pending = self._start(self._folder, state, record)
        if not self._asynchronous:
            self.finish()

    def poll(self) -> None:
        """Publish the pending checkpoint if all of it is written."""
        if self._pending is not None:
            polled = time.perf_counter()
            is_written = self._is_written(0.0)
            self._pending.waited_seconds += time.perf_counter() - polled
            if is_written:
                self.finish()

    def finish(self) -> None:
        """Wait until the pending checkpoint is written, and publish it."""
        pending = self._pending
        if pending is None:
            return
        waiting_since = time.perf_counter()
        while not self._is_written(_WAIT_SECONDS):
            pass
        self._pending = None
        self._publish(pending)
        now = time.perf_counter()
        waited = pending.waited_seconds + now - waiting_since
        aside = f", training waited {waited:.1f} s" if self._asynchronous else ""
        self._print_line(f"saved {pending.path} in {now - pending.started:.1f} s{aside}")

    @contextmanager
    def finishing_saves(self) -> Iterator[None]:
        """Finish the pending checkpoint at the end of the block, or abandon it if the block raises."""
        try:
            yield
        except BaseException as error:
            pending, self._pending = self._pending, None
            if pending is None:
                raise
            pending.writer.abandon()
            if self._mesh.is_first:
                files.remove_partial(pending.partial)
            if type(error) is not RunStopped:
                raise
            raise RunStopped(
                f"{error}. The checkpoint of iteration {pending.iteration}, which was being written, is removed; "
                f"{_last_complete(pending.path.parent)}"
            ) from None
        self.finish()

    def _start(self, folder: Path, state: TrainingState, record: Mapping[str, Any]) -> _Pending:
        started = time.perf_counter()
        iteration = state.progress.iteration
        partial = self._make_partial(folder, iteration)
        plan = RankPlan(
            partial,
            state,
            writers=self._writers,
            check_layout=not self._layout_checked,
            copies=self._asynchronous,
            weights_only=self._weights_only,
        )
        self._layout_checked = True  # it does not change within a run
        pending = _Pending(
            iteration=iteration,
            partial=partial,
            path=files.checkpoint_path(folder, iteration),
            record={"progress": asdict(state.progress), **record},
            plan=plan,
            writer=Writer(plan.write_files),
            started=started,
        )
        pending.waited_seconds = time.perf_counter() - started
        return pending

    def _make_partial(self, folder: Path, iteration: int) -> Path:
        """The folder that rank 0 creates, once every rank sees it."""
        made: list[Path | None] = [None]
        failure = None
        if self._mesh.is_first:
            try:
                made = [files.start_partial(folder, iteration)]
            except OSError as error:
                failure = first_line(error)
        dist.broadcast_object_list(made, src=0)
        partial = made[0]
        if partial is not None and not partial.is_dir():
            failure = f"{partial}, created by rank 0, is not visible: --save must be one folder for all processes"
        self._stop_on_any(failure, folder, iteration)
        assert partial is not None
        return partial

    def _is_written(self, seconds: float) -> bool:
        """Whether all ranks' writers are done, after about ``seconds`` at most.

        Short waits keep a long write from exceeding the time limit of a collective.
        """
        assert self._pending is not None
        is_written = torch.tensor(int(self._pending.writer.wait(seconds)), device=self._mesh.device)
        dist.all_reduce(is_written, op=dist.ReduceOp.MIN)
        return bool(is_written)

    def _publish(self, pending: _Pending) -> None:
        """Exchange the outcomes of the writers, and give the checkpoint its name."""
        folder, outcome = pending.path.parent, pending.writer.outcome()
        try:
            self._stop_on_any(outcome.failure, folder, pending.iteration)
            outcomes: list[Outcome] | None = [outcome] * self._mesh.world_size if self._mesh.is_first else None
            dist.gather_object(outcome, outcomes, dst=0)
            failure = None if outcomes is None else self._seal(pending, [found.value for found in outcomes])
            self._stop_on_any(failure, folder, pending.iteration)
        except RunStopped:
            if self._mesh.is_first:
                files.remove_partial(pending.partial)
            raise

    def _seal(self, pending: _Pending, written: list[Written]) -> str | None:
        """On rank 0, write the files about all ranks, the name and the tracker; returns why that failed."""
        try:
            pending.plan.write_index([share.results for share in written])
            files.write_run(pending.partial, pending.record)
            manifest = {name: entry for share in written for name, entry in share.files.items()}
            manifest |= files.written_checksums(pending.partial, (files.METADATA, files.RUN))
            files.write_manifest(pending.partial, manifest)
            files.publish(pending.partial, pending.iteration)
        except OSError as error:
            return first_line(error)
        for problem in files.remove_old(pending.path.parent, self._keep_last):
            self._print_line(problem)
        return None

    def _stop_on_any(self, failure: str | None, folder: Path, iteration: int) -> None:
        """Raise ``RunStopped`` on every rank if any rank has a ``failure``."""
        if failure is not None and self._mesh.world_size > 1:
            failure = f"rank {self._mesh.rank}: {failure}"
        failure = first_of_all_ranks(failure, self._mesh)
        if failure is None:
            return
        raise RunStopped(
            f"the checkpoint of iteration {iteration} could not be written to --save {folder} ({failure}); "
            f"{_last_complete(folder)}. Free space there or correct the cause, then continue with --load"
        )


def _last_complete(folder: Path) -> str:
    current = files.read_tracker(folder)
    return "there is no earlier one" if current is None else f"{files.checkpoint_path(folder, current)} stays latest"
