"""The content of a checkpoint, and how it is loaded: Megatron-Core's distributed checkpoints (``torch_dist``).

    model, optimizer     sharded tensors, named as in Megatron, so that another layout can load them
    opt_param_scheduler  Megatron-Core's learning-rate scheduler
    method.learned       what the method has learned about each token id, if it observes
    fp8                  scales of delayed scaling (``fp8_state``)
    run.json             progress, schedule, identity and flags (``files``)

No random state is stored: kept tokens, data order and dropout are functions of the seed and of ``progress``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron.ltd.checkpoint import files
from megatron.ltd.checkpoint.fp8_state import put_scaling, wanted_scaling
from megatron.ltd.checkpoint.from_megatron_lm import check_ours
from megatron.ltd.checkpoint.optimizer_state import load_optimizer, wanted_optimizer
from megatron.ltd.checkpoint.read import EXTRA_STATE, described, read, read_plain, read_weights, refusal
from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.parallel.mesh import Mesh


@dataclass
class Progress:
    """The progress of a run since step 0."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_layer_tokens: int = 0
    consumed_tokens: int = 0
    data_first_sample: int = 0
    """The sample at which the present training data began: 0, or where ``--override-data`` brought others."""

    @classmethod
    def read(cls, stored: Mapping[str, int], seq_length: int) -> Progress:
        """That of a run.json; one of an older version does not count tokens: all samples have ``seq_length``."""
        return cls(**{"consumed_tokens": stored["consumed_samples"] * seq_length, **stored})

    def count(self, samples: int, seq_length: int, layer_tokens: int) -> None:
        """Add a step."""
        self.iteration += 1
        self.consumed_samples += samples
        self.consumed_tokens += samples * seq_length
        self.consumed_layer_tokens += layer_tokens


@dataclass
class TrainingState:
    """The objects whose state a checkpoint holds."""

    chunks: list[DistributedDataParallel]
    """The chunks of the model on this process: one, or several in an interleaved pipeline."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    progress: Progress
    learned_V: Tensor | None = None
    """What the method has learned about each token id, equal on all ranks; None unless it observes."""


def find_checkpoint(folder: Path, mesh: Mesh | None) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, not after the tracker's, and a line about each damaged one that was skipped.

    Every rank calls this, and each checks its share of the files; without a mesh this process checks all of them. None
    if the folder has no checkpoint at all. Raises ``UserError`` if it has some, but no complete one.
    """
    check_ours(folder)
    problem = files.tracker_problem(folder)
    notes = [] if problem is None else [f"{problem}: the newest complete checkpoint is loaded"]
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
        notes.append(f"{damages[-1]}; it is skipped")
    if damages or problem is not None:
        found = "; ".join(damages) or problem
        raise UserError(
            f"--load {folder}: has no complete checkpoint ({found}); restore one from a copy, or use another folder"
        )
    return None, []


def load_checkpoint(
    checkpoint: Path,
    state: TrainingState,
    *,
    weights_only: bool,
    stored_in_low_precision: bool,
    initial_clock: int | None = None,
    stored_learned: bool = False,
    new_weights: tuple[str, ...] = (),
    readers: ProcessGroup | None = None,
) -> None:
    """Load the weights of ``checkpoint``, and unless ``weights_only`` the optimizer's state, into ``state``.

    ``state.scheduler`` and the optimizer keep their own settings. The scheduler's clock is set to ``initial_clock``, or
    if that is None to the checkpoint's (0 with ``weights_only``). ``stored_in_low_precision``: the checkpoint's run
    used bf16 or fp16. ``stored_learned``: its method observed, and ``state.learned_V`` is loaded unless
    ``weights_only``. ``new_weights``, with ``weights_only``: parameters with these prefixes are not loaded and keep
    their initial values. ``readers``: see ``read``. Raises ``UserError`` if the checkpoint holds anything but tensors
    and plain values. Every rank calls this.
    """
    assert weights_only or not new_weights, "the optimizer's state belongs to all weights"
    weights = {name: _asked_for(part, new_weights) for name, part in model_state(state.chunks).items()}
    wanted: dict[str, Any] = dict(weights)
    if not weights_only:
        if stored_learned:
            wanted |= learned_state(state.learned_V)
        wanted |= wanted_scaling(state.chunks, described(checkpoint))
        wanted["optimizer"] = wanted_optimizer(
            state.optimizer, weights, stored_in_low_precision=stored_in_low_precision
        )
    loaded = read(checkpoint, wanted, readers)
    for name, chunk in _named_chunks(state.chunks):
        _put(chunk, weights[name], loaded[name], new_weights)
    if weights_only:
        state.optimizer.reload_model_params()
        state.scheduler.step(initial_clock or 0)
        return
    put_scaling(state.chunks, loaded.get("fp8", {}))
    plain = read_plain(checkpoint)
    stored = {
        "step": _stored_count(checkpoint, plain, "optimizer", "step"),
        "grad_scaler": _stored_scaler(checkpoint, plain["optimizer"].get("grad_scaler")),
    }
    # Megatron-Core leaves out what is empty: padded buckets can leave a process without any numbers of its own.
    load_optimizer(state.optimizer, {"tensors": {}, **loaded.get("optimizer", {}), **stored})
    state.learned_V = loaded.get("method", {}).get("learned", state.learned_V)
    stored_clock = _stored_count(checkpoint, plain, "opt_param_scheduler", "num_steps")
    state.scheduler.num_steps = stored_clock if initial_clock is None else initial_clock
    state.scheduler.step(0)


