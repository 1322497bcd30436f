"""Exceptions become exit statuses and one line on standard error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.errors import LostContact, RunStopped, UserError, first_line, run_command, writes_to
from tests.support_processes import PATIENCE_SECONDS, child

ENDINGS = [
    (UserError("--lr is -1: it must be above 0"), 2, "tool.py: error: --lr is -1: it must be above 0\n"),
    (RunStopped("the loss is nan"), 1, "tool.py: stopped: the loss is nan\n"),
    (UserError("--load a\nb\x1b[2J: no"), 2, "tool.py: error: --load a\\nb\\x1b[2J: no\n"),
    (KeyboardInterrupt(), 130, "tool.py: interrupted\n"),
]


def _end(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("local_rank", [None, "0", "1"])
@pytest.mark.parametrize(("error", "status", "line"), ENDINGS, ids=["user", "stopped", "control characters", "ctrl-c"])
def test_endings(
    error: BaseException, status: int, line: str, local_rank: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Under a launcher only local rank 0 prints the line, but every process fails."""
    monkeypatch.setattr("sys.argv", ["/somewhere/tool.py", "--flag"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: _end(error))
    assert caught.value.code == status
    said = capsys.readouterr()
    assert said.err == ("" if local_rank == "1" else line) and said.out == ""


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_lost_contact_is_reported(
    local_rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process exits immediately, because a normal exit could wait for the process that is gone."""

    def leave(status: int) -> None:
        raise ConnectionAbortedError(status)  # stands for the exit

    monkeypatch.setattr("sys.argv", ["/somewhere/tool.py"])
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(ConnectionAbortedError, match="1"):
        run_command(lambda: _end(LostContact("rank 1 lost contact")))
    assert capsys.readouterr().err == "tool.py: stopped: rank 1 lost contact\n"


def test_success_does_not_exit() -> None:
    ran: list[int] = []
    run_command(lambda: ran.append(1))
    assert ran == [1]


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_of_openmp_spin_briefly_unless_the_user_says(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "restored after the test")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    run_command(lambda: None)
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(AssertionError, match="ours"):
        run_command(lambda: _end(AssertionError("ours")))


def test_a_closed_output_ends_quietly() -> None:
    program = "from megatron.ltd.errors import run_command\nrun_command(lambda: print('line\\n' * {lines}))"
    for lines in (1, 100_000):  # flushed at exit, and while printing
        command = [sys.executable, "-c", program.format(lines=lines)]
        with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stderr is not None
            writer.stdout.close()
            assert (writer.wait(timeout=PATIENCE_SECONDS), writer.stderr.read()) == (141, "")


CLOSED = ">&-", "2>&-", "<&-", ">&- 2>&- <&-"
OPENED = """
import sys
from megatron.ltd.errors import run_command
def main():
    print("done"), print("warned", file=sys.stderr), sys.stdin.read()
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        file.write("whole")
run_command(main)
"""


@pytest.mark.parametrize("closed", CLOSED)
def test_streams_that_are_closed_at_the_start(closed: str, tmp_path: Path) -> None:
    """A file that is opened later does not become standard output, which would be written to it."""
    command = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", OPENED, str(tmp_path / "file")]
    with child(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    assert out == ("" if closed.startswith(">") else "done\n")
    assert said == ("" if "2>" in closed else "warned\n")
    assert (tmp_path / "file").read_text() == "whole"


TORCH = """
import logging, sys, types
from megatron.ltd.errors import quiet_torch
quiet_torch()
from torch.utils import cpp_extension
cpp_extension._find_cuda_home()
cpp_extension.logger.error("an error")
class NoCloseWriter:
    def __del__(self): raise OSError("a failed write")
closed = ValueError("flush of closed file")
sys.unraisablehook(types.SimpleNamespace(exc_value=closed, object=NoCloseWriter()))
"""


def test_messages_of_torch_that_ask_for_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    with child([sys.executable, "-W", "ignore", "-c", TORCH], env=environment, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and "an error" in said and "a failed write" in said
    assert "No CUDA runtime" not in said and "closed file" not in said


def test_the_first_line_of_an_error() -> None:
    assert first_line(RuntimeError("\n  disk full \nTraceback:\n...")) == "disk full"
    assert first_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(("number", "remedy"), [
    (errno.ENOSPC, "free disk space, or use another disk"), (errno.EROFS, "use a disk that can be written to"),
    (errno.ENODEV, "free disk space, or use another folder"),
])  # fmt: skip
def test_output_that_cannot_be_written_says_what_to_do(number: int, remedy: str) -> None:
    with pytest.raises(UserError) as caught, writes_to("--output-prefix data/books"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"--output-prefix data/books: cannot be written ({os.strerror(number)}); {remedy}"
