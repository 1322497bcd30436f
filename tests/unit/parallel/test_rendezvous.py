"""Processes that restart with the same store find each other, and not those of an earlier start."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron.ltd.errors import RunStopped
from megatron.ltd.parallel.rendezvous import store_of_this_launch
from tests.support_errors import refused
from tests.support_processes import PATIENCE_SECONDS

LONG = timedelta(seconds=PATIENCE_SECONDS)


def start(store: dist.Store, world_size: int, first_last: bool) -> list[dist.Store]:
    """The stores of all ranks of one start, in which rank 0 starts first or last."""

    def one(rank: int) -> dist.Store:
        time.sleep(0.1 if first_last == (rank == 0) else 0.0)
        return store_of_this_launch(store, rank, world_size, LONG)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))


def assert_shared(stores: list[dist.Store], key: str) -> None:
    for rank, store in enumerate(stores):
        assert not store.check([f"{key}{rank}"])
        store.set(f"{key}{rank}", str(rank))
    assert all(store.check([f"{key}{rank}" for rank in range(len(stores))]) for store in stores)


@pytest.mark.parametrize("first_last", [True, False])
def test_each_start_sees_only_its_own_keys(first_last: bool) -> None:
    shared = dist.HashStore()
    for _ in range(3):
        assert_shared(start(shared, 3, first_last), "address")


@pytest.mark.parametrize("first_last", [True, False])
def test_a_process_that_died_while_it_started(first_last: bool) -> None:
    """Rank 1 of the first start stored its token and died; rank 1 of the next start must not be mistaken for it."""
    shared = dist.HashStore()
    shared.set("start/1", "0123456789abcdef")
    assert_shared(start(shared, 2, first_last), "address")


def test_one_process_alone() -> None:
    assert_shared([store_of_this_launch(dist.HashStore(), 0, 1, LONG)], "address")


def test_missing_ranks_are_named() -> None:
    with refused("ranks 1-2,4 of 5", "0.005 minutes", "--distributed-timeout-minutes", error=RunStopped):
        shared = dist.HashStore()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(store_of_this_launch, shared, 3, 5, LONG)
            store_of_this_launch(shared, 0, 5, timedelta(seconds=0.3))


def test_a_missing_rank_0_is_an_error() -> None:
    with pytest.raises(dist.DistError):
        store_of_this_launch(dist.HashStore(), 1, 2, timedelta(seconds=0.2))
