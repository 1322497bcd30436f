"""Finds processes that were started differently, before they wait for each other, and reports an error of one process
on all of them.

    join -> agree_over_store      versions, sources, device, flags: over the rendezvous store, before any collective
    together, agree               files that a node does not have, or that differ: over the process group, later

Facts are compared: names and values of plain types. The first difference is reported with both values and the ranks
that have them, on every rank, so that each exits with the same line. Flags that may differ between nodes are left out
by the caller (``RunConfig.shared_flags``).

Not here: processes that die later (``contact``).
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron.ltd.errors import RunStopped, UserError, first_line
from megatron.ltd.flags import shown
from megatron.ltd.format import format_ranges
from megatron.ltd.machine import denied
from megatron.ltd.parallel.rendezvous import store_of_this_launch

_LAST_WORD_SECONDS = 15.0  # how long the first rank waits for the others to read why the run ends
_FOLDER_SECONDS = 60.0  # how long a network file system may show a node an older state of a folder


def join(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The rendezvous store of the processes that a launcher started, this process's rank, and the number of processes.

    Raises ``UserError`` if the launcher's environment variables are missing or wrong, and ``RunStopped`` if the
    processes do not meet in time.
    """
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        return store_of_this_launch(store, rank, world_size, timeout), rank, world_size
    except ValueError as error:  # a variable that is missing, or not a number
        raise UserError(
            f"RANK and WORLD_SIZE are set, but the processes cannot connect ({first_line(error)}): start them with "
            "torchrun, or also set MASTER_ADDR and MASTER_PORT"
        ) from None
    except dist.DistError as error:
        raise RunStopped(
            f"not all processes met within {timeout.total_seconds() / 60:g} minutes ({first_line(error)}): check that "
            "every node was started, with the same MASTER_ADDR and MASTER_PORT, and that no firewall is between them"
        ) from None


@dataclass(frozen=True)
class Stated:
    """What a process states about itself before it joins the others."""

    facts: Mapping[str, Any]
    """must be equal on all"""
    own_device: str | None = None
    """the identity of a device that no other process may use, or None"""
    problem: str | None = None
    """why the process cannot take part, or None"""


def agree_over_store(store: dist.Store, rank: int, world_size: int, stated: Stated, timeout: timedelta) -> None:
    """Compare what all processes state.

    Returns if all facts are equal and no process has a problem. Otherwise raises the same error on every rank:
    ``UserError`` for a problem, a difference or a shared device, ``RunStopped`` for ranks that did not arrive within
    ``timeout``.
    """
    store = dist.PrefixStore("agreement", store)
    store.set(f"facts/{rank}", json.dumps({"host": socket.gethostname(), **asdict(stated)}))
    if rank == 0:
        kind, message = _verdict(store, world_size, timeout)
        store.set("verdict", json.dumps([kind, message]))
        if message:  # the store may be in this process: wait until the others have read it
            with suppress(dist.DistError):
                came = [other for other in range(1, world_size) if store.check([f"facts/{other}"])]
                store.wait([f"read/{other}" for other in came], timedelta(seconds=_LAST_WORD_SECONDS))
    else:
        kind, message = _read_verdict(store, timeout)
        if message:
            store.set(f"read/{rank}", "")
    if message:
        raise {"user": UserError, "stopped": RunStopped}[kind](message)


def _verdict(store: dist.Store, world_size: int, timeout: timedelta) -> tuple[str, str]:
    """The result of the comparison, on the first rank: the kind of error and its line, which is empty without one."""
    keys = [f"facts/{rank}" for rank in range(world_size)]
    try:
        store.wait(keys, timeout)
    except dist.DistError:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        return "stopped", (
            f"{_ranks(missing)} of {world_size} did not start within {timeout.total_seconds() / 60:g} minutes: check "
            "their logs; --distributed-timeout-minutes sets how long to wait"
        )
    stated = [json.loads(store.get(key)) for key in keys]
    hosts = [one["host"] for one in stated]
    message = (
        _one_problem([one["problem"] for one in stated], hosts)
        or first_difference([one["facts"] for one in stated], hosts)
        or _shared_device([one["own_device"] for one in stated], hosts)
    )
    return "user", message or ""


def _read_verdict(store: dist.Store, timeout: timedelta) -> tuple[str, str]:
    try:
        store.wait(["verdict"], timeout + timedelta(seconds=_LAST_WORD_SECONDS))
        kind, message = json.loads(store.get("verdict"))
    except dist.DistError as error:
        return "stopped", f"rank 0 did not start, or has ended ({first_line(error)}): see its own message"
    return kind, message


