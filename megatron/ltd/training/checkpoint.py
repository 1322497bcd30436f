"""Saving and loading a run with Megatron-Core's distributed checkpoints (format ``torch_dist``).

    model, optimizer     sharded tensors, named as in Megatron, so that another layout can load them
    opt_param_scheduler  Megatron-Core's learning-rate scheduler
    run.json             progress, schedule, identity and flags (``checkpoint_files``)

Nothing random is stored: kept tokens, data order and dropout are functions of the seed and of ``progress``.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import re
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException

from megatron.ltd.errors import RunStopped, UserError
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.training import checkpoint_files as files
from megatron.ltd.training.safe_metadata import UnsafeCheckpoint, check_metadata, weights_only_loading

_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}  # loads under any parallel layout


@dataclass
class Progress:
    """Where a run is: what it has done since step 0."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_layer_tokens: int = 0


@dataclass
class TrainingState:
    """What a checkpoint holds, as live objects."""

    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    progress: Progress


def save_checkpoint(
    folder: Path, state: TrainingState, record: Mapping[str, Any], mesh: Mesh, keep_last: int | None
) -> None:
    """Write a whole checkpoint of ``state``; until its last step the one before stays current. Every rank calls this.

    ``record`` goes to ``run.json``, with the progress added. Raises ``RunStopped`` where it cannot be written, as on a
    full disk.
    """
    iteration = state.progress.iteration
    try:
        _write_checkpoint(folder, state, record, mesh)
        if mesh.is_first:
            files.publish(folder, iteration)
    except (OSError, RuntimeError, CheckpointException) as error:
        if mesh.is_first:
            files.remove_partial(folder, iteration)
        current = files.read_tracker(folder)
        last = (
            "there is none before it" if current is None else f"{files.checkpoint_path(folder, current)} stays the last"
        )
        raise RunStopped(
            f"the checkpoint of iteration {iteration} could not be written to --save {folder} ({_one_line(error)}); "
            f"{last}. Free space there or mend what failed, then continue with --load"
        ) from error
    if mesh.is_first:
        files.remove_old(folder, keep_last)
    dist.barrier()


def _write_checkpoint(folder: Path, state: TrainingState, record: Mapping[str, Any], mesh: Mesh) -> None:
    """Everything of a checkpoint but its name."""
    iteration = state.progress.iteration
    if mesh.is_first:
        files.start_partial(folder, iteration)
    dist.barrier()
    partial = files.partial_path(folder, iteration)
    model_state = _model_state(state.model)
    content = {
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "model": model_state,
        "optimizer": state.optimizer.sharded_state_dict(model_state, metadata=_SHARDING),
        "opt_param_scheduler": state.scheduler.state_dict(),
    }
    with _quiet():
        _start_helper()
        dist_checkpointing.save(content, str(partial), content_metadata=_SHARDING)
    if mesh.is_first:
        files.write_run(partial, {"progress": asdict(state.progress), **record})
    dist.barrier()
    shared_checksums = _checksums_over_ranks(partial, mesh)
    if mesh.is_first:
        files.write_manifest(partial, shared_checksums)


def _start_helper() -> None:
    """Start the process that Megatron-Core collects its writers' results in, deaf to SIGTERM; once in this process.

    Schedulers send SIGTERM to every process of a job: the helper must outlive it, or the save that it asks for fails.
    """
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_IGN))
        filesystem_async._results_queue = manager.Queue()


def _one_line(error: BaseException) -> str:
    """What went wrong on the first rank that failed, without the traceback that torch puts in its message."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def find_checkpoint(folder: Path, mesh: Mesh) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint at or before the tracker's, and a line about each damaged one that was passed over.

    Every rank calls this, and each checks its share of the files. None where the folder holds no checkpoint at all.
    Raises ``UserError`` where it holds some and none is whole.
    """
    complaint = files.tracker_complaint(folder)
    notes = [] if complaint is None else [f"{complaint}: the newest whole checkpoint is taken"]
    damages = []
    for iteration in files.candidates(folder):
        path = files.checkpoint_path(folder, iteration)
        damage = first_of_all_ranks(files.find_damage(path, mesh.rank, mesh.world_size), mesh)
        if damage is None:
            _refuse_unsafe(path)
            return path, notes
        damages.append(f"checkpoint {path} is damaged: {damage}")
        notes.append(f"{damages[-1]}; it is passed over")
    if damages or complaint is not None:
        found = "; ".join(damages) or complaint
        raise UserError(
            f"--load {folder} holds no whole checkpoint ({found}): restore one from a copy, or use another folder"
        )
    return None, []


