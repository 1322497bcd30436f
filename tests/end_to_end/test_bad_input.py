"""Bad input to training: one line with the flag or file, value, rule and fix, exit status 2, nothing overwritten."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.ltd.parallel.mesh import refuse_broken_transformer_engine
from tests.end_to_end.runs import refusal, run_status, snapshot, tiny_flags
from tests.end_to_end.tools import tool_refusal
from tests.support_errors import assert_names, assert_refused, refused
from tests.support_processes import PATIENCE_SECONDS

FLAGS = {
    "kept tokens above S": (["--ltd-min-kept-tokens", 20], ["--ltd-min-kept-tokens 20", "--seq-length 16", 16]),
    "kept tokens below 1": (["--ltd-min-kept-tokens", 0], ["--ltd-min-kept-tokens 0", 1]),
    "granularity": (["--ltd-granularity", 3], ["--ltd-granularity 3", "--ltd-min-kept-tokens 4", 3, 6]),
    "stages without staged": (["--ltd-stages", "0:4"], ["--ltd-stages 0:4", "--ltd-schedule"]),
    "growth of a constant": (["--ltd-schedule", "constant"], ["--ltd-growth-steps 5", "--ltd-schedule"]),
    "no schedule": (["--ltd-schedule", "falling"], ["--ltd-schedule", "falling"]),
    "layers outside": (["--ltd-layers", "2-9"], ["--ltd-layers 2-9", 1, "--num-layers 3"]),
    "layers far outside": (["--ltd-layers", "70-999999999999"], [1, "--num-layers 3", 70]),
    "layers no list": (["--ltd-layers", "2,x"], ["--ltd-layers 2,x", "2-23"]),
    "two methods that drop tokens": (["--token-bypass"], ["--random-ltd", "--token-bypass"]),
    "first layer": (["--ltd-layers", "1-2"], ["--ltd-layers 1-2", "layer 1", "--ltd-allow-edge-layers"]),
    "last layer": (["--ltd-layers", "2-3"], ["--ltd-layers 2-3", "layer 3", "--ltd-allow-edge-layers"]),
    "two lengths": (["--train-tokens", 500], ["--train-iters 6", "--train-tokens 500"]),
    "warm-up": (["--lr-decay-iters", 2], [288, "--lr-warmup-*", "--lr-decay-*"]),
    "batch": (["--global-batch-size", 3], ["--global-batch-size 3", "--micro-batch-size 2"]),
    "unknown flag": (["--train-itrs", 3], ["--train-itrs", "--train-iters"]),
    "no number": (["--num-layers", "many"], ["--num-layers", "many", 1000]),
    "not finite": (["--lr", "nan"], ["--lr", "nan"]),
    "choice": (["--lr-decay-style", "square"], ["--lr-decay-style", "square"]),
    "no value": (["--num-layers"], ["--num-layers"]),
    "more than the memory": (
        ["--hidden-size", 1 << 30],
        ["--hidden-size 1073741824", "--micro-batch-size 2", "--plan"],
    ),
    "a micro-batch beyond the memory": (
        ["--micro-batch-size", 1 << 30, "--global-batch-size", 1 << 30],
        ["--micro-batch-size 1073741824"],
    ),
    "recompute": (
        ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 2],
        ["--recompute-num-layers 2", 3],
    ),
    "transformer engine on CPU": (["--transformer-impl", "transformer_engine"], ["--transformer-impl"]),
    "CUDA graphs on CPU": (["--cuda-graph-impl", "local"], ["--device cpu", "--cuda-graph-impl local"]),
    "load of an empty folder": (["--load", "empty"], ["--load empty"]),
    "finetune from nothing": (["--load", "out", "--finetune"], ["--load out"]),
    "layout": (["--tensor-model-parallel-size", 2], [1, "--tensor-model-parallel-size 2", 2]),
}


BYPASS_FLAGS = {
    "first layer": (["--token-bypass-layers", "1-2"], ["--token-bypass-layers 1-2", 2, "--num-layers 3"]),
    "last layer": (["--token-bypass-layers", "2-3"], ["--token-bypass-layers 2-3"]),
    "empty span": (["--token-bypass-layers", "2-1"], ["--token-bypass-layers 2-1"]),
    "kept tokens above S": (["--token-bypass-kept-tokens", 17], ["--token-bypass-kept-tokens 17", 16]),
    "staged without stages": (["--token-bypass-schedule", "staged"], ["--token-bypass-stages", "0:128", "1000:256"]),
    "stages in disorder": (
        ["--token-bypass-schedule", "staged", "--token-bypass-stages", "0:16", "9:8", "4:16"],
        ["--token-bypass-stages 0:16 9:8 4:16", "9:8", "--token-bypass-granularity 16"],
    ),
    "special id outside": (["--token-bypass-special-ids", 256, 257], ["--token-bypass-special-ids 257", 0, 256]),
}


@pytest.mark.parametrize(("flags", "names"), BYPASS_FLAGS.values(), ids=BYPASS_FLAGS.keys())
def test_flags_of_token_bypass(flags: list[object], names: list[object], data: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    without_ltd = [
        flag for flag in tiny_flags(data, "--save", folder, "--token-bypass", *flags) if flag != "--random-ltd"
    ]
    line = refusal(without_ltd)
    assert_names(line, *names)
    assert not folder.exists()


@pytest.mark.parametrize(("flags", "names"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(
    flags: list[object], names: list[object], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(tiny_flags(data, "--save", "out", *flags))
    assert_names(line, *names)
    assert snapshot(tmp_path) == {}


def test_growth_longer_than_the_run_warns(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = tiny_flags(data, "--log-dir", tmp_path, "--ltd-growth-steps", 50, "--train-iters", 1, "--eval-iters", 0)
    flags[flags.index("--lr-warmup-iters") + 1] = "0"
    assert run_status(flags) == (0, "")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert any("4 of 16" in line for line in warnings), warnings


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DATA = {
    "missing bin": ("d.bin", Path.unlink),
    "missing idx": ("d.idx", Path.unlink),
    "empty bin": ("d.bin", lambda path: path.write_bytes(b"")),
    "empty idx": ("d.idx", lambda path: path.write_bytes(b"")),
    "truncated bin": ("d.bin", _truncate),
    "truncated idx": ("d.idx", _truncate),
    "foreign idx": ("d.idx", lambda path: path.write_bytes(b"PK\x03\x04" * 100)),
}


@pytest.fixture
def prefix(tmp_path: Path, data: str) -> Path:
    """Prefix ``d`` of a copy of the data, which a test may damage."""
    (tmp_path / "data").mkdir()
    for ending in ("bin", "idx", "json"):
        shutil.copy(f"{data}.{ending}", tmp_path / "data" / f"d.{ending}")
    return tmp_path / "data" / "d"


@pytest.mark.parametrize(("name", "damage"), DATA.values(), ids=DATA.keys())
def test_data_files(name: str, damage: Callable[[Path], None], prefix: Path) -> None:
    damage(prefix.parent / name)
    before = snapshot(prefix.parent)
    line = refusal(tiny_flags(str(prefix)))
    assert_names(line, f"--train-data-path {prefix}", name, "preprocess_data.py")
    assert snapshot(prefix.parent) == before


def test_token_ids_above_the_vocabulary(prefix: Path) -> None:
    Path(f"{prefix}.json").unlink()  # with the card, the file would count as unchanged and not be checked
    content = bytearray(Path(f"{prefix}.bin").read_bytes())
    content[100:102] = (300).to_bytes(2, "little")  # byte-level ids end at 256
    Path(f"{prefix}.bin").write_bytes(content)
    line = refusal(tiny_flags(str(prefix)))
    assert_names(line, f"--train-data-path {prefix}", "token id 300", 0, 256)


def test_data_of_another_tokenizer(prefix: Path) -> None:
    card = json.loads(Path(f"{prefix}.json").read_text())
    Path(f"{prefix}.json").write_text(json.dumps(card | {"tokenizer_fingerprint": "0" * 64}))
    assert_names(refusal(tiny_flags(str(prefix))), f"--train-data-path {prefix}", "tokenizer")


@pytest.mark.parametrize("flag", ["--save", "--log-dir", "--data-cache-path", "--tensorboard-dir"])
def test_unwritable_folders(flag: str, data: str, tmp_path: Path) -> None:
    """The folder is below a regular file, so even root cannot create it."""
    (tmp_path / "file").write_text("mine")
    logs = [] if flag in ("--save", "--log-dir") else ["--log-dir", tmp_path / "logs"]
    line = refusal(tiny_flags(data, *logs, flag, tmp_path / "file" / "folder"))
    assert_names(line, f"{flag} {tmp_path / 'file' / 'folder'}", "Not a directory")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("second_line", "rule"), [(b'{"text": "cut', "JSON"), (b'{"text": "\xff\xfe"}', "UTF-8")], ids=["JSON", "UTF-8"]
)
def test_lines_that_cannot_be_read(second_line: bytes, rule: str, tmp_path: Path) -> None:
    source = tmp_path / "d.jsonl"
    source.write_bytes(b'{"text": "one"}\n' + second_line + b'\n{"text": "three"}\n')
    flags = ("--input", source, "--tokenizer-type", "ByteTokenizer", "--output-prefix", tmp_path / "d")
    assert_names(tool_refusal("preprocess_data.py", *flags), f"{source}:2", rule, "--skip-bad-lines")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


BROKEN_ENGINE = 'raise RuntimeError("Found empty `transformer-engine` meta package installed.\\nMore lines")\n'


def test_half_installed_transformer_engine(repository: Path, data: str, tmp_path: Path) -> None:
    """The whole command is run, because Megatron-Core imports Transformer Engine when it is imported itself."""
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(BROKEN_ENGINE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"}
    command = [sys.executable, str(repository / "pretrain_gpt_ltd.py"), *tiny_flags(data, "--save", tmp_path / "out")]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    names = ("transformer_engine", "empty `transformer-engine` meta package", "pip uninstall", ">=2.9,<2.12")
    assert_refused(ended.returncode, ended.stderr, *names)
    assert not (tmp_path / "out").exists()


def test_transformer_engine_without_its_torch_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with refused("transformer_engine.pytorch", "pip uninstall transformer-engine"):
            refuse_broken_transformer_engine()
    finally:
        del sys.modules["transformer_engine"]
