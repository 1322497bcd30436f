"""Errors of the machine give one line and exit status 2: permissions, links, open files, memory."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from megatron.ltd.errors import run_command
from megatron.ltd.machine import denied, free_memory_bytes, limits_problem, memory_bytes
from tests.support_errors import assert_names, assert_refused


def _encode_error(text: str) -> UnicodeEncodeError:
    with pytest.raises(UnicodeEncodeError) as caught:
        text.encode()
    return caught.value


ERRORS = {
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/closed/x"), ["/closed/x", "Permission denied"]),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), ["No space left on device"]),
    "size": (OSError(errno.EFBIG, "File too large", "a.bin"), ["a.bin", "File too large", "ulimit -f"]),
    "descriptors": (RuntimeError("[enforce fail] pipe2: Too many open files\nmore"), ["ulimit -n"]),
    "memory": (MemoryError(), ["out of memory", "--micro-batch-size"]),
    "allocator": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
        ["9 bytes", "--plan"],
    ),
    "name": (_encode_error("open the file /data/ann\udce9es/x.bin"), ["/data/ann", "es/x.bin", "not UTF-8"]),
    "word": (_encode_error("\udcff"), ["not UTF-8"]),
    "links": (RuntimeError("Symlink loop from '/a'"), ["/a"]),
}


@pytest.mark.parametrize(("error", "names"), ERRORS.values(), ids=ERRORS.keys())
def test_lines_of_the_machine(error: BaseException, names: list[str]) -> None:
    line = denied(error)
    assert line is not None and "\n" not in line and all(name in line for name in names), line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")],
    ids=["threads", "fork"],
)
def test_few_processes(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says the limit, the number that is wanted, and what to do; without a limit, that there is another."""
    for limit, names in ((50, ["50", "ulimit -u", "4096", "raise it"]), (resource.RLIM_INFINITY, ["the container"])):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        line = denied(error)
        assert line is not None
        assert_names(line, str(error), *names)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), FileNotFoundError(2, "none", "x"), ValueError("open"), _encode_error("\ud800")],
)
def test_other_errors_keep_their_traceback(error: BaseException) -> None:
    assert denied(error) is None


def test_memory() -> None:
    assert 1 << 26 < memory_bytes() < 1 << 50
    assert 0 < free_memory_bytes() <= memory_bytes()


@pytest.mark.parametrize(
    ("limit", "used", "free"), [(None, None, 4096000), ("max", "9", 4096000), ("3000000", "1000000", 2000000)]
)
def test_free_memory(limit: str | None, used: str | None, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the machine, or what is left of the container's limit."""
    group = "/sys/fs/cgroup/memory."
    texts: dict[str, str | None] = {f"{group}max": limit, f"{group}current": used}
    texts["/proc/meminfo"] = "MemFree: 7 kB\nMemAvailable:   4000 kB\n"

    def read_text(path: Path) -> str:
        text = texts[str(path)]
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert free_memory_bytes() == free


def test_a_limit_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised as far as the system allows, and refused below what a run starts; root has none."""
    raised: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: raised.append(limit))
    for uid, soft, hard, expected in ((1, 20, 500, 500), (1, 20, resource.RLIM_INFINITY, 4096), (0, 20, 20, None)):
        monkeypatch.setattr("os.getuid", lambda uid=uid: uid)
        found = {resource.RLIMIT_NOFILE: (9999, 9999), resource.RLIMIT_NPROC: (soft, hard)}
        monkeypatch.setattr(resource, "getrlimit", lambda limit, found=found: found[limit])
        raised.clear()
        assert limits_problem() is None
        assert raised == ([(resource.RLIMIT_NPROC, (expected, hard))] if expected else [])
    monkeypatch.setattr("os.getuid", lambda: 1)
    found[resource.RLIMIT_NPROC] = (12, 12)
    assert_names(limits_problem() or "", "12", "64", "ulimit -H -u", "raise it")


def test_few_open_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (40, 40))
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: pytest.fail("the command began"))
    assert_refused(int(str(ended.value)), capsys.readouterr().err, "open files", 40, 128, "ulimit -H -n")
