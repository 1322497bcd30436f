"""The layers of Transformer Engine's stand-in under every layout, against our own layers in one process.

Layouts, methods, kinds of recompute and tasks are combined so that every pair of them that can be combined occurs; of
layouts their dimensions, as each occurs only once or twice. ``test_transformer_engine`` tests variants of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import pytest

from tests.distributed.engine import TE, Engine
from tests.distributed.layouts import (
    BYPASS,
    LAYOUTS,
    RANDOM_BYPASS,
    RANDOM_LTD,
    RECOMPUTE,
    VARIANTS,
    bert_command,
    classifier_command,
    one_process,
    run_flags,
    vit_command,
)
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs, assert_same
from tests.support import small_sentences

pytestmark = pytest.mark.distributed

METHODS = {
    "random-LTD": RANDOM_LTD,
    "layers too": (*RANDOM_LTD, *VARIANTS["layer dropping"]),
    "random span": RANDOM_BYPASS,
    "importance": BYPASS,
}
MODES = {"stored": (), **RECOMPUTE}
TASKS = {
    "GPT": VARIANTS["document masks"],
    "Llama": VARIANTS["RoPE"],
    "BERT": (),
    "sentences": (),
    "images": (),
}
"""Flags of the model"""
CASES = [
    ("tp2", "random-LTD", "stored", "images"),
    ("tp2 sp", "layers too", "stored", "sentences"),
    ("pp2", "importance", "full uniform", "BERT"),
    ("pp2 interleaved", "layers too", "full block", "BERT"),
    ("pp4 uneven", "random span", "selective", "sentences"),
    ("cp2", "random-LTD", "full uniform", "Llama"),
    ("cp2", "layers too", "selective", "GPT"),
    ("cp2 tp2 sp", "importance", "full block", "GPT"),
    ("dp2", "layers too", "selective", "images"),
    ("dp2 sharded", "random-LTD", "full block", "sentences"),
    ("dp2 sharded overlaps", "layers too", "full uniform", "images"),
    ("dp2 sharded buckets", "random span", "stored", "BERT"),
    ("pp2 interleaved dp2 sharded overlaps", "importance", "selective", "Llama"),
    ("tp2 pp2", "importance", "stored", "GPT"),
    ("tp2 sp dp2", "random span", "full uniform", "sentences"),
    ("tp2 sp pp2 dp2", "random-LTD", "selective", "BERT"),
    ("cp2 dp2", "random span", "stored", "Llama"),
    ("one process", "layers too", "selective", "images"),
    ("one process", "random span", "full block", "images"),
]
_DIMENSIONS = {"tp2": "tensor", "sp": "sequence", "pp2": "pipeline", "pp4": "pipeline", "cp2": "context", "dp2": "data"}


@pytest.fixture(scope="module")
def commands(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The command of each task, on data that the tests of its module have too."""
    folder = tmp_path_factory.mktemp("tasks")
    text, vocabulary = small_sentences(folder)
    gpt = run_flags(dataset)
    return {
        "GPT": gpt,
        "Llama": gpt,
        "BERT": bert_command(text, vocabulary),
        "sentences": classifier_command(folder, vocabulary),
        "images": vit_command(folder),
    }


@pytest.fixture(scope="module")
def theirs(
    engine: Engine, commands: dict[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Runs]:
    """Runs of each task with the layers of Transformer Engine."""
    folder = tmp_path_factory.mktemp("theirs")
    return {task: Runs(engine, "cpu", command, folder, *TE) for task, command in commands.items()}


@pytest.fixture(scope="module")
def ours(pool: Pool, commands: dict[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    """The same with our own layers."""
    folder = tmp_path_factory.mktemp("ours")
    return {task: Runs(pool, "cpu", command, folder) for task, command in commands.items()}


@pytest.mark.parametrize(("name", "method", "mode", "task"), CASES)
def test_equals_our_own_layers(
    theirs: dict[str, Runs], ours: dict[str, Runs], name: str, method: str, mode: str, task: str
) -> None:
    layout = LAYOUTS.get(name, one_process(1))
    flags = (*TASKS[task], *METHODS[method], "--token-bypass-strata", str(layout.strata))
    expected = ours[task].reference(layout.strata, *flags)
    assert len({kept for _, _, kept in expected.kept}) == 3
    assert_same(theirs[task].run(layout, *flags, *MODES[mode]), expected)


def facts(case: tuple[str, str, str, str]) -> Iterator[tuple[str, str]]:
    """What a case combines: kind and value. Both models of GPT are one task."""
    layout, method, mode, task = case
    words = layout.split()
    for dimension in sorted({_DIMENSIONS[word] for word in words if word in _DIMENSIONS} | {"sharded"} & set(words)):
        yield "layout", dimension
    yield from (("method", method), ("mode", mode), ("task", "GPT" if task == "Llama" else task))


def pairs(case: tuple[str, str, str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return {(a, b) for a, b in combinations(facts(case), 2) if a[0] != b[0]}


def possible(case: tuple[str, str, str, str]) -> bool:
    """Encoders need whole samples, an image the whole model, and importance is learned from the losses of tokens."""
    layout, method, _, task = case
    if task in ("sentences", "images") and method == "importance":
        return False
    unfit = {"BERT": {"cp2"}, "sentences": {"cp2"}, "images": {"cp2", "pp2", "pp4", "sp"}}
    return not unfit.get(task, set()) & set(layout.split())


def test_every_layout_and_every_possible_pair_occurs() -> None:
    everything = [case for case in product([*LAYOUTS, "one process"], METHODS, MODES, TASKS) if possible(case)]
    wanted, found = (set().union(*map(pairs, cases)) for cases in (everything, CASES))
    assert {name for name, *_ in CASES} == {*LAYOUTS, "one process"}
    assert wanted - found == set() and len(wanted) == 113
    assert all(map(possible, CASES))
