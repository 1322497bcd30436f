"""What the log says when a file system becomes read-only or full under it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron.ltd.errors import RunStopped
from tests.support_errors import assert_names
from tests.support_log import log, step

READ_ONLY = SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID)


def test_a_file_system_that_becomes_read_only_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is on another one, so that nothing else notices before the next save."""
    save, statvfs = tmp_path / "save", os.statvfs
    save.mkdir()
    runs = [log(tmp_path / "log", save=save, log_interval=1), log(tmp_path / "no", enabled=False, save=save)]
    for iteration in range(1, 5):
        if iteration == 2:
            monkeypatch.setattr(os, "statvfs", lambda path: READ_ONLY if path == save else statvfs(path))
        for run in runs:
            run.train(step(iteration))
    for run in runs:
        run.close()
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in shown] == ["step", "step", "warning:", "step", "step"]
    assert_names(shown[2], f"--save {save}", "read-only", "next save")


@pytest.mark.parametrize(("number", "fix"), [(errno.EROFS, "can be written to"), (errno.ENOSPC, "free disk space")])
def test_a_log_that_cannot_be_written_names_what_helps(number: int, fix: str, tmp_path: Path) -> None:
    def write(text: str) -> None:
        raise OSError(number, os.strerror(number))

    run = log(tmp_path)
    run._metrics.close()
    run._metrics = SimpleNamespace(name="logs/metrics.jsonl", write=write)
    with pytest.raises(RunStopped) as stopped:
        run.train(step(1))
    assert_names(str(stopped.value), "logs/metrics.jsonl", os.strerror(number), fix, "--load")
    assert ("free disk space" in str(stopped.value)) == (number == errno.ENOSPC)
