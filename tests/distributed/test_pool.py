"""Tests of the pool: results in rank order, failures reported in full, and no processes left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.distributed import pool as pool_module
from tests.distributed.pool import JobFailed, Pool
from tests.support_processes import PATIENCE_SECONDS

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """A pool for this file alone, because its tests make jobs fail."""
    with Pool() as pool:
        yield pool


def rank_and_sum(offset: int) -> tuple[int, int, int]:
    """This rank, the sum over all ranks, and the process id."""
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
    """Rank 0 waits for rank 1, which never joins the process group."""
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
    """Whether the process exists and is not a zombie."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(process_ids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(is_alive, process_ids)):
        assert time.monotonic() < deadline, [found for found in process_ids if is_alive(found)]
        time.sleep(0.05)


def test_results_are_in_rank_order_from_new_processes(pool: Pool) -> None:
    first = pool.run(rank_and_sum, 10, world_size=3)
    assert [answer[:2] for answer in first] == [(0, 33), (1, 33), (2, 33)]
    second = pool.run(rank_and_sum, 0, world_size=2)
    assert [answer[:2] for answer in second] == [(0, 1), (1, 1)]
    process_ids = [answer[2] for answer in (*first, *second)]
    assert len(set(process_ids)) == 5
    assert_gone(process_ids)


def test_a_failure_shows_the_ranks_traceback(pool: Pool) -> None:
    with pytest.raises(JobFailed, match=r"(?s)rank 0 returned.*rank 1: .*in fail_on_rank_1.*rank 1 has had enough"):
        pool.run(fail_on_rank_1, world_size=2)
    assert len(pool.run(rank_and_sum, 0, world_size=2)) == 2


def test_a_stuck_job_shows_every_ranks_stack(pool: Pool) -> None:
    """The limit must be long enough for the ranks to get stuck, which depends on the machine; so several are tried."""
    for seconds in (3.0, 30.0, 300.0):
        with pytest.raises(JobFailed) as failure:
            pool.run(wait_on_rank_0_for_rank_1, world_size=2, seconds=seconds)
        rank_0, rank_1 = str(failure.value).split("--- rank ")[1:]
        if "in init_process_group" in rank_0 and "rank 1 sits" in rank_1:
            break
    assert "did not return" in rank_0 and "in init_process_group" in rank_0
    assert "did not return" in rank_1 and "in sit" in rank_1 and "rank 1 sits" in rank_1
    assert len(pool.run(rank_and_sum, 0, world_size=2)) == 2


def test_the_exit_code_of_a_dead_rank_is_reported(pool: Pool) -> None:
    with pytest.raises(JobFailed, match="rank 0: died with exit code 7"):
        pool.run(leave, world_size=1)


def test_processes_that_a_job_started_are_killed(pool: Pool) -> None:
    assert_gone(pool.run(start_a_sleeper, world_size=1))


def write_process_ids_and_wait(file: str) -> None:
    """Append the ids of this process and of one that it started to ``file``, and wait forever."""
    with open(file, "a") as told:
        told.write(f"{os.getpid()} {start_a_sleeper()}\n")
    sit()


def _start_and_wait(file: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "_PRELOAD", ["torch"])  # these ranks need no more
        Pool().run(write_process_ids_and_wait, file, world_size=2)


def test_ranks_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    told.touch()
    parent = multiprocessing.get_context("spawn").Process(target=_start_and_wait, args=(str(told),))
    parent.start()
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := [int(word) for word in told.read_text().split()]) < 4:
            assert parent.is_alive() and time.monotonic() < deadline
            time.sleep(0.1)
        assert all(map(is_alive, found))
    finally:
        os.kill(parent.pid or 0, signal.SIGKILL)
        parent.join()
    assert_gone(found)
