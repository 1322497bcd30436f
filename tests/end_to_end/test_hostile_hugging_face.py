"""Incomplete and inconsistent Hugging Face folders: every command ends with one error line and writes nothing.

Not here: ``--load --finetune``, see ``test_hugging_face``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_hugging_face import CONFIG, FOLDERS, SHAPE, write_bpe
from tests.end_to_end.tools import tool_status
from tests.reference.gpt2_folder import gpt2_config, write_gpt2
from tests.support_errors import assert_names

Command = Callable[[Path, Path], tuple[int, str]]


def _generate(folder: Path, target: Path) -> tuple[int, str]:
    return tool_status("generate_text.py", "--load", folder, "--prompt", "a", "--device", "cpu")


def _import(folder: Path, target: Path) -> tuple[int, str]:
    return tool_status("import_hf.py", "--load", folder, "--save", target)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    write_gpt2(tmp_path / "gpt2", SHAPE)
    write_bpe(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def _assert_refused(command: Command, folder: Path) -> None:
    target = folder.with_name("target")
    status, said = command(folder, target)
    assert status == 2, (status, said)
    assert_names(said.rstrip("\n"), folder)
    assert not target.exists() or not list(target.iterdir())


@pytest.mark.parametrize("command", [_generate, _import])
@pytest.mark.parametrize("entries", [entries for entries, _ in CONFIG.values()], ids=CONFIG.keys())
def test_a_config_that_is_not_this_models(entries: dict[str, object], command: Command, gpt2: Path) -> None:
    (gpt2 / "config.json").write_text(json.dumps(gpt2_config(SHAPE, **entries)))
    _assert_refused(command, gpt2)


@pytest.mark.parametrize("command", [_generate, _import])
@pytest.mark.parametrize("damage", [damage for damage, _ in FOLDERS.values()], ids=FOLDERS.keys())
def test_a_folder_that_is_not_whole(damage: Callable[[Path], object], command: Command, gpt2: Path) -> None:
    damage(gpt2)
    _assert_refused(command, gpt2)


@pytest.mark.parametrize("command", [_generate, _import])
def test_weights_that_are_a_link_to_nothing(command: Command, gpt2: Path) -> None:
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / "model.safetensors").symlink_to("none")
    _assert_refused(command, gpt2)


def test_code_that_a_config_names_is_not_executed(gpt2: Path) -> None:
    names = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (gpt2 / "config.json").write_text(json.dumps(gpt2_config(SHAPE, architectures=["Model"], **names)))
    (gpt2 / "code.py").write_text(f"import os; os.mkdir({str(gpt2 / 'ran')!r})")
    for command in (_generate, _import):
        assert command(gpt2, gpt2.with_name("target")) == (0, "")
    assert not (gpt2 / "ran").exists()


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the header of the weights, which says where each tensor is."""

    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return write


def _length(length: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return write


WEIGHT = "transformer.wte.weight"
HEADERS: dict[str, Callable[[Path], None]] = {
    "beyond the file": _header(lambda header: header[WEIGHT].update(data_offsets=[0, 1 << 60])),
    "negative": _header(lambda header: header[WEIGHT].update(data_offsets=[-8, 8])),
    "backwards": _header(lambda header: header[WEIGHT].update(data_offsets=[64, 0])),
    "overlapping": _header(lambda header: header[WEIGHT].update(header["transformer.ln_f.weight"])),
    "absurd shape": _header(lambda header: header[WEIGHT].update(shape=[1 << 40, 1 << 40])),
    "overflowing shape": _header(lambda header: header[WEIGHT].update(shape=[1 << 63, 2, 16])),
    "fewer values": _header(lambda header: header[WEIGHT].update(shape=[1, 16])),
    "no shape": _header(lambda header: header[WEIGHT].pop("shape")),
    "unknown type": _header(lambda header: header[WEIGHT].update(dtype="F13")),
    "a list": _header(lambda header: header.update({WEIGHT: []})),
    "a header longer than the file": _length(1 << 62),
    "no header": _length(0),
    "a header cut": _length(40),
}


@pytest.mark.parametrize("command", [_generate, _import])
@pytest.mark.parametrize("damage", HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_lie(damage: Callable[[Path], None], command: Command, gpt2: Path) -> None:
    damage(gpt2)
    _assert_refused(command, gpt2)


TOKENIZERS: dict[str, tuple[str, str]] = {
    "deep": ("vocab.json", "[" * 100_000),
    "digits": ("vocab.json", '{"a": ' + "1" * 10_000 + "}"),
    "a list": ("vocab.json", "[]"),
    "no ids": ("vocab.json", '{"a": "b"}'),
    "negative ids": ("vocab.json", '{"<|endoftext|>": -1}'),
    "huge ids": ("vocab.json", '{"<|endoftext|>": 1e300}'),
    "merges of nothing": ("merges.txt", "#version\nx y z\n"),
}


@pytest.mark.parametrize("command", [_generate, _import])
@pytest.mark.parametrize(("name", "text"), TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_vocabularies_that_lie(name: str, text: str, command: Command, gpt2: Path) -> None:
    (gpt2 / name).write_text(text)
    _assert_refused(command, gpt2)


@pytest.mark.parametrize("command", [_generate, _import])
@pytest.mark.parametrize(
    "definition",
    [
        b"[" * 100_000,
        b"{}",
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b"\xff\xfe",
        b"1" * 10_000,
    ],
    ids=["deep", "empty", "negative", "bytes", "digits"],
)
def test_a_tokenizer_json_that_lies(definition: bytes, command: Command, gpt2: Path) -> None:
    (gpt2 / "vocab.json").unlink()
    (gpt2 / "tokenizer.json").write_bytes(definition)
    _assert_refused(command, gpt2)