@contextmanager
def together() -> Iterator[None]:
    """A block that ends in the same way on every rank: a ``UserError`` on one rank, or a file that the machine denies
    it, is raised on all.

    Every rank must enter the block, and nothing inside may wait for another rank.
    """
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = denied(error)
        if problem is None:
            raise
    everyone = exchange((socket.gethostname(), problem))
    message = _one_problem([problem for _, problem in everyone], [host for host, _ in everyone])
    if message is not None:
        raise UserError(message)


def problem_of_any(problem: str | None) -> str | None:
    """The problem of the first rank that has one, or None. Every rank calls this."""
    return next((found for found in exchange(problem) if found is not None), None)


def agree(facts: Mapping[str, Any], fix: str) -> None:
    """Raise ``UserError`` for facts that differ between ranks; ``fix`` is the advice. Every rank calls this."""
    everyone = exchange((socket.gethostname(), dict(facts)))
    message = first_difference([theirs for _, theirs in everyone], [host for host, _ in everyone], fix)
    if message is not None:
        raise UserError(message)


def agree_on_folder(look: Callable[[], Mapping[str, Any]], fix: str) -> None:
    """As ``agree``, for facts about a folder that ``look`` reads. Every rank calls this.

    A network file system may show a folder as it was up to a minute ago, so that a difference must last that long.
    """
    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        everyone = exchange((socket.gethostname(), dict(look()), time.monotonic() > deadline))
        facts, hosts = [theirs for _, theirs, _ in everyone], [host for host, _, _ in everyone]
        message = first_difference(facts, hosts, fix)
        if message is None:
            return
        if everyone[0][2]:  # the first rank's clock, so that all ranks stop in the same round
            raise UserError(message)
        time.sleep(1.0)


def exchange(own: Any) -> list[Any]:
    """The objects of all ranks, by rank. Every rank calls this."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def first_difference(facts: Sequence[Mapping[str, Any]], hosts: Sequence[str], fix: str | None = None) -> str | None:
    """One line about the first fact in which some ranks differ from rank 0, or None. Indices are ranks.

    Without ``fix`` the advice depends on the fact.
    """
    names = list(dict.fromkeys(name for one in facts for name in one))
    differing = [name for name in names if any(_value(one, name) != _value(facts[0], name) for one in facts)]
    if not differing:
        return None
    name = differing[0]
    values = [_value(one, name) for one in facts]
    odd = next(value for value in values if value != values[0])
    others = [rank for rank, value in enumerate(values) if value == odd]
    also = f" ({len(differing) - 1} more differ: {', '.join(differing[1:4])})" if len(differing) > 1 else ""
    return (
        f"{name} is {values[0]} on {_on([0], hosts, hosts[others[0]])} and {odd} on {_on(others, hosts, hosts[0])}"
        f"{also}: {fix or _fix(name)}"
    )


def _value(facts: Mapping[str, Any], name: str) -> str:
    return shown(facts[name]) if name in facts else "unknown"


def _fix(name: str) -> str:
    if name.startswith("--"):
        return "start every process with the same flags"
    if name == "the device":
        return "start every process on the same kind of device, or name it with --device"
    if name == "WORLD_SIZE":
        return "start all processes of a run through one launcher"
    return "give every node the same version"


def _one_problem(problems: Sequence[str | None], hosts: Sequence[str]) -> str | None:
    """The problem of the lowest rank that has one, with the ranks that have it unless all do, or None."""
    message = next((problem for problem in problems if problem is not None), None)
    if message is None or all(problem == message for problem in problems):
        return message
    ranks = [rank for rank, problem in enumerate(problems) if problem == message]
    return f"{message} (on {_on(ranks, hosts, None)}; not on all of the {len(problems)} processes)"


def _shared_device(devices: Sequence[str | None], hosts: Sequence[str]) -> str | None:
    """One line about the first device that several ranks would use, or None."""
    for device in dict.fromkeys(devices):
        ranks = [rank for rank, own in enumerate(devices) if own == device]
        if device is not None and len(ranks) > 1:
            return (
                f"{_on(ranks, hosts, None)} would use the same CUDA device ({device}): start at most one process per "
                "device, and let each see its own or all of them"
            )
    return None


def _on(ranks: Sequence[int], hosts: Sequence[str], known_host: str | None) -> str:
    """The ranks, and their hosts unless all are on ``known_host``."""
    names = list(dict.fromkeys(hosts[rank] for rank in ranks))
    if names == [known_host] or len(set(hosts)) == 1:
        return _ranks(ranks)
    return f"{_ranks(ranks)} (host {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _ranks(ranks: Sequence[int]) -> str:
    """Ascending ranks as text: ``rank 3``, ``ranks 4-7, 9``."""
    spelled = format_ranges(ranks).split(",")
    text = ", ".join(spelled[:4]) + (", ..." if len(spelled) > 4 else "")
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {text}"
