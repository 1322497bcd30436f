"""What the machine denies a command: a file, a process, memory, a name. In one line, with what helps.

A limit of open files or of processes that is too low is raised as far as the system allows. No torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
from pathlib import Path

_WANTED_FILES, _FEWEST_FILES = 4096, 128
_WANTED_PROCESSES, _FEWEST_PROCESSES = 4096, 64  # one process that trains starts about 50 threads
_PATHS = {
    errno.EACCES: "use a path that you have permission for",
    errno.EPERM: "use a path that you have permission for",
    errno.ELOOP: "remove the link",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENOTDIR: "use another path",
    errno.EISDIR: "use the path of a file",
    errno.ENOSPC: "free disk space, or use another disk",
    errno.EDQUOT: "free disk space, or use another disk",
    errno.EFBIG: "raise the limit of file size (ulimit -f), or use another disk",
    errno.EROFS: "use a disk that can be written to",
    errno.EIO: "check the disk, and restore the file from a copy",
}
_LONGEST_NAME = 200
_FILES = "raise the limit of open files, as with ulimit -n 4096"
_NO_PROCESS = r"can't start new thread|Resource temporarily unavailable"
_MEMORY = "use a smaller model, --micro-batch-size or --seq-length, or more processes; --plan shows the memory of a run"
_TEXTS = {
    r"[Tt]oo many open files": _FILES,
    r"can't allocate memory|not enough memory|[Oo]ut of memory|bad_alloc|Cannot allocate memory": _MEMORY,
    r"Symlink loop": _PATHS[errno.ELOOP],
}


def fix_of(number: int | None) -> str:
    """What helps against the error of a file with this ``errno``, as far as it is known."""
    return _PATHS.get(number or 0, "free disk space, or use another folder")


def is_read_only(folder: Path) -> bool:
    """Whether the file system of ``folder`` can be read only; False if that cannot be found out."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def denied(error: BaseException) -> str | None:
    """The line for an error of the machine; None for any other error."""
    if isinstance(error, MemoryError):
        return f"out of memory; {_MEMORY}"
    if isinstance(error, OSError) and error.errno in _PATHS:
        return f"{error.filename or 'a file'}: {error.strerror}; {_PATHS[error.errno]}"
    if isinstance(error, UnicodeEncodeError):
        return _not_utf8(error)
    if not isinstance(error, (OSError, RuntimeError)):
        return None
    text = str(error)
    if re.search(_NO_PROCESS, text):
        return f"{_first_line(text)}; {_about_processes()}"
    fix = next((fix for pattern, fix in _TEXTS.items() if re.search(pattern, text)), None)
    return fix and f"{_first_line(text)}; {fix}"


def _not_utf8(error: UnicodeEncodeError) -> str | None:
    """The line for a name or a word of the command line in another encoding, where a library takes UTF-8 only."""
    if not re.match("[\udc80-\udcff]", error.object[error.start]):  # how Python writes such a byte
        return None
    before, after = error.object[: error.start].split()[-1:], error.object[error.start :].split()[0]
    word = f"{before[0] if before and not error.object[error.start - 1].isspace() else ''}{after}"
    return f"{word[:_LONGEST_NAME]}: is not UTF-8; rename the file or folder, or type the text in UTF-8"


def _first_line(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first.partition(" Exception raised from")[0].rstrip(".")


def _about_processes() -> str:
    """The limit of processes and threads, how many are wanted, and what helps."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or limit >= _WANTED_PROCESSES:
        return "the machine or the container allows no more processes and threads: stop other ones, or raise its limit"
    return (
        f"the limit of processes and threads of this user is {limit} (ulimit -u), and {_WANTED_PROCESSES} are wanted; "
        "raise it, or stop other ones"
    )


def limits_problem() -> str | None:
    """Allow this process more open files, processes and threads, as far as the system does; what is wrong if these are
    too few, or None. The limit of processes does not count for root.
    """
    limits = [(resource.RLIMIT_NOFILE, "open files", "n", _WANTED_FILES, _FEWEST_FILES)]
    if os.getuid() != 0:
        name = "processes and threads of this user"
        limits.append((resource.RLIMIT_NPROC, name, "u", _WANTED_PROCESSES, _FEWEST_PROCESSES))
    for limit, name, letter, wanted, fewest in limits:
        soft, hard = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            continue
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed < fewest:
            return f"the limit of {name} is {allowed} (ulimit -H -{letter}), and a command needs {fewest}; raise it"
        resource.setrlimit(limit, (max(soft, allowed), hard))
    return None


def memory_bytes() -> int:
    """The memory that processes of this machine, or of this container, can have."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit, or another system
        return total


def free_memory_bytes() -> int:
    """How much of ``memory_bytes`` no process uses now, or only as a cache of files."""
    free = memory_bytes()
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free = min(free, 1024 * int(found[1])) if found else free
    with contextlib.suppress(OSError, ValueError):  # no limit of the container, or another system
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, limit - used))
    return free