def load_checkpoint(
    checkpoint: Path, state: TrainingState, *, weights_only: bool, clock_stands_at: int | None = None
) -> None:
    """Load the weights of ``checkpoint``, and unless ``weights_only`` the optimizer's state, into ``state``.

    ``state.scheduler`` and the optimizer keep their own settings; the caller has settled which ones hold. The
    scheduler's clock is set to ``clock_stands_at``, or where that is None to the checkpoint's (0 with
    ``weights_only``). Raises ``UserError`` where the checkpoint holds anything but tensors and plain values. Every
    rank calls this.
    """
    model_state = _model_state(state.model)
    wanted: dict[str, Any] = {"model": model_state}
    if not weights_only:
        wanted["opt_param_scheduler"] = state.scheduler.state_dict()
        wanted["optimizer"] = state.optimizer.sharded_state_dict(model_state, is_loading=True, metadata=_SHARDING)
    loaded = _read(checkpoint, wanted)
    _unwrapped(state.model).load_state_dict(loaded["model"])
    if weights_only:
        state.optimizer.reload_model_params()
        state.scheduler.step(clock_stands_at or 0)
        return
    # A group's learning rates, weight decay, betas and epsilon come from the flags; only its state is the checkpoint's.
    settings = [{name: group[name] for name in group if name not in ("params", "step")} for group in _groups(state)]
    state.optimizer.load_state_dict(loaded["optimizer"])
    for group, own in zip(_groups(state), settings, strict=True):
        group.update(own)
    stored_clock = loaded["opt_param_scheduler"]["num_steps"]
    state.scheduler.num_steps = stored_clock if clock_stands_at is None else clock_stands_at
    state.scheduler.step(0)


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights of ``checkpoint``, and nothing else, into ``model`` as ``build_gpt`` makes it, unwrapped.

    Raises ``UserError`` where the checkpoint holds anything but tensors and plain values. Every rank calls this.
    """
    model.load_state_dict(_read(checkpoint, {"model": model.sharded_state_dict()})["model"])  # type: ignore[operator]


def _read(checkpoint: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What ``wanted`` describes, out of ``checkpoint``. Raises ``UserError`` for more than tensors and plain values."""
    with weights_only_loading(), _quiet():
        try:
            return dist_checkpointing.load(wanted, str(checkpoint))
        except (pickle.UnpicklingError, CheckpointException) as error:
            raise UserError(
                f"checkpoint {checkpoint} is not loaded: it holds something other than tensors and plain values "
                f"({_refused(error)}); take one from a source that you trust"
            ) from None


def _groups(state: TrainingState) -> list[dict[str, Any]]:
    return state.optimizer.param_groups


def _refused(error: BaseException) -> str:
    """The global that torch's ``weights_only`` would not load, out of its long explanation."""
    found = re.search(r"(?:GLOBAL|[Gg]lobal:?) ([\w.]+)", str(error))
    return found.group(1) if found else type(error).__name__


def _unwrapped(model: DistributedDataParallel) -> torch.nn.Module:
    return unwrap_model(model)


def _model_state(model: DistributedDataParallel) -> dict[str, Any]:
    return _unwrapped(model).sharded_state_dict()  # type: ignore[operator]


def _refuse_unsafe(path: Path) -> None:
    try:
        check_metadata(path)
    except UnsafeCheckpoint as error:
        raise UserError(f"checkpoint {path} is not loaded: {error}; take one from a source that you trust") from None


def first_of_all_ranks(message: str | None, mesh: Mesh) -> str | None:
    """One rank's message for all of them: the lowest rank's that has one."""
    messages: list[str | None] = [None] * mesh.world_size
    dist.all_gather_object(messages, message)
    return next((found for found in messages if found is not None), None)


def _checksums_over_ranks(folder: Path, mesh: Mesh) -> dict[str, dict[str, int]]:
    """Checksums of all files in ``folder``, each rank reading its share."""
    names = files.file_names(folder)
    shares: list[dict[str, dict[str, int]]] = [{}] * mesh.world_size
    dist.all_gather_object(shares, files.checksums(folder, names[mesh.rank :: mesh.world_size]))
    return {name: entry for share in shares for name, entry in share.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Megatron-Core's use of torch's checkpoint interface warns about: nothing a user could change.

    Its log lines too: what fails is also raised.
    """
    logger = logging.getLogger("megatron.core.dist_checkpointing")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
