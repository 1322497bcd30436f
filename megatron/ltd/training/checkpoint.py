"""What a checkpoint of a run holds, and how it is loaded: Megatron-Core's distributed checkpoints (``torch_dist``).

    model, optimizer     sharded tensors, named as in Megatron, so that another layout can load them
    opt_param_scheduler  Megatron-Core's learning-rate scheduler
    method.learned       what the method has learned of each token id, where it learns
    run.json             progress, schedule, identity and flags (``checkpoint_files``)

Nothing random is stored: kept tokens, data order and dropout are functions of the seed and of ``progress``.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch import Tensor
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.api import CheckpointException

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.training import checkpoint_files as files
from megatron.ltd.training.optimizer_state import load_optimizer, wanted_optimizer
from megatron.ltd.training.safe_metadata import UnsafeCheckpoint, read_metadata, tensors_only


@dataclass
class Progress:
    """Where a run is: what it has done since step 0."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_layer_tokens: int = 0


@dataclass
class TrainingState:
    """What a checkpoint holds, as live objects."""

    chunks: list[DistributedDataParallel]
    """The model's parts on this process: one, or several in an interleaved pipeline."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    progress: Progress
    learned_V: Tensor | None = None
    """What the method has learned of each token id, equal on all ranks; None where it learns nothing."""


def find_checkpoint(folder: Path, mesh: Mesh | None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint at or before the tracker's, and a line about each damaged one that was passed over.

    Every rank calls this, and each checks its share of the files; without a mesh this process checks all of them. None
    where the folder holds no checkpoint at all. Raises ``UserError`` where it holds some and none is whole.
    """
    complaint = files.tracker_complaint(folder)
    notes = [] if complaint is None else [f"{complaint}: the newest whole checkpoint is taken"]
    damages = []
    for iteration in files.candidates(folder):
        path = files.checkpoint_path(folder, iteration)
        if mesh is None:
            damage = files.find_damage(path)
        else:
            damage = first_of_all_ranks(files.find_damage(path, mesh.rank, mesh.world_size), mesh)
        if damage is None:
            described(path)
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
    checkpoint: Path,
    state: TrainingState,
    *,
    weights_only: bool,
    stored_in_half: bool,
    clock_stands_at: int | None = None,
    stored_learned: bool = False,
    new_weights: tuple[str, ...] = (),
) -> None:
    """Load the weights of ``checkpoint``, and unless ``weights_only`` the optimizer's state, into ``state``.

    ``state.scheduler`` and the optimizer keep their own settings; the caller has settled which ones hold. The
    scheduler's clock is set to ``clock_stands_at``, or where that is None to the checkpoint's (0 with
    ``weights_only``). ``stored_in_half``: the checkpoint is of a run in bf16 or fp16. ``stored_learned``: its method
    had learned something, with which ``state.learned_V`` goes on unless ``weights_only``. ``new_weights``, with
    ``weights_only``: parameters whose names begin so are not loaded, and stay as they were drawn. Raises ``UserError``
    where the checkpoint holds anything but tensors and plain values. Every rank calls this.
    """
    assert weights_only or not new_weights, "the optimizer's state belongs to all weights"
    weights = {name: _asked_for(part, new_weights) for name, part in model_state(state.chunks).items()}
    wanted: dict[str, Any] = dict(weights)
    if not weights_only:
        if stored_learned:
            wanted |= learned_state(state.learned_V)
        wanted["opt_param_scheduler"] = state.scheduler.state_dict()
        wanted["optimizer"] = wanted_optimizer(state.optimizer, weights, stored_in_half=stored_in_half)
    loaded = _read(checkpoint, wanted)
    for name, chunk in _named_chunks(state.chunks):
        _put(chunk, weights[name], loaded[name], new_weights)
    if weights_only:
        state.optimizer.reload_model_params()
        state.scheduler.step(clock_stands_at or 0)
        return
    load_optimizer(state.optimizer, loaded["optimizer"])
    state.learned_V = loaded.get("method", {}).get("learned", state.learned_V)
    stored_clock = loaded["opt_param_scheduler"]["num_steps"]
    state.scheduler.num_steps = stored_clock if clock_stands_at is None else clock_stands_at
    state.scheduler.step(0)


