"""Weights written to a checkpoint one tensor at a time, read back by Megatron-Core and by our own reader."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from torch import Tensor

from megatron.ltd.export.checkpoint_tensors import CheckpointTensors
from megatron.ltd.export.torch_dist import write_weights
from tests.support import limited_files, world
from tests.support_errors import refused

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding.word_embeddings.weight": (8, 4),
    **{f"decoder.layers.{layer}.mlp.linear_fc1.weight": (6, 4) for layer in range(3)},
    **{f"decoder.layers.{layer}.mlp.linear_fc1.bias": (6,) for layer in range(3)},
}


def drawn(name: str) -> Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(sum(map(ord, name))))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the weights, and check that at most the previous tensor is still in memory when the next is read."""
    folder = tmp_path_factory.mktemp("written")
    handed_out: list[weakref.ref[Tensor]] = []

    def read(name: str) -> Tensor:
        assert sum(tensor() is not None for tensor in handed_out) <= 1
        tensor = drawn(name)
        handed_out.append(weakref.ref(tensor))
        return tensor

    write_weights(folder, SHAPES, torch.float32, 3, read, {"iteration": 0})
    assert len(handed_out) == len(SHAPES)
    yield folder


def test_megatron_core_reads_the_weights(written: Path) -> None:
    with warnings.catch_warnings(), world():
        warnings.simplefilter("ignore")
        found = dist_checkpointing.load_plain_tensors(str(written))
        assert dist_checkpointing.load_common_state_dict(str(written)) == {"iteration": 0}
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    stacked = {
        f"decoder.layers.mlp.linear_fc1.{kind}": torch.stack(
            [drawn(f"decoder.layers.{layer}.mlp.linear_fc1.{kind}") for layer in range(3)]
        )
        for kind in ("weight", "bias")
    }
    expected = stacked | {"embedding.word_embeddings.weight": drawn("embedding.word_embeddings.weight")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_our_reader_reads_the_weights(written: Path) -> None:
    tensors = CheckpointTensors(written)
    for name, shape in SHAPES.items():
        assert tensors.dtype(name) == torch.float32
        assert torch.equal(tensors.read(name, shape), drawn(name))
    first_rows = tensors.read("embedding.word_embeddings.weight", (5, 4))
    assert torch.equal(first_rows, drawn("embedding.word_embeddings.weight")[:5])


def test_boxes_that_cut_a_tensor_both_ways(tmp_path: Path) -> None:
    """The tensor is stored in four boxes, as 2 x 2 ranks hold it, and read as a whole, in part and by row."""
    from torch.distributed.checkpoint import FileSystemWriter, SavePlan
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    from megatron.ltd.export.torch_dist import StreamedPlanner

    whole = torch.arange(48.0).view(8, 6)
    boxes = {(0, 0): (3, 4), (0, 4): (3, 2), (3, 0): (5, 4), (3, 4): (5, 2)}
    items = {
        str(offsets): WriteItem(
            MetadataIndex("decoder.layers.x", torch.Size(offsets)),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)), TensorProperties(), torch.Size((8, 6))
            ),
        )
        for offsets, sizes in boxes.items()
    }
    parts = {str((r, c)): whole[r : r + h, c : c + w].contiguous() for (r, c), (h, w) in boxes.items()}
    planner, writer = StreamedPlanner(items, parts.__getitem__), FileSystemWriter(tmp_path)
    writer.set_up_storage_writer(is_coordinator=True)
    (plan,), metadata = planner.create_global_plan([writer.prepare_local_plan(SavePlan(list(items.values())))])
    (plan,) = writer.prepare_global_plan([plan])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])
    tensors = CheckpointTensors(tmp_path)
    assert torch.equal(tensors.read("decoder.layers.x", (8, 6)), whole)
    assert torch.equal(tensors.read("decoder.layers.x", (4, 6)), whole[:4])
    for layer in range(8):
        assert torch.equal(tensors.read(f"decoder.layers.{layer}.x", (6,)), whole[layer])


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """torch's own error is a ``RuntimeError`` about its archive."""
    with limited_files(700), pytest.raises(OSError, match="File too large"):
        write_weights(tmp_path, SHAPES, torch.float32, 3, drawn, {})


@pytest.mark.parametrize(
    ("name", "shape", "names"),
    [
        ("decoder.layers.0.mlp.linear_fc2.weight", (4, 6), ("decoder.layers.mlp.linear_fc2.weight",)),
        ("embedding.word_embeddings.weight", (9, 4), ("[8, 4]", "[9, 4]")),
        ("embedding.word_embeddings.weight", (8, 5), ("[8, 4]", "[8, 5]")),
        ("decoder.layers.3.mlp.linear_fc1.bias", (6,), ("decoder.layers.3.mlp.linear_fc1.bias", 6)),
    ],
)
def test_missing_tensors_are_refused(written: Path, name: str, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    with refused(written, *names):
        CheckpointTensors(written).read(name, shape)
