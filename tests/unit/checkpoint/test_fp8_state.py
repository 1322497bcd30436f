"""Which scales of fp8 are taken from a checkpoint that somebody else may have made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorProperties, TensorStorageMetadata

from tests.support import world

PREFIX = "fp8.layers.1.mlp.linear_fc1"
SHAPES = {
    f"{PREFIX}.scaling_fwd.scale": (3,), f"{PREFIX}.scaling_fwd.amax_history": (4, 3),
    f"{PREFIX}.scaling_bwd.scale": (2,), f"{PREFIX}.scaling_bwd.amax_history": (4, 2),
}  # fmt: skip


def entry(shape: tuple[int, ...]) -> TensorStorageMetadata:
    return TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), [])


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 4),
        ({f"{PREFIX}.scaling_bwd.scale": BytesStorageMetadata()}, 0),  # a pickle
        ({f"{PREFIX}.scaling_fwd.amax_history": entry((1 << 60, 3))}, 0),
        ({f"{PREFIX}.scaling_fwd.amax_history": entry((8, 3))}, 0),  # of another --fp8-amax-history-len
        ({f"{PREFIX}.scaling_fwd.scale": None}, 0),
        ({"fp8.layers.2.mlp.linear_fc1.scaling_fwd.scale": entry((3,))}, 4),
    ],
)
def test_only_whole_states_of_the_right_shape(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], number: int
) -> None:
    with world():
        from megatron.ltd.checkpoint import fp8_state

        module = SimpleNamespace(config=SimpleNamespace(fp8_amax_history_len=4), weight=torch.empty(0))
        monkeypatch.setattr(fp8_state, "_scaled", lambda chunks: [(PREFIX, module)])
        found = {name: entry(shape) for name, shape in SHAPES.items()} | changes
        stored = Metadata({name: value for name, value in found.items() if value is not None})
        wanted = fp8_state.wanted_scaling([], stored).get("fp8", {})
        assert {name: tuple(tensor.global_shape) for name, tensor in wanted.items()} == dict(
            list(SHAPES.items())[:number]
        )
