"""Ranks that were started differently are found through the rendezvous store, and all end with the same line.

Every rank is a thread, and they share a real store of torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from megatron.ltd.errors import RunStopped, UserError
from megatron.ltd.parallel import agreement
from tests.support_errors import assert_names
from tests.support_processes import PATIENCE_SECONDS

FACTS = {"torch": "2.13.0", "the device": "cpu", "--lr": 0.001, "--sequence-parallel": False, "--seed": 5}
SOON = timedelta(seconds=PATIENCE_SECONDS)


def ends(body: Callable[[int], None], ranks: Sequence[int]) -> dict[int, BaseException | None]:
    """Run ``body`` on all ranks at once, and return how it ended on each."""
    ended: dict[int, BaseException | None] = {}

    def run(rank: int) -> None:
        try:
            body(rank)
            ended[rank] = None
        except BaseException as error:
            ended[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ended.keys() == set(ranks), "a rank still waits"
    return ended


def over_store(
    facts: Sequence[dict[str, Any] | None],
    problems: dict[int, str] | None = None,
    timeout: timedelta = SOON,
    devices: dict[int, str] | None = None,
) -> dict[int, BaseException | None]:
    """Run ``agree_over_store`` with one entry per rank; a rank whose facts are None never starts."""
    store = dist.HashStore()

    def body(rank: int) -> None:
        problem = (problems or {}).get(rank)
        stated = agreement.Stated(facts[rank] or {}, (devices or {}).get(rank), problem)
        agreement.agree_over_store(store, rank, len(facts), stated, timeout)

    return ends(body, [rank for rank, mine in enumerate(facts) if mine is not None])


def the_line(ended: dict[int, BaseException | None], kind: type[BaseException] = UserError) -> str:
    """The error line with which all ranks ended."""
    lines = {str(error) for error in ended.values()}
    assert len(lines) == 1 and all(type(error) is kind for error in ended.values()), ended
    (line,) = lines
    assert "\n" not in line
    return line


def test_ranks_that_were_started_alike_continue() -> None:
    assert set(over_store([FACTS] * 4).values()) == {None}
    assert set(over_store([FACTS] * 4, devices={0: "a", 1: "b", 2: "c", 3: "d"}).values()) == {None}


def test_a_device_has_one_process() -> None:
    """Each process sees one device, and two see the same: a launcher that gave each its own would not have done it."""
    line = the_line(over_store([FACTS] * 4, devices={0: "a", 1: "b", 2: "c", 3: "b"}))
    assert line.startswith("ranks 1, 3 would use the same CUDA device (b): start at most one process per device")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("--lr", 0.002, "--lr is 0.001 on rank 0 and 0.002 on rank 2: start every process with the same flags"),
        ("--sequence-parallel", True, "--sequence-parallel is not given on rank 0 and given on rank 2: start"),
        ("torch", "2.12.1", "torch is 2.13.0 on rank 0 and 2.12.1 on rank 2: give every node the same version"),
        ("the device", "cuda", "the device is cpu on rank 0 and cuda on rank 2: start every process on the same kind"),
        ("--new-flag", 1, "--new-flag is unknown on rank 0 and 1 on rank 2: start"),
    ],
)
def test_one_rank_differs(name: str, value: Any, line: str) -> None:
    assert the_line(over_store([FACTS, FACTS, {**FACTS, name: value}])).startswith(line)


def test_several_differences_and_several_ranks() -> None:
    other = {**FACTS, "--lr": 0.002, "--seed": 6}
    line = the_line(over_store([FACTS, other, other, FACTS, other]))
    assert line.startswith("--lr is 0.001 on rank 0 and 0.002 on ranks 1-2, 4 (1 more differ: --seed): ")


def test_hosts_are_named_where_there_are_several() -> None:
    line = agreement.first_difference([FACTS, FACTS, {**FACTS, "torch": "2.12.1"}], ["a", "a", "b"])
    assert line is not None and line.startswith("torch is 2.13.0 on rank 0 (host a) and 2.12.1 on rank 2 (host b): ")


def test_one_ranks_problem_ends_all() -> None:
    line = the_line(over_store([FACTS] * 3, {1: "no CUDA here: use --device cpu"}))
    assert line == "no CUDA here: use --device cpu (on rank 1; not on all of the 3 processes)"


def test_a_problem_of_all_processes_is_reported_as_of_one() -> None:
    assert the_line(over_store([FACTS] * 2, dict.fromkeys((0, 1), "3 processes: start 2"))) == "3 processes: start 2"


def test_a_rank_that_does_not_start_is_named() -> None:
    started = time.monotonic()
    line = the_line(over_store([FACTS, None, FACTS, None, None], timeout=timedelta(seconds=0.6)), RunStopped)
    assert_names(line, "ranks 1, 3-4 of 5", "0.01 minutes", "--distributed-timeout-minutes")
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_missing_rank_0_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_LAST_WORD_SECONDS", 0.1)
    line = the_line(over_store([None, FACTS], timeout=timedelta(seconds=0.2)), RunStopped)
    assert_names(line, "rank 0")


def test_the_first_rank_stays_until_its_verdict_is_read() -> None:
    """The store may be in the process of rank 0."""
    store = dist.HashStore()
    first_rank_left = []

    def body(rank: int) -> None:
        try:
            agreement.agree_over_store(store, rank, 2, agreement.Stated({"--seed": rank}), SOON)
        finally:
            first_rank_left.append(rank)

    reader = dist.PrefixStore("agreement", store)
    first = threading.Thread(target=lambda: ends(body, [0]))
    first.start()
    reader.set("facts/1", '{"host": "b", "problem": null, "facts": {"--seed": 1}}')
    reader.wait(["verdict"], SOON)
    time.sleep(0.3)
    assert first_rank_left == []
    reader.set("read/1", "")
    first.join(10)
    assert first_rank_left == [0]


@pytest.mark.parametrize(
    ("environment", "kind", "line"),
    [
        (
            {},
            UserError,
            "RANK and WORLD_SIZE are set, but the processes cannot connect .*MASTER_ADDR expected.*torchrun",
        ),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "many"}, UserError, "cannot connect .*'many'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}, RunStopped, "not all .* met .*1/2"),
    ],
    ids=["no address", "no port", "alone"],
)
def test_the_launchers_environment(
    environment: dict[str, str], kind: type[BaseException], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=line) as caught:
        agreement.join(timedelta(seconds=1))
    assert "\n" not in str(caught.value)


class Ranks:
    """Replaces the exchange over a process group by one between threads."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size, self._barrier, self._slots = size, threading.Barrier(size, timeout=PATIENCE_SECONDS), [None] * size
        self.rank = threading.local()
        monkeypatch.setattr(agreement, "exchange", self.exchange)

    def exchange(self, own: Any) -> list[Any]:
        self._slots[self.rank.value] = own
        self._barrier.wait()
        everyone = list(self._slots)
        self._barrier.wait()
        return everyone

    def end(self, body: Callable[[int], None]) -> dict[int, BaseException | None]:
        def run(rank: int) -> None:
            self.rank.value = rank
            body(rank)

        return ends(run, range(self.size))


