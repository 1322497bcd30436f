"""Jobs of one rank that inspect a run with the layers of Transformer Engine; see ``engine``."""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron.ltd.launch import launch
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from tests.support import parse


def modules_of_layers(command: Sequence[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The classes of each layer's core attention, of its first linear layer and of its last one; and what would be slow
    on a GPU.
    """
    from megatron.ltd.models.kernels import slow_kernels

    config = parse(command)
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        run.log.close()
        layers = run.state.chunks[0].module.decoder.layers
        of_layers = [
            (layer.self_attention.core_attention, layer.self_attention.linear_qkv, layer.mlp.linear_fc2)
            for layer in layers
        ]
        names = [tuple(type(module).__name__ for module in modules) for modules in of_layers]
        return names, slow_kernels(run.state.chunks, torch.device("cuda", 0))


def printed_by(command: Sequence[str]) -> str:
    """The output of a run."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        launch(parse(command))
    return output.getvalue()


class _Trap:
    """An object whose unpickling raises an error."""

    def __reduce__(self) -> Any:
        return exec, ("raise AssertionError('an extra state was unpickled')",)


def run_with_fp8_state(command: Sequence[str], folder: str) -> list[str]:
    """Save with modules that have extra states, whose unpickling fails; load, save, and return the stored names."""
    base = importlib.import_module("transformer_engine.pytorch.module.base")
    state = torch.frombuffer(bytearray(pickle.dumps(_Trap())), dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()):
        with mock.patch.object(base.WithExtraState, "get_extra_state", lambda module: state):
            launch(parse([*command, "--save", folder, "--exit-interval", "1"]))
        launch(parse([*command, "--save", folder, "--load", folder, "--exit-interval", "2"]))
    folders = [Path(folder) / f"iter_000000{step}" for step in (1, 2)]
    return sorted({name for one in folders for name in FileSystemReader(one).read_metadata().state_dict_metadata})


def doctors_findings() -> list[tuple[str, str]]:
    """State and text of each finding of the doctor's check of a layer."""
    from megatron.ltd.doctor import layer

    return [(finding.state, finding.text) for finding in layer.check()]


def scales_after(command: Sequence[str]) -> dict[str, list[float]]:
    """The scales and histories of fp8 of this rank's layers, after the run."""
    from megatron.ltd.checkpoint.fp8_state import scaling_state
    from megatron.ltd.training.loop import train

    config = parse(command)
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        with contextlib.redirect_stdout(io.StringIO()):
            train(run)
        run.log.close()
        state = scaling_state(run.state.chunks)["fp8"]
        return {key: tensor.data.flatten().tolist() for key, tensor in state.items()}


def refusal_of(command: Sequence[str], problem: str | None) -> str:
    """The error of a run on a GPU with this ``problem`` with fp8; None for a version that lacks the recipe."""
    from megatron.ltd.errors import UserError

    recipes = importlib.import_module("transformer_engine.common.recipe")
    manager = importlib.import_module("transformer_engine.pytorch.fp8").FP8GlobalStateManager
    if problem is None:
        del recipes.Float8BlockScaling
    else:
        manager.problem = problem
    config = parse(command)
    with initialize(config.parallel) as mesh:
        try:
            build_run(config, mesh)
        except UserError as error:
            return str(error)
    raise AssertionError("the run was not refused")


def scored_in_training(command: Sequence[str]) -> tuple[list[int], bool]:
    """The shape of hidden states of a text of five tokens between two steps in fp8, and whether fp8 is on again."""
    from megatron.core.utils import unwrap_model

    from megatron.ltd.evaluation.causal_lm import CausalLM
    from megatron.ltd.training.loop import train

    config = parse(command)
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        (chunk,) = run.state.chunks
        model = CausalLM(unwrap_model(chunk), run.config.model, 128, mesh)
        with contextlib.redirect_stdout(io.StringIO()):
            train(run)
        with model.evaluating():
            hidden_SBH = model.hidden_states(torch.tensor([[1, 2, 3, 4, 5]]))
        run.log.close()
        return list(hidden_SBH.shape), bool(model.model.decoder.config.fp8)
