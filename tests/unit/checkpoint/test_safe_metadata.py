"""What a checkpoint's ``.metadata`` may hold, in pickles of several protocols. Full runs are in tests/end_to_end."""

from __future__ import annotations

import io
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import msc_utils
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from megatron.ltd.checkpoint.safe_metadata import UnsafeCheckpoint, read_metadata, tensors_only
from tests.support_errors import refused
from tests.support_pickles import Payload, altered_enumeration

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def description() -> Any:
    """Metadata as torch writes it: a tensor in two pieces, an object of bytes, and fields that readers do not need."""
    properties = dcp.TensorProperties(dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    chunks = [dcp.ChunkStorageMetadata(torch.Size([start, 0]), torch.Size([2, 5])) for start in (0, 2)]
    places = {
        dcp.MetadataIndex("weight", chunk.offsets, number): _StorageInfo("__0_0.distcp", 100 * number, 100)
        for number, chunk in enumerate(chunks)
    }
    metadata: Any = dcp.Metadata(
        {
            "weight": dcp.TensorStorageMetadata(properties, torch.Size([4, 5]), chunks),
            "extra": dcp.BytesStorageMetadata(),
        },
        planner_data={"a": ("b", 1, None, True)},
        storage_data={**places, dcp.MetadataIndex("extra"): _StorageInfo("__1_0.distcp", 0, 1000)},
        storage_meta=dcp.StorageMeta(checkpoint_id=Path("/somewhere"), save_id="1"),
    )
    metadata.all_local_plans = [SavePlan([WriteItem(dcp.MetadataIndex("extra"), WriteItemType.BYTE_IO)])]
    return metadata


def read(folder: Path, content: bytes) -> dcp.Metadata:
    (folder / ".metadata").write_bytes(content)
    for name, size in (("__0_0.distcp", 200), ("__1_0.distcp", 1000)):
        (folder / name).write_bytes(bytes(size))
    return read_metadata(folder)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", ["torch", "Megatron-Core 0.15"])
def test_metadata_equals_what_torch_unpickles(version: str, protocol: int, tmp_path: Path) -> None:
    """Megatron-Core 0.15 used another class, with additional plain values."""
    written = expected = description()
    if version != "torch":
        written = MCoreMetadata()
        vars(written).update(vars(expected), mcore_data={"weight": {"nd_reformulated_orig_global_shape": (4, 5)}})
    found = read(tmp_path, pickle.dumps(written, protocol))
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data


def test_what_is_left_out_is_not_checked(tmp_path: Path) -> None:
    """Tensors that are not read may have places outside of their files."""
    wrong = description()
    wrong.storage_data[dcp.MetadataIndex("extra")] = _StorageInfo("__9_0.distcp", 0, 1000)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(wrong))
    (tmp_path / "__0_0.distcp").write_bytes(bytes(200))
    with refused("__9_0.distcp", error=UnsafeCheckpoint):
        read_metadata(tmp_path)
    found = read_metadata(tmp_path, lambda name: name == "extra")
    assert found.state_dict_metadata.keys() == {"weight"} and {index.fqn for index in found.storage_data} == {"weight"}


