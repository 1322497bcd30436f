"""Disks that are full, out of inodes or read-only: small file systems in memory, in a namespace of a child's own.

Nothing outside the child sees them. ``why_not`` says why a machine does not let us.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_ENOUGH_INODES = 100_000
_UNUSED_USER = 54321
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 16384, 1 << 18


def enter() -> None:
    """Move this process, which must have one thread, to its own user and mount namespaces. Raises ``OSError``."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), None, _RECURSIVE | _PRIVATE, "")


def mount_memory(folder: Path, num_bytes: int, num_inodes: int = _ENOUGH_INODES) -> None:
    """Mount a file system of this size at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", 0, _options(num_bytes, num_inodes))


def change(folder: Path, num_bytes: int, num_inodes: int = _ENOUGH_INODES, *, read_only: bool = False) -> None:
    """Give the file system at ``folder`` another size, or make it read-only."""
    _mount("tmpfs", folder, "tmpfs", _REMOUNT | (_READ_ONLY if read_only else 0), _options(num_bytes, num_inodes))


def give_up_rights() -> None:
    """Drop the rights of root, so that closed files are closed to this process too. Raises ``OSError``."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, none)


def become_limited() -> None:
    """Give up the rights of root, and let limits of processes count, as for any other user. Raises ``OSError``.

    Only the real user is another one, so that the files of root stay writable.
    """
    if os.getuid() == 0:
        os.setresuid(_UNUSED_USER, 0, 0)
    give_up_rights()


def _options(num_bytes: int, num_inodes: int) -> str:
    return f"size={num_bytes},nr_inodes={num_inodes}"


def _mount(source: str, folder: Path, kind: str | None, flags: int, options: str) -> None:
    _call("mount", source.encode(), bytes(folder), kind and kind.encode(), ctypes.c_ulong(flags), options.encode())


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