def test_an_error_on_some_ranks_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rank: int) -> None:
        with agreement.together():
            if rank in (1, 2):
                raise UserError("--data-path x: x.bin does not exist: run preprocess_data.py")

    line = the_line(Ranks(4, monkeypatch).end(body))
    assert line.startswith("--data-path x: x.bin does not exist")
    assert line.endswith("(on ranks 1-2; not on all of the 4 processes)")
    assert set(Ranks(2, monkeypatch).end(lambda rank: body(0)).values()) == {None}


def test_together_in_one_process_adds_nothing() -> None:
    with pytest.raises(UserError, match="^just this$"), agreement.together():
        raise UserError("just this")


def test_facts_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(3, monkeypatch)
    assert set(ranks.end(lambda rank: agreement.agree({"the data": "ab"}, "copy them")).values()) == {None}
    line = the_line(ranks.end(lambda rank: agreement.agree({"the data": "ab" if rank else "cd"}, "copy them")))
    assert line == "the data is cd on rank 0 and ab on ranks 1-2: copy them"


def test_a_folder_that_a_node_sees_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that disappears is accepted; one that remains is refused."""
    monkeypatch.setattr(agreement, "_FOLDER_SECONDS", 1.5)
    looks = [0, 0]

    def look(rank: int, seen_after: int) -> dict[str, Any]:
        looks[rank] += 1
        return {"what --load x holds": "iteration 4" if rank == 0 or looks[rank] > seen_after else "nothing"}

    ranks = Ranks(2, monkeypatch)
    ended = ranks.end(lambda rank: agreement.agree_on_folder(lambda: look(rank, 1), "share it"))
    assert set(ended.values()) == {None} and looks == [2, 2]
    line = the_line(ranks.end(lambda rank: agreement.agree_on_folder(lambda: look(rank, 1000), "share it")))
    assert line == "what --load x holds is iteration 4 on rank 0 and nothing on rank 1: share it"
