"""A checkpoint that contains code is refused with one line, and the code is not executed. The manifest is valid,
because an attacker can write it too.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from tests.end_to_end.runs import reseal, run_status, tiny_flags
from tests.end_to_end.tools import bert, bert_classifier, evaluate, export, finetune, generate, load, vit
from tests.support_errors import assert_names
from tests.support_pickles import Payload, altered_enumeration


def _read_metadata(checkpoint: Path) -> Any:
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def _metadata(checkpoint: Path, mark: Path) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Payload(mark)))


def _inside_metadata(checkpoint: Path, mark: Path) -> None:
    metadata = _read_metadata(checkpoint)
    metadata.planner_data = {"innocent": Payload(mark)}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def _attribute_chain(checkpoint: Path, mark: Path) -> None:
    """Use only names that describe tensors, and getattr from one of their functions to its module's globals."""
    chain = b"cbuiltins\ngetattr\n(ctorch.serialization\n_get_layout\nV__globals__\ntR."
    (checkpoint / ".metadata").write_bytes(chain)


def _altered_enumeration(checkpoint: Path, mark: Path) -> None:
    metadata = _read_metadata(checkpoint)
    metadata.all_local_plans = None  # the plans contain the enumeration that is altered
    (checkpoint / ".metadata").write_bytes(altered_enumeration(mark, pickle.dumps(metadata)))


def _common(checkpoint: Path, mark: Path) -> None:
    common = torch.load(checkpoint / "common.pt")
    torch.save({**common, "innocent": Payload(mark)}, checkpoint / "common.pt")


def _append(checkpoint: Path, content: Any, least_bytes: int = 0) -> Any:
    """Append an object that is not a tensor to the file of tensors, and return its place there."""
    place = next(iter(_read_metadata(checkpoint).storage_data.values()))
    path, buffer = checkpoint / place.relative_path, io.BytesIO()
    torch.save([content, torch.zeros(least_bytes)] if least_bytes else [content], buffer)
    changed = replace(place, offset=path.stat().st_size, length=buffer.getbuffer().nbytes)
    path.write_bytes(path.read_bytes() + buffer.getvalue())
    return changed


def _tensor(checkpoint: Path, mark: Path) -> None:
    """Replace a tensor by the payload, with as many bytes."""
    metadata = _read_metadata(checkpoint)
    for index, place in list(metadata.storage_data.items()):
        if "word_embeddings" in index.fqn:
            metadata.storage_data[index] = _append(checkpoint, Payload(mark), place.length)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def _extra_states(checkpoint: Path, content: Any) -> None:
    """Add extra states with this content, as earlier versions and Megatron-Core itself write them."""
    metadata, place = _read_metadata(checkpoint), _append(checkpoint, content)
    for layer in range(3):
        name = f"decoder.layers.mlp.linear_fc1._extra_state/shard_{layer}_3"
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(name)] = place
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def _weights_alone(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return run_status(tiny_flags(data, "--load", run, "--no-load-optim", "--log-dir", folder))


COMMANDS = [load, finetune, _weights_alone, bert, bert_classifier, vit, generate, export]
COMMANDS += [evaluate] if find_spec("lm_eval") else []  # it needs the extra eval


CASES = [
    *product(COMMANDS, [_altered_enumeration, _common, _tensor]),
    *product([load, export], [_metadata, _inside_metadata, _attribute_chain]),
]


@pytest.mark.parametrize(("command", "hide"), CASES)
def test_no_command_runs_code_in_a_checkpoint(
    command: Callable[[Path, str, Path], tuple[int, str]],
    hide: Callable[[Path, Path], None],
    data: str,
    trained: Path,
    tmp_path: Path,
) -> None:
    """The altered metadata pass a check that unpickles them with stand-ins, and execute code when they are unpickled
    again. A command that does not read the common values may also succeed.
    """
    checkpoint, mark = trained / "iter_0000006", tmp_path / "the payload ran"
    hide(checkpoint, mark)
    reseal(checkpoint)
    folder = tmp_path / "folder"
    folder.mkdir()
    members = dict(WriteItemType.__members__)
    status, said = command(trained, data, folder)
    assert not mark.exists() and WriteItemType.__members__ == members
    if hide is _common and command is not load and status == 0:
        return
    (line,) = said.splitlines()
    assert status == 2
    assert_names(line, checkpoint)
    if command is load and hide is not _altered_enumeration:
        assert ("getattr" if hide is _attribute_chain else "mkdir") in line
    assert not (folder / "exported").exists()


EXTRA_STATES: dict[str, Callable[[Path], Any]] = {
    "an object": Payload,
    "bytes of a pickle": lambda mark: torch.tensor(list(pickle.dumps(Payload(mark))), dtype=torch.uint8),
    "many bytes": lambda mark: torch.zeros(1 << 20, dtype=torch.uint8),
    "a number": lambda mark: 1,
}


@pytest.mark.parametrize(
    ("command", "content"),
    [*((load, name) for name in EXTRA_STATES), (finetune, "bytes of a pickle"), (generate, "bytes of a pickle")],
)
def test_extra_states_with_content_are_refused(
    command: Callable[[Path, str, Path], tuple[int, str]],
    content: str,
    data: str,
    trained: Path,
    tmp_path: Path,
) -> None:
    """Transformer Engine's modules would unpickle their extra states, even from the bytes of a tensor."""
    checkpoint, mark = trained / "iter_0000006", tmp_path / "the payload ran"
    _extra_states(checkpoint, EXTRA_STATES[content](mark))
    reseal(checkpoint)
    status, said = command(trained, data, tmp_path)
    (line,) = said.splitlines()
    assert status == 2 and not mark.exists()
    assert_names(line, checkpoint)


@pytest.mark.parametrize(
    ("command", "empty"),
    [(load, None), (finetune, torch.empty(0, dtype=torch.uint8)), (generate, torch.empty(0, dtype=torch.uint8))],
)
def test_extra_states_do_not_reach_the_modules(
    command: Callable[[Path, str, Path], tuple[int, str]],
    empty: torch.Tensor | None,
    data: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the empty ones of earlier versions, nor those that someone puts among the plain values."""
    checkpoint, mark, seen = trained / "iter_0000006", tmp_path / "the payload ran", []
    assert not any("_extra_state" in name for name in _read_metadata(checkpoint).state_dict_metadata)
    _extra_states(checkpoint, empty)
    common = torch.load(checkpoint / "common.pt")
    hidden = torch.tensor(list(pickle.dumps(Payload(mark))), dtype=torch.uint8)
    names = [f"decoder.layers.{layer}.mlp.linear_fc1._extra_state" for layer in range(3)]
    torch.save({**common, "model": dict.fromkeys(names, hidden)}, checkpoint / "common.pt")
    reseal(checkpoint)
    monkeypatch.setattr(ColumnParallelLinear, "set_extra_state", lambda module, state: seen.append(state))
    status, said = command(trained, data, tmp_path)
    assert (status, said) == (0, "") and seen and set(seen) == {None} and not mark.exists()


def test_the_payload_runs_if_unpickled(tmp_path: Path) -> None:
    """Check that the payload does run when unpickled; otherwise the tests above could not fail.

    ``tests/unit/checkpoint/test_safe_metadata.py`` does the same for ``altered_enumeration``.
    """
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