def _stored_count(checkpoint: Path, plain: Mapping[str, Any], part: str, name: str) -> int:
    """A count among the plain values of a checkpoint. Raises ``UserError`` for anything else in its place."""
    values = plain.get(part)
    count = values.get(name) if isinstance(values, dict) else None
    if type(count) is not int or not 0 <= count < 1 << 63:
        raise refusal(checkpoint, f"{name} of its {part} is not a count")
    return count


def _stored_scaler(checkpoint: Path, scaler: Any) -> dict[str, Any] | None:
    """The state of Megatron-Core's loss scaler; empty for a constant one. Raises ``UserError`` for anything else."""
    if not scaler:
        return None
    match scaler:
        case {"scale": Tensor() as scale, "growth_tracker": int(), "hysteresis_tracker": int()}:
            if scale.shape == (1,) and scale.dtype == torch.float32 and 0 < scale.item() < math.inf:
                return scaler
    raise refusal(checkpoint, "the scale of its loss scaler is not above 0")


def load_imported(imported: ImportedModel, state: TrainingState) -> None:
    """Load the weights of a Hugging Face model into ``state``, and nothing else. Each rank reads its share."""
    imported.copy_into(chunk for _, chunk in _named_chunks(state.chunks))
    state.optimizer.reload_model_params()


def load_megatron_lm(checkpoint: Path, state: TrainingState, readers: ProcessGroup | None = None) -> None:
    """Load the weights of a checkpoint of Megatron-LM into ``state``, and nothing else. Every rank calls this.

    ``readers``: see ``read``.
    """
    weights = model_state(state.chunks)
    loaded = read_weights(checkpoint, weights, readers)
    for name, chunk in _named_chunks(state.chunks):
        _put(chunk, weights[name], loaded[name])
    state.optimizer.reload_model_params()


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights of ``checkpoint``, and nothing else, into ``model`` as ``build_chunks`` makes them, unwrapped.

    Raises ``UserError`` if the checkpoint holds anything but tensors and plain values. Every rank calls this.
    """
    weights = _sharded(model)
    _put(model, weights, read(checkpoint, {"model": weights})["model"])


def _is_kept(key: str, new_weights: tuple[str, ...]) -> bool:
    """Whether a part of a module's state is not loaded: new weights and extra states (``_sharded``)."""
    return key.startswith(new_weights) or key.endswith(EXTRA_STATE)


def _asked_for(state: Mapping[str, Any], new_weights: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not _is_kept(key, new_weights)}


def _put(
    module: torch.nn.Module, asked_for: Iterable[str], loaded: Mapping[str, Any], new_weights: tuple[str, ...] = ()
) -> None:
    """Load what was requested into a module, and nothing else that a checkpoint may hold under other names."""
    own = {key: value for key, value in module.state_dict().items() if _is_kept(key, new_weights)}
    module.load_state_dict(own | {key: loaded[key] for key in asked_for})


def _named_chunks(chunks: list[DistributedDataParallel]) -> list[tuple[str, torch.nn.Module]]:
    """The unwrapped modules, by their part of the checkpoint; names inside are those of the whole model."""
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    return [(name, unwrap_model(chunk)) for name, chunk in zip(names, chunks, strict=True)]


def model_state(chunks: list[DistributedDataParallel]) -> dict[str, Any]:
    """The weights of this process, sharded as Megatron-Core stores them."""
    return {name: _sharded(chunk) for name, chunk in _named_chunks(chunks)}


def _sharded(module: torch.nn.Module) -> dict[str, Any]:
    """The sharded tensors of a module, without extra states.

    Extra states are those of fp8, which ``fp8_state`` stores as tensors, and otherwise empty. Modules with and without
    Transformer Engine have different ones, and Transformer Engine unpickles its own without restriction.
    """
    return _asked_for(module.sharded_state_dict())  # type: ignore[operator]


def learned_state(learned_V: Tensor | None) -> dict[str, Any]:
    """What a method has learned, which every rank has and the first one writes; empty if there is nothing."""
    if learned_V is None:
        return {}
    replica = dist.get_rank()
    return {"method": {"learned": ShardedTensor.from_rank_offsets("method.learned", learned_V, replica_id=replica)}}


def first_of_all_ranks(message: str | None, mesh: Mesh) -> str | None:
    """The message of the lowest rank that has one, on all ranks."""
    messages: list[str | None] = [None] * mesh.world_size
    dist.all_gather_object(messages, message)
    return next((found for found in messages if found is not None), None)