class _Member:
    """An object that is pickled as a call of ``getattr`` that returns the enumeration's member."""

    def __reduce__(self) -> Any:
        return getattr, (dcp._MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_enumeration_members_as_pickled_by_python_3_11_0_to_3_11_3(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11.0 to 3.11.3 pickle them as calls of ``getattr``, in protocol 2 from the module __builtin__."""
    state = (torch.bfloat16, torch.strided, False, _Member(), False)
    with monkeypatch.context() as patch:
        patch.setattr(dcp.TensorProperties, "__getstate__", lambda properties: state)
        content = pickle.dumps(description(), protocol)
    assert b"getattr" in content and (b"__builtin__" in content) == (protocol == 2)
    assert pickle.loads(content).state_dict_metadata == description().state_dict_metadata
    assert read(tmp_path, content).state_dict_metadata == description().state_dict_metadata


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


ENUMERATION = b"ctorch.distributed.checkpoint.planner\nWriteItemType\n"
UNSAFE = {
    "eval": pickle.dumps(Calls(eval, "1/0")),
    "exec": pickle.dumps([Calls(exec, "1/0")]),
    "import": b"cimportlib\nimport_module\n(Vos\ntR.",
    "torch.load": pickle.dumps(Calls(torch.load, "x")),
    "globals of a function": b"cbuiltins\ngetattr\n(ctorch.serialization\n_get_layout\nV__globals__\ntR.",
    "subclasses, in protocol 2": b"c__builtin__\ngetattr\n(ctorch\nSize\nV__subclasses__\ntR.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x13Size.__subclasses__\x93.",
    "state of a class": ENUMERATION + b"(N}V_member_map_\n}stb.",
    "state of a text": b"Vtext\n}b.",
    "call of a text": b"Vtext\n)R.",
    "call of what a call gave": b"ctorch\nSize\n)R)R.",
    "object of what a call gave": b"ctorch\nSize\n)R)\x81.",
    "keyword arguments": b"\x80\x04" + ENUMERATION + b")}\x92.",
    "items of a class": ENUMERATION + b"Vkey\nVvalue\ns.",
    "persistent id": b"Pname\n.",
    "extension": b"\x80\x02\x82\x01.",
    "old instance": b"(itorch\nSize\n.",
    "key that is a tuple": b"})Vvalue\ns.",
}


@pytest.mark.parametrize("content", UNSAFE.values(), ids=UNSAFE.keys())
def test_everything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match="which describes no tensor"):
        read(tmp_path, content)


def test_a_pickle_that_alters_an_enumeration_is_refused(tmp_path: Path) -> None:
    """``read_metadata`` does not run the payload; ``pickle`` does, which shows that the payload works."""
    harmless = description()
    del harmless.all_local_plans
    mark, members = tmp_path / "the payload ran", (WriteItemType._member_map_, WriteItemType._value2member_map_)
    content = altered_enumeration(mark, pickle.dumps(harmless))
    with refused("Name", error=UnsafeCheckpoint):
        read(tmp_path, content)
    assert not mark.exists() and WriteItemType._member_map_ is members[0]
    try:
        assert pickle.loads(content).state_dict_metadata == description().state_dict_metadata
    finally:
        WriteItemType._member_map_, WriteItemType._value2member_map_ = members
    assert mark.exists()


WHOLE = pickle.dumps(description())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        WHOLE[:-20],
        WHOLE[: len(WHOLE) // 2],
        b".",
        b"R.",
        b"t.",
        b"}u.",
        b"(ts.",
        b"h\1.",
        b"V\\ud\n.",
    ],
)
def test_unreadable_metadata_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match=r"its \.metadata cannot be read"):
        read(tmp_path, content)


BOMBS = {
    "deep tuple": b")" + b"\x85" * 200_000 + b".",
    "deep calls": b"ctorch\nSize\nq\x01)R" + b"q\x02h\x01h\x02\x85R" * 40_000 + b".",
    "a tuple of twice itself": b")" + b"q\x01h\x01\x86" * 100_000 + b".",
    "a far place in the memo": b"Nr\xff\xff\xff\x7f.",
    "a long text": b"\x8d" + (1 << 60).to_bytes(8, "little") + b".",
    "a long number": b"\x8b\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_cannot_take_much_memory(content: bytes, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeCheckpoint):
        read(tmp_path, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB


def test_truncated_or_changed_metadata_is_refused_or_read(tmp_path: Path) -> None:
    for place in range(0, len(WHOLE), 5):
        for content in (WHOLE[:place], WHOLE[:place] + bytes([WHOLE[place] ^ 255]) + WHOLE[place + 1 :]):
            try:
                assert isinstance(read(tmp_path, content), dcp.Metadata)
            except UnsafeCheckpoint:
                continue


def _extra(metadata: dcp.Metadata) -> Any:
    return metadata.storage_data[dcp.MetadataIndex("extra")]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda metadata: delattr(metadata, "storage_data"),
    "a list of names": lambda metadata: setattr(metadata, "state_dict_metadata", ["weight"]),
    "a key": lambda metadata: setattr(
        metadata, "state_dict_metadata", {dcp.MetadataIndex("weight"): dcp.BytesStorageMetadata()}
    ),
    "no dtype": lambda metadata: setattr(metadata.state_dict_metadata["weight"].properties, "dtype", "float32"),
    "a shape": lambda metadata: setattr(metadata.state_dict_metadata["weight"], "size", (4, 5)),
    "a place": lambda metadata: setattr(_extra(metadata), "offset", "0"),
    "compressed": lambda metadata: setattr(_extra(metadata), "transform_descriptors", ["stream.zstd"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_fields_of_other_types_are_refused(change: Callable[[Any], Any], tmp_path: Path) -> None:
    metadata = description()
    change(metadata)
    with refused(".metadata", error=UnsafeCheckpoint):
        read(tmp_path, pickle.dumps(metadata))


def saved(value: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return io.BytesIO(buffer.getvalue())


class Registered:
    """A class that another library has registered with torch as safe to load."""


@pytest.mark.parametrize("force", [None, "0"])
@pytest.mark.parametrize("force_not", [None, "1"])
def test_tensors_only_restricts_every_load_and_restores_torch(
    force: str | None, force_not: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": force, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": force_not}
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(msc_utils, "msc", object())  # as if multi-storage-client were installed
    monkeypatch.setattr(msc_utils.MultiStorageClientFeature, "_enabled", True)
    read_before, metadata = FileSystemReader.read_metadata, description()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with torch.serialization.safe_globals([Registered]):
        allowed = set(torch.serialization.get_safe_globals())
        with pytest.raises(KeyError), tensors_only(metadata):
            assert not msc_utils.MultiStorageClientFeature.is_enabled()
            assert FileSystemReader(tmp_path).read_metadata(rank=0) is metadata
            assert torch.equal(torch.load(saved(torch.ones(2)), weights_only=False), torch.ones(2))
            for value in (Payload(tmp_path / "mark"), Registered()):
                with pytest.raises(pickle.UnpicklingError):
                    torch.load(saved(value), weights_only=False)
            raise KeyError
        assert set(torch.serialization.get_safe_globals()) == allowed
    assert FileSystemReader.read_metadata is read_before and msc_utils.MultiStorageClientFeature.is_enabled()
    assert {name: os.environ.get(name) for name in environment} == environment
    assert not (tmp_path / "mark").exists()
