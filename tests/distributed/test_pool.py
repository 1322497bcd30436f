"""The pool itself: ranks in order, failures told whole, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.distributed.pool import JobFailed, Pool
from tests.support_processes import PATIENCE_SECONDS

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One of this file's own, as its tests break it."""
    with Pool() as pool:
        yield pool


def rank_and_sum(offset: int) -> tuple[int, int, int]:
    """This rank, the sum of all ranks' contributions, and the process."""
    dist.init_process_group("gloo")
    try:
        total = torch.tensor(offset + dist.get_rank())
        dist.all_reduce(total)
        return dist.get_rank(), int(total), os.getpid()
    finally:
        dist.destroy_process_group()


def fail_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has had enough")


def wait_on_rank_0_for_rank_1() -> None:
    """Rank 1 never joins."""
    if os.environ["RANK"] == "1":
        print("rank 1 sits", flush=True)
        sit()
    dist.init_process_group("gloo")


def sit() -> None:
    while True:
        time.sleep(0.1)


def leave() -> None:
    os._exit(7)


def start_a_sleeper() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def is_alive(process_id: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(process_ids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(is_alive, process_ids)):
        assert time.monotonic() < deadline, [found for found in process_ids if is_alive(found)]
        time.sleep(0.05)


def test_ranks_answer_in_order_and_workers_are_reused(pool: Pool) -> None:
    first = pool.run(rank_and_sum, 10, world_size=3)
    assert [answer[:2] for answer in first] == [(0, 33), (1, 33), (2, 33)]
    second = pool.run(rank_and_sum, 0, world_size=2)
    assert [answer[:2] for answer in second] == [(0, 1), (1, 1)]
    assert [answer[2] for answer in first[:2]] == [answer[2] for answer in second] == pool.process_ids[:2]


def test_a_failure_shows_the_ranks_traceback_and_ends_all_workers(pool: Pool) -> None:
    pool.run(rank_and_sum, 0, world_size=2)
    before = pool.process_ids
    with pytest.raises(JobFailed, match=r"(?s)rank 0 returned.*rank 1: .*in fail_on_rank_1.*rank 1 has had enough"):
        pool.run(fail_on_rank_1, world_size=2)
    assert_gone(before)
    assert len(pool.run(rank_and_sum, 0, world_size=2)) == 2


def test_a_stuck_job_shows_every_ranks_stack(pool: Pool) -> None:
    with pytest.raises(JobFailed) as failure:
        pool.run(wait_on_rank_0_for_rank_1, world_size=2, seconds=3.0)
    rank_0, rank_1 = str(failure.value).split("--- rank ")[1:]
    assert "did not return" in rank_0 and "in init_process_group" in rank_0
    assert "did not return" in rank_1 and "in sit" in rank_1 and "rank 1 sits" in rank_1
    assert len(pool.run(rank_and_sum, 0, world_size=2)) == 2


def test_a_death_is_told(pool: Pool) -> None:
    with pytest.raises(JobFailed, match="rank 0: died with exit code 7"):
        pool.run(leave, world_size=1)


def test_closing_takes_along_what_jobs_started() -> None:
    with Pool() as pool:
        started = pool.run(start_a_sleeper, world_size=1)
        found = [*pool.process_ids, *started]
        assert all(map(is_alive, found))
    assert_gone(found)


def _start_and_wait(connection: multiprocessing.connection.Connection) -> None:
    pool = Pool()
    connection.send([*pool.run(start_a_sleeper, world_size=2), *pool.process_ids])
    sit()


def test_workers_leave_when_their_parent_is_killed() -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    parent = multiprocessing.get_context("spawn").Process(target=_start_and_wait, args=(there,))
    parent.start()
    try:
        assert here.poll(60)
        found = here.recv()
        assert len(found) == 4 and all(map(is_alive, found))
    finally:
        os.kill(parent.pid or 0, signal.SIGKILL)
        parent.join()
    assert_gone(found)
