"""Exceptions become exit statuses and one line on standard error."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

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
    """Under a launcher only local rank 0 prints the line, but every process fails; the others give it time to print."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("sys.argv", ["/somewhere/tool.py", "--flag"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: _end(error))
    assert caught.value.code == status
    said = capsys.readouterr()
    assert said.err == ("" if local_rank == "1" else line) and said.out == ""
    assert len(waited) == (local_rank == "1" and status != 130) and all(5 <= seconds <= 20 for seconds in waited)


def test_ctrl_c_while_a_library_in_c_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imports(cause: BaseException) -> None:
        raise ImportError("initialization failed") from cause

    monkeypatch.setattr("sys.argv", ["tool.py"])
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: imports(KeyboardInterrupt()))
    assert caught.value.code == 130 and capsys.readouterr().err == "tool.py: interrupted\n"
    with pytest.raises(ImportError):
        run_command(lambda: imports(ValueError()))


SILENT = """
import signal
from megatron.ltd.errors import UserError, run_command
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def main():
    print("fails", flush=True)
    raise UserError("--lr is -1: it must be above 0")
run_command(main)
"""


def test_a_silent_process_waits_until_the_launcher_ends_it() -> None:
    """Real processes: the first one exits at once; the other is ended by SIGTERM, which a launcher sends then."""
    command = [sys.executable, "-c", SILENT]
    ranks = [os.environ | {"LOCAL_RANK": rank} for rank in "01"]
    with child(command, env=ranks[0], stderr=subprocess.PIPE) as first:
        assert first.communicate(timeout=PATIENCE_SECONDS)[1] == "-c: error: --lr is -1: it must be above 0\n"
    assert first.returncode == 2
    with child(command, env=ranks[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == "fails\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1)
        other.terminate()
        assert (other.communicate(timeout=PATIENCE_SECONDS), other.returncode) == (("", ""), -signal.SIGTERM)


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_torchrun_shows_the_line_in_its_report(
    local_rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch reads the file that it names for each process, and its own report has the line."""
    file = tmp_path / "error.json"
    monkeypatch.setattr("sys.argv", ["/somewhere/tool.py"])
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit):
        run_command(lambda: _end(UserError('--lr "-1": it must be above 0')))
    line = 'tool.py: error: --lr "-1": it must be above 0'
    assert capsys.readouterr().err == (f"{line}\n" if local_rank == "0" else "")
    failure = ProcessFailure(int(local_rank), 77, 2, str(file))
    assert abs(failure.timestamp - time.time()) < PATIENCE_SECONDS
    assert f"  traceback : {line}\n" in str(ChildFailedError("tool.py", {0: failure}))
    assert failure.error_file_data["message"]["extraInfo"]["printed"] == (local_rank == "0")
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]


def test_a_file_for_torchrun_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tool.py"])
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "missing" / "error.json"))
    with pytest.raises(SystemExit, match="^2$"):
        run_command(lambda: _end(UserError("no")))
    assert capsys.readouterr().err == "tool.py: error: no\n"


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
sys.unraisablehook(types.SimpleNamespace(exc_type=ValueError, exc_value=closed, object=NoCloseWriter()))
"""


def test_messages_of_torch_that_ask_for_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    with child([sys.executable, "-W", "ignore", "-c", TORCH], env=environment, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and "an error" in said and "a failed write" in said
    assert "No CUDA runtime" not in said and "closed file" not in said


IN_A_DESTRUCTOR = """
import time
from megatron.ltd.errors import run_command
class Ends:
    def __del__(self):
        raise KeyboardInterrupt
def main():
    ends = Ends()
    del ends
    time.sleep(60)
    print("not interrupted")
run_command(main)
"""
WHILE_IMPORTING = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "difflib":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
sys.argv[0] = "tools/tool.py"
import megatron.ltd.commands
"""


@pytest.mark.parametrize(("program", "name"), [(IN_A_DESTRUCTOR, "-c"), (WHILE_IMPORTING, "tool.py")])
def test_ctrl_c_at_odd_moments(program: str, name: str) -> None:
    """In a destructor, where Python prints a traceback and forgets it, and before a command can answer it."""
    with child([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, said) == (130, "", f"{name}: interrupted\n")


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


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_half_of_a_surrogate_pair_is_printed_as_an_escape(locale: str) -> None:
    """JSON can hold it, and a file of a user may: in the locale C Python's own streams do not take it."""
    code = "from megatron.ltd.errors import run_command; run_command(lambda: print('a \\ud800 \\udcff ü'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    ran = subprocess.run([sys.executable, "-c", code], env=environment | {"LC_ALL": locale}, capture_output=True)
    assert (ran.returncode, ran.stdout.decode(), ran.stderr) == (0, "a \\ud800 \\udcff ü\n", b"")