def load_imported(imported: ImportedModel, state: TrainingState) -> None:
    """Take the weights of another program's model into ``state``; all else starts anew. Each rank reads its share."""
    imported.copy_into(chunk for _, chunk in _named_chunks(state.chunks))
    state.optimizer.reload_model_params()


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights of ``checkpoint``, and nothing else, into ``model`` as ``build_chunks`` makes them, unwrapped.

    Raises ``UserError`` where the checkpoint holds anything but tensors and plain values. Every rank calls this.
    """
    weights = _asked_for(model.sharded_state_dict())  # type: ignore[operator]
    _put(model, weights, _read(checkpoint, {"model": weights})["model"])


def _stays(key: str, new_weights: tuple[str, ...]) -> bool:
    """Whether a part of a module's state is left as it is: new weights, and what is no tensor.

    Transformer Engine unpickles the latter without restriction. Other than in FP8, which we do not train in, it is
    empty.
    """
    return key.startswith(new_weights) or key.endswith("_extra_state")


def _asked_for(state: Mapping[str, Any], new_weights: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not _stays(key, new_weights)}


def _put(
    module: torch.nn.Module, asked_for: Iterable[str], loaded: Mapping[str, Any], new_weights: tuple[str, ...] = ()
) -> None:
    """Load what was asked for into a module, and no more: a checkpoint can hold things under other names."""
    own = {key: value for key, value in module.state_dict().items() if _stays(key, new_weights)}
    module.load_state_dict(own | {key: loaded[key] for key in asked_for})


def _read(checkpoint: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What ``wanted`` describes, out of ``checkpoint``. Raises ``UserError`` for more than tensors and plain values."""
    with tensors_only(described(checkpoint)), quiet_core():
        try:
            return dist_checkpointing.load(wanted, str(checkpoint))
        except (pickle.UnpicklingError, CheckpointException) as error:
            if not _is_refusal(error):
                raise
            raise UserError(
                f"checkpoint {checkpoint} is not loaded: it holds something other than tensors and plain values "
                f"({_refused(error)}); take one from a source that you trust"
            ) from None


def _is_refusal(error: BaseException) -> bool:
    """Whether torch's ``weights_only`` has refused something, on any rank; a disk may have failed instead."""
    failures = getattr(error, "failures", {0: (error, None)})
    return any(isinstance(failure, pickle.UnpicklingError) for failure, _ in failures.values())


def _refused(error: BaseException) -> str:
    """The global that torch's ``weights_only`` would not load, out of its long explanation."""
    found = re.search(r"(?:GLOBAL|[Gg]lobal:?) ([\w.]+)", str(error))
    return found.group(1) if found else type(error).__name__


def _named_chunks(chunks: list[DistributedDataParallel]) -> list[tuple[str, torch.nn.Module]]:
    """The modules behind the wrappers, by their part of the checkpoint; names within are the whole model's."""
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    return [(name, unwrap_model(chunk)) for name, chunk in zip(names, chunks, strict=True)]


def model_state(chunks: list[DistributedDataParallel]) -> dict[str, Any]:
    """The weights of this process, sharded as Megatron-Core stores them."""
    return {name: chunk.sharded_state_dict() for name, chunk in _named_chunks(chunks)}  # type: ignore[operator]


def learned_state(learned_V: Tensor | None) -> dict[str, Any]:
    """What a method has learned, which every rank holds and the first one writes; nothing where it learns nothing."""
    if learned_V is None:
        return {}
    replica = dist.get_rank()
    return {"method": {"learned": ShardedTensor.from_rank_offsets("method.learned", learned_V, replica_id=replica)}}


def described(checkpoint: Path) -> Metadata:
    """Which tensors ``checkpoint`` holds, and where. Raises ``UserError`` where its description holds more, or less."""
    try:
        return read_metadata(checkpoint)
    except UnsafeCheckpoint as error:
        raise UserError(
            f"checkpoint {checkpoint} is not loaded: {error}; take one from a source that you trust"
        ) from None


def first_of_all_ranks(message: str | None, mesh: Mesh) -> str | None:
    """One rank's message for all of them: the lowest rank's that has one."""
    messages: list[str | None] = [None] * mesh.world_size
    dist.all_gather_object(messages, message)
    return next((found for found in messages if found is not None), None)


@contextmanager
def quiet_core() -> Iterator[None]:
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
