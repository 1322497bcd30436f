"""Two processes of this machine join a process group, as those of a run do, all-reduce a tensor and send one.

gloo is always tried, and NCCL if there is a GPU, with two processes if there are two GPUs. Not here: other nodes. To
check those, run a few steps with ``examples/launch``.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist

from megatron.ltd.doctor.finding import OK, WRONG, Finding
from megatron.ltd.errors import first_line

_SECONDS = 180.0
_ADVICE = {
    "gloo": "make sure that this machine's name resolves (/etc/hosts), or set GLOO_SOCKET_IFNAME to an interface",
    "nccl": "run again with NCCL_DEBUG=INFO; in a container make sure that GPUs can reach each other (--ipc=host)",
}


def check() -> Iterator[Finding]:
    """A finding for each backend that a run may use here."""
    yield exchange("gloo", 2)
    if torch.cuda.is_available():
        yield exchange("nccl", min(2, torch.cuda.device_count()))


def exchange(
    backend: str,
    world_size: int,
    seconds: float = _SECONDS,
    talk: Callable[[str, int, int], str | None] | None = None,
) -> Finding:
    """Run ``talk`` in ``world_size`` processes over ``backend``; they are killed after ``seconds``."""
    started = time.monotonic()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes, waiting = [], {}
    for rank in range(world_size):
        here, there = context.Pipe(duplex=False)
        arguments = (talk or _talk, backend, rank, world_size, store.port, there)
        processes.append(context.Process(target=_process, args=arguments, daemon=True))
        processes[-1].start()
        there.close()
        waiting[here] = rank
    complaint = None
    while waiting and complaint is None:
        ready = wait(list(waiting), max(0.0, started + seconds - time.monotonic()))
        complaint = None if ready else f"did not finish within {seconds:g} s"
        for connection in ready:
            rank = waiting.pop(connection)  # type: ignore[call-overload]
            complaint = complaint or _answer(connection, rank)  # type: ignore[arg-type]
    for process in processes:
        process.kill() if complaint else process.join()
    name, who = f"processes, {backend}", f"{world_size} process{'es' if world_size > 1 else ''}"
    if complaint is not None:
        return Finding(WRONG, name, f"{who} {complaint}", _ADVICE[backend])
    what = "add up and send" if world_size > 1 else "add up"
    return Finding(OK, name, f"{who} {what}, {time.monotonic() - started:.1f} s")


def _answer(connection: Connection, rank: int) -> str | None:
    try:
        complaint = connection.recv()
    except EOFError:
        return f"failed: rank {rank} died without a message"
    return None if complaint is None else f"failed on rank {rank} ({complaint})"


def _process(
    talk: Callable[[str, int, int], str | None], backend: str, rank: int, world_size: int, port: int, answer: Connection
) -> None:
    """One of the processes: join the group, run ``talk``, answer with the error or None."""
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=_SECONDS))
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        complaint = talk(backend, rank, world_size)
        dist.destroy_process_group()
    except Exception as error:  # whatever communication raises
        complaint = first_line(error)
    answer.send(complaint)


def _talk(backend: str, rank: int, world_size: int) -> str | None:
    """An all-reduce, then a tensor from rank 0 to rank 1."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    total = torch.full((1000,), float(rank + 1), device=device)
    dist.all_reduce(total)
    expected = world_size * (world_size + 1) / 2
    if not bool((total == expected).all()):
        return f"the sum of 1 to {world_size} came out as {total[0].item():g}"
    if world_size > 1:
        message = torch.arange(1000.0, device=device) * (rank == 0)
        if rank == 0:
            dist.send(message, 1)
        elif rank == 1:
            dist.recv(message, 0)
            if not torch.equal(message.cpu(), torch.arange(1000.0)):
                return "a tensor that rank 0 sent arrived changed"
    return None
