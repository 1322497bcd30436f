"""What the machine denies a command: a file, a process, memory. In one line, with what helps.

A limit of open files that is too low is raised as far as the system allows. No torch.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path

_WANTED_FILES, _FEWEST_FILES = 4096, 128
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
_FILES = "raise the limit of open files, as with ulimit -n 4096"
_PROCESSES = "raise the limit of processes, as with ulimit -u 4096, or stop other ones"
_MEMORY = "use a smaller model, --micro-batch-size or --seq-length, or more processes; --plan shows the memory of a run"
_TEXTS = {
    r"[Tt]oo many open files": _FILES,
    r"can't start new thread|Resource temporarily unavailable": _PROCESSES,
    r"can't allocate memory|not enough memory|[Oo]ut of memory|bad_alloc|Cannot allocate memory": _MEMORY,
    r"Symlink loop": _PATHS[errno.ELOOP],
}


def denied(error: BaseException) -> str | None:
    """The line for an error of the machine; None for any other error."""
    if isinstance(error, MemoryError):
        return f"out of memory; {_MEMORY}"
    if isinstance(error, OSError) and error.errno in _PATHS:
        return f"{error.filename or 'a file'}: {error.strerror}; {_PATHS[error.errno]}"
    if not isinstance(error, (OSError, RuntimeError)):
        return None
    text = str(error)
    fix = next((fix for pattern, fix in _TEXTS.items() if re.search(pattern, text)), None)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return fix and f"{first.partition(' Exception raised from')[0].rstrip('.')}; {fix}"


def open_files_problem() -> str | None:
    """Allow this process more open files, as far as the system does; what is wrong if these are too few, or None."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _WANTED_FILES:
        return None
    allowed = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if allowed < _FEWEST_FILES:
        return f"the limit of open files is {allowed} (ulimit -H -n), and a command needs {_FEWEST_FILES}; raise it"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    return None


def memory_bytes() -> int:
    """The memory that processes of this machine, or of this container, can have."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit, or another system
        return total
