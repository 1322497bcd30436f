"""Paths that are not readable files: FIFOs, devices, folders, loops of links, folders without access, wrong names.

Every command ends in bounded time, with one line that names the path.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron.ltd.checkpoint.files import find_damage, named_iteration, saved_iterations
from megatron.ltd.hugging_face.config_file import CONFIG
from tests.end_to_end.runs import metrics, run_status, tiny_flags
from tests.end_to_end.test_hugging_face import SHAPE
from tests.end_to_end.tools import tool_status
from tests.reference.gpt2_folder import write_gpt2
from tests.support_errors import assert_refused

NOBODY = 65534


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


ODD = [_fifo, _endless, Path.mkdir, _loop, _deep]
CHECKPOINT = ["manifest.json", "run.json", ".metadata", "common.pt", "__0_0.distcp"]


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def test_files_of_a_checkpoint_are_damaged(trained: Path) -> None:
    checkpoint = trained / "iter_0000006"
    for name in CHECKPOINT:
        content = (checkpoint / name).read_bytes()
        for make in ODD:
            _replace(checkpoint / name, make)
            assert name in (find_damage(checkpoint) or "")
            (checkpoint / name).rmdir() if make is Path.mkdir else (checkpoint / name).unlink()
            (checkpoint / name).write_bytes(content)
        assert find_damage(checkpoint) is None


@pytest.mark.parametrize("name", ["latest_checkpointed_iteration.txt", "iter_0000006/manifest.json"])
def test_the_checkpoint_before_is_loaded(name: str, data: str, trained: Path, tmp_path: Path) -> None:
    _replace(trained / name, _fifo)
    assert run_status(tiny_flags(data, "--load", trained, "--log-dir", tmp_path / "log")) == (0, "")
    steps = [iteration for _, iteration in metrics(tmp_path / "log")]
    assert min(steps, default=7) == (5 if "manifest" in name else 7)


FLAGS: dict[str, list[str]] = {
    "--config": [], "--vocab-file": ["--tokenizer-type", "GPT2BPETokenizer", "--merge-file", "{merges}"],
    "--merge-file": ["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", "{whole}"],
    "--tokenizer-model": ["--tokenizer-type", "SentencePieceTokenizer"],
}  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("make", ODD)
def test_files_of_flags(make: Callable[[Path], None], flag: str, data: str, tmp_path: Path) -> None:
    (tmp_path / "merges").write_text("#version: 0.2\n")
    (tmp_path / "whole").write_text('{"<|endoftext|>": 0}')
    make(tmp_path / "odd")
    more = [word.format(whole=tmp_path / "whole", merges=tmp_path / "merges") for word in FLAGS[flag]]
    status, said = run_status(tiny_flags(data, *more, flag, tmp_path / "odd"))
    assert_refused(status, said, tmp_path / "odd")


@pytest.mark.parametrize("name", ["d.bin", "d.idx", "d.json"])
@pytest.mark.parametrize("make", ODD)
def test_files_of_a_dataset(make: Callable[[Path], None], name: str, data: str, tmp_path: Path) -> None:
    for ending in ("bin", "idx", "json"):
        shutil.copy(f"{data}.{ending}", tmp_path / f"d.{ending}")
    _replace(tmp_path / name, make)
    status, said = run_status(tiny_flags(str(tmp_path / "d")))
    assert_refused(status, said, name)


@pytest.mark.parametrize("name", [CONFIG, "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("make", ODD)
def test_files_of_a_hugging_face_folder(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    write_gpt2(folder, SHAPE)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    status, said = tool_status("generate_text.py", "--load", folder, "--prompt", "a", "--device", "cpu")
    assert_refused(status, said)


def test_other_folders_are_no_checkpoints(trained: Path) -> None:
    for name in (
        "iter_²",
        "iter_٣٣٣٣٣٣٣",
        "iter_99999999999999999999",
        "iter_12",
        "iter_",
        "iter_-000001",
        "iter_000001x",
    ):
        shutil.copytree(trained / "iter_0000002", trained / name)
        assert named_iteration(trained / name) is None
    assert saved_iterations(trained) == [2, 4, 6]


@pytest.mark.parametrize("name", ["iter_0000009", "iter_99999999999"])
def test_a_folder_named_after_another_iteration(name: str, data: str, trained: Path, tmp_path: Path) -> None:
    (trained / "iter_0000006").rename(trained / name)
    (trained / "latest_checkpointed_iteration.txt").unlink()
    status, said = run_status(tiny_flags(data, "--load", trained, "--log-dir", tmp_path))
    assert_refused(status, said, trained / name / "run.json", "iteration 6")


def test_a_manifest_reads_no_file_elsewhere(data: str, trained: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    manifest = trained / "iter_0000006" / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["../../fifo"] = {"bytes": 0, "crc32": 0}
    manifest.write_text(json.dumps(listed))
    assert run_status(tiny_flags(data, "--load", trained, "--log-dir", tmp_path)) == (0, "")
    assert min(iteration for _, iteration in metrics(tmp_path)) == 5


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe" * 999, b"[" * 99_999, b"", None], ids=["bytes", "deep", "empty", "none"]
)
def test_a_damaged_log_before_a_resume(garbage: bytes | None, data: str, trained: Path, straight: Path) -> None:
    """The resumed steps are logged, and the tools read the log without its damaged lines."""
    log = trained / "metrics.jsonl"
    shutil.rmtree(trained / "iter_0000006")
    (trained / "latest_checkpointed_iteration.txt").write_text("4")
    whole = log.read_bytes().splitlines(keepends=True)
    if garbage is None:
        log.unlink()
    else:
        log.write_bytes(b"".join([*whole[:2], garbage, b"\n", whole[2][:40]]))
    assert run_status(tiny_flags(data, "--save", trained, "--load", trained)) == (0, "")
    status, said = tool_status("summarize_runs.py", "--runs", trained)
    assert status == 0 and len(said.splitlines()) == (garbage is not None)
    lines = [line for line in log.read_bytes().splitlines() if line.startswith(b'{"kind": "train", "iteration": ')]
    assert [json.loads(line)["iteration"] for line in lines][-2:] == [5, 6]


@contextmanager
def a_user() -> Iterator[None]:
    """Run the block as a user without root's rights, since root may enter every folder."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "flag", ["--load", "--train-data-path", "--save", "--config", "--data-cache-path", "--log-dir"]
)
def test_a_folder_that_may_not_be_entered(
    flag: str, data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    logs = [] if flag in ("--save", "--log-dir") else ["--log-dir", tmp_path / "logs"]
    with a_user():
        status, said = run_status(tiny_flags(data, *logs, flag, closed / "inside"))
    assert_refused(status, said)
    assert "ermission denied" in said
