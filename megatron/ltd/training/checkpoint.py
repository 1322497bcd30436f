"""Saving and loading a run with Megatron-Core's distributed checkpoints (format ``torch_dist``).

    model, optimizer     sharded tensors, named as in Megatron, so that another layout can load them
    opt_param_scheduler  Megatron-Core's learning-rate scheduler
    run.json             progress, schedule, identity and flags (``checkpoint_files``)

Nothing random is stored: kept tokens, data order and dropout are functions of the seed and of ``progress``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model

from megatron.ltd.errors import UserError
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

    ``record`` goes to ``run.json``, with the progress added.
    """
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
        dist_checkpointing.save(content, str(partial), content_metadata=_SHARDING)
    if mesh.is_first:
        files.write_run(partial, {"progress": asdict(state.progress), **record})
    dist.barrier()
    shared_checksums = _checksums_over_ranks(partial, mesh)
    if mesh.is_first:
        files.write_manifest(partial, shared_checksums)
        files.publish(folder, iteration)
        files.remove_old(folder, keep_last)
    dist.barrier()


def find_checkpoint(folder: Path, mesh: Mesh) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint at or before the tracker's, and a line about each damaged one that was passed over.

    Every rank calls this, and each checks its share of the files. None where the folder holds no checkpoint at all. Raises
    ``UserError`` where it holds some and none is whole.
    """
    passed_over = []
    for iteration in files.candidates(folder):
        path = files.checkpoint_path(folder, iteration)
        damage = _first_of_all_ranks(_find_damage(path, mesh), mesh)
        if damage is None:
            return path, passed_over
        passed_over.append(f"checkpoint {path} is damaged and passed over: {damage}")
    if passed_over:
        raise UserError(f"--load {folder} holds no whole checkpoint: {'; '.join(passed_over)}; restore one from a copy")
    return None, []


def check_identity(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or tokenizer, naming the first flag that differs and both values."""
    for flag_spelling, value in identity.items():
        if stored.get(flag_spelling) != value:
            raise UserError(
                f"{flag_spelling} is {value} here and {stored.get(flag_spelling)} in checkpoint {checkpoint}: use the "
                "checkpoint's value (--use-checkpoint-args takes them all), or start a run of its own"
            )


def load_checkpoint(checkpoint: Path, state: TrainingState, *, weights_only: bool) -> None:
    """Load the weights of ``checkpoint``, and unless ``weights_only`` the optimizer and the scheduler's clock, into ``state``.

    ``state.scheduler`` keeps its own schedule; the caller has settled which one holds. Every rank calls this.
    """
    model_state = _model_state(state.model)
    wanted: dict[str, Any] = {"model": model_state}
    if not weights_only:
        wanted["opt_param_scheduler"] = state.scheduler.state_dict()
        wanted["optimizer"] = state.optimizer.sharded_state_dict(model_state, is_loading=True, metadata=_SHARDING)
    with weights_only_loading(), _quiet():
        loaded = dist_checkpointing.load(wanted, str(checkpoint))
    _unwrapped(state.model).load_state_dict(loaded["model"])
    if weights_only:
        state.optimizer.reload_model_params()
        return
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.num_steps = loaded["opt_param_scheduler"]["num_steps"]
    state.scheduler.step(0)


def _unwrapped(model: DistributedDataParallel) -> torch.nn.Module:
    return unwrap_model(model)


def _model_state(model: DistributedDataParallel) -> dict[str, Any]:
    return _unwrapped(model).sharded_state_dict()  # type: ignore[operator]


def _find_damage(path: Path, mesh: Mesh) -> str | None:
    damage = files.find_damage(path, mesh.rank, mesh.world_size)
    if damage is None:
        try:
            check_metadata(path)
        except UnsafeCheckpoint as error:
            raise UserError(f"checkpoint {path} is not loaded: {error}; take one from a source that you trust") from None
    return damage


def _first_of_all_ranks(message: str | None, mesh: Mesh) -> str | None:
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


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Silence what Megatron-Core's use of torch's checkpoint interface warns about: nothing a user could change."""

    def __init__(self) -> None:
        super().__init__(action="ignore", category=FutureWarning)
