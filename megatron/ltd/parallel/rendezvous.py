"""A part of the launcher's store that belongs to this start of the processes.

torchrun keeps one store over all restarts: what earlier processes wrote, such as their addresses, is still there, and a
process that reads it waits for a dead one. Counting restarts does not help, because each node counts its own. Therefore
the first rank draws a name for this start, and each other rank requests it with a token:

    rank r   start/r = its token          start/<token>?  -> the name       start/<name>/r = ""
    rank 0   start/r? -> token    start/<token> = the name    until start/<name>/r is there for every r

A token that a dead process left is answered too, which is harmless: its successor has another token.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist

from megatron.ltd.errors import RunStopped
from megatron.ltd.format import format_ranges

_POLL_SECONDS = 0.02


def store_of_this_launch(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """``store`` under a prefix that only the ranks of this start share.

    Every rank calls this. After ``timeout`` it raises ``RunStopped`` on rank 0, which names the missing ranks, and
    ``dist.DistError`` on the others.
    """
    if rank == 0:
        name = _assign_name(store, world_size, timeout)
    else:
        token = secrets.token_hex(8)
        store.set(f"start/{rank}", token)
        store.wait([f"start/{token}"], timeout)
        name = store.get(f"start/{token}").decode()
        store.set(f"start/{name}/{rank}", "")
    return dist.PrefixStore(name, store)


def _assign_name(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Draw a name, and answer requests until every other rank has it."""
    name = secrets.token_hex(8)
    answered: dict[int, bytes] = {}
    missing = list(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in missing:
            token = store.get(f"start/{rank}") if store.check([f"start/{rank}"]) else None
            if token is not None and token != answered.get(rank):
                store.set(f"start/{token.decode()}", name)
                answered[rank] = token
        missing = [rank for rank in missing if not store.check([f"start/{name}/{rank}"])]
        if missing and time.monotonic() > deadline:
            raise RunStopped(
                f"rank{'s' if len(missing) > 1 else ''} {format_ranges(missing)} of {world_size} did not start within "
                f"{timeout.total_seconds() / 60:g} minutes: check their logs; --distributed-timeout-minutes sets how "
                "long to wait"
            )
        if missing:
            time.sleep(_POLL_SECONDS)
    return name
