"""Safetensors files that are written one tensor at a time, read back by the safetensors library."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from megatron.ltd.hugging_face.config_file import INDEX, WEIGHTS
from megatron.ltd.hugging_face.llama import LLAMA
from megatron.ltd.hugging_face.shards import write_weights
from tests.support import small_model

MODEL = small_model(
    position_embedding_type="rope", normalization="RMSNorm", swiglu=True, group_query_attention=True,
    num_query_groups=2, add_bias_linear=False,
)  # fmt: skip
TABLE = LLAMA.counterparts(MODEL, 33)


def drawn(name: str) -> Tensor:
    """A random tensor that depends on the name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(TABLE[name].shape, generator=generator)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Every tensor under its Hugging Face name."""
    return {
        LLAMA.full_name(their_name): tensor
        for name, found in TABLE.items()
        for their_name, tensor in zip(found.names, found.arrangement.to_theirs(drawn(name)), strict=True)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_file(tmp_path: Path, expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    written = write_weights(tmp_path, LLAMA, TABLE, drawn, dtype, 10**9)
    assert written.files == (WEIGHTS,) and not (tmp_path / INDEX).exists()
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    found = load_file(tmp_path / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)
    assert written.num_parameters == sum(tensor.numel() for tensor in expected.values())
    assert written.num_bytes == written.num_parameters * dtype.itemsize


def test_several_files(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    """No file exceeds the maximum size, and the index names the file of each tensor."""
    written = write_weights(tmp_path, LLAMA, TABLE, drawn, torch.float32, 8000)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*written.files, INDEX])
    assert len(written.files) > 3 and written.files[0] == f"model-00001-of-{len(written.files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == written.num_bytes and index["weight_map"].keys() == expected.keys()
    for file in written.files:
        found = load_file(tmp_path / file)
        assert sum(tensor.numel() * 4 for tensor in found.values()) <= 8000
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert found.keys() == {name for name, place in index["weight_map"].items() if place == file}


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    written = write_weights(tmp_path, LLAMA, TABLE, drawn, torch.float32, 1)
    assert len(written.files) == len(TABLE)


def test_only_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """When the next tensor is read, at most the previous one is still in memory."""
    handed_out: list[weakref.ref[Tensor]] = []

    def read(name: str) -> Tensor:
        assert sum(tensor() is not None for tensor in handed_out) <= 1
        tensor = drawn(name)
        handed_out.append(weakref.ref(tensor))
        return tensor

    write_weights(tmp_path, LLAMA, TABLE, read, torch.float32, 10**9)
    assert len(handed_out) == len(TABLE)
