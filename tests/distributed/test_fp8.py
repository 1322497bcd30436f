"""fp8 through the stand-in of Transformer Engine, which keeps scales and rounds nothing: see ``stand_ins``.

A run in fp8 is therefore equal to the one in bfloat16, bit for bit, and fails where sizes, calls or reductions do not
fit, or where a recomputed layer sees other tokens than in its forward pass. Rounding is tested on GPUs only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engine import TE, Engine
from tests.distributed.engine_jobs import printed_by, refusal_of, run_with_fp8_state, scales_after, scored_in_training
from tests.distributed.evaluation_jobs import figures
from tests.distributed.layouts import (
    LAYOUTS,
    RANDOM_BYPASS,
    RANDOM_LTD,
    RECOMPUTE,
    VARIANTS,
    bert_command,
    one_process,
    run_flags,
    vit_command,
)
from tests.distributed.runs import Runs, Tolerance, assert_same
from tests.support import small_sentences

pytestmark = pytest.mark.distributed

ONE = one_process(1)
EXACT = Tolerance(loss=0.0, gradient=0.0)
BF16 = ("--bf16", *VARIANTS["RoPE"])
DROPPED = (*VARIANTS["layer dropping"], "--gradient-accumulation-fusion")
DELAYED = tuple("--fp8-format hybrid --fp8-amax-compute-algo max --fp8-amax-history-len 16".split())
TENSORWISE = ("--fp8-format", "e4m3", "--fp8-recipe", "tensorwise", "--first-last-layers-bf16")
RECIPES = {
    "delayed": DELAYED,
    "tensorwise": (*TENSORWISE, "--num-layers-at-end-in-bf16", "2"),
    "blockwise": ("--fp8-format", "hybrid", "--fp8-recipe", "blockwise"),
    "mxfp8": ("--fp8-format", "e4m3", "--fp8-recipe", "mxfp8"),
}
MLP = ("--recompute-granularity", "selective", "--recompute-modules", "core_attn", "mlp")


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(engine_runs: Runs, recipe: str) -> None:
    assert_same(engine_runs.run(ONE, *BF16, *RECIPES[recipe]), engine_runs.reference(1, *BF16), EXACT)


@pytest.mark.parametrize("recipe", [DELAYED, TENSORWISE], ids=["delayed", "tensorwise"])
@pytest.mark.parametrize(
    "mode", [RECOMPUTE["full uniform"], RECOMPUTE["full block"], MLP], ids=["uniform", "block", "mlp"]
)
def test_recompute_under_the_recorded_route(engine_runs: Runs, recipe: tuple[str, ...], mode: tuple[str, ...]) -> None:
    """With layers that keep some tokens, and some that a microbatch skips."""
    flags = (*BF16, *DROPPED)
    assert_same(engine_runs.run(ONE, *flags, *recipe, *mode), engine_runs.reference(1, *flags), EXACT)


def test_an_entry_layer(engine_bypass_runs: Runs) -> None:
    flags = (*BF16, *RANDOM_BYPASS)
    assert_same(engine_bypass_runs.run(ONE, *flags, *DELAYED), engine_bypass_runs.reference(1, *flags), EXACT)


@pytest.mark.parametrize("workload", ["BERT", "ViT"])
def test_other_workloads(engine: Engine, tmp_path: Path, workload: str) -> None:
    command = bert_command(*small_sentences(tmp_path)) if workload == "BERT" else vit_command(tmp_path)
    runs = Runs(engine, "cpu", command, tmp_path, *TE, *RANDOM_LTD, "--bf16")
    assert_same(runs.run(ONE, *TENSORWISE), runs.run(ONE), EXACT)


@pytest.mark.parametrize("name", ["tp2 sp", "pp2 interleaved", "cp2", "dp2 sharded overlaps"])
def test_all_processes_reduce_together(engine_runs: Runs, name: str) -> None:
    """Though some layers are skipped; a process that reduced other layers would end the run."""
    flags = (*BF16, *DROPPED)
    assert_same(engine_runs.run(LAYOUTS[name], *flags, *DELAYED), engine_runs.run(LAYOUTS[name], *flags), EXACT)


@pytest.mark.parametrize("layout", ["one process", "dp2 sharded", "pp2"])
def test_scales_are_saved(engine: Engine, dataset: str, tmp_path: Path, layout: str) -> None:
    """A run that stops and resumes has the scales of one that does not, to rounding under another layout."""
    resumed = LAYOUTS.get(layout, ONE)
    command = [*run_flags(dataset), *TE, *RANDOM_LTD, *BF16, *DROPPED, *DELAYED, "--device", "cpu", "--log-dir"]
    command += [str(tmp_path / "log"), "--eval-interval", "2"]
    (expected,) = engine.run(scales_after, [*command, *ONE.flags], world_size=1)
    first = [*command, *ONE.flags, "--save", str(tmp_path), "--exit-interval", "2"]
    engine.run(scales_after, first, world_size=1)
    ranks = engine.run(scales_after, [*command, *resumed.flags, "--load", str(tmp_path)], world_size=resumed.world_size)
    found: dict[str, Any] = {}
    for rank in ranks:
        assert all(found.setdefault(name, values) == values for name, values in rank.items())
    assert found.keys() == expected.keys() and len(found) == 6 * 4 * 4
    tolerance = 0.0 if resumed is ONE else 0.05
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=tolerance, abs=0.0), name
    assert len({values[0] for name, values in expected.items() if name.endswith("fwd.scale")}) > 6


@pytest.mark.parametrize("before", ["fp8", "bf16", "another recipe"])
def test_checkpoints_with_and_without_fp8(engine_runs: Runs, runs: Runs, tmp_path: Path, before: str) -> None:
    """Each continues the other, also with our own layers."""
    saved, loaded = {"fp8": (DELAYED, ()), "bf16": ((), DELAYED), "another recipe": (DELAYED, TENSORWISE)}[before]
    first = engine_runs.run(ONE, *BF16, *saved, "--save", str(tmp_path), "--exit-interval", "2")
    rest = engine_runs.run(ONE, *BF16, *loaded, "--load", str(tmp_path))
    assert_same(first.then(rest), engine_runs.reference(1, *BF16), EXACT)
    if before == "fp8":
        own = runs.run(ONE, *BF16, "--load", str(tmp_path))
        assert_same(first.then(own), engine_runs.reference(1, *BF16), Tolerance(loss=1e-3, gradient=2e-2))


@pytest.fixture(scope="module")
def saved_in_fp8(engine: Engine, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a step."""
    folder = tmp_path_factory.mktemp("saved")
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--bf16", *DELAYED]
    engine.run(printed_by, [*command, "--save", str(folder), "--exit-interval", "1"], world_size=1)
    return folder


_LEFT_OUT = "the checkpoint's scales of fp8 are left out: "


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), f"{_LEFT_OUT}products of layers are in bfloat16 from here on"),
        (TENSORWISE, f"{_LEFT_OUT}they are of another --fp8-recipe or --fp8-amax-history-len"),
        (DELAYED, None),
    ],
    ids=["bf16", "another recipe", "the same"],
)
def test_scales_that_are_left_out_are_named(
    engine: Engine, dataset: str, saved_in_fp8: Path, tmp_path: Path, flags: tuple[str, ...], said: str | None
) -> None:
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--log-dir", str(tmp_path), "--bf16"]
    again = [*command, *flags, "--load", str(saved_in_fp8), "--exit-interval", "2"]
    (printed,) = engine.run(printed_by, again, world_size=1)
    assert [line for line in printed.splitlines() if "scales of fp8" in line] == ([] if said is None else [said])


def test_states_are_tensors_and_not_pickles(engine: Engine, dataset: str, tmp_path: Path) -> None:
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--log-dir", str(tmp_path), "--bf16", *DELAYED]
    (names,) = engine.run(run_with_fp8_state, command, str(tmp_path), world_size=1)
    assert not any("_extra_state" in name for name in names)
    assert "fp8.layers.6.mlp.linear_fc2.scaling_bwd.amax_history" in names


def test_texts_of_any_length_are_scored(engine: Engine, engine_runs: Runs, tmp_path: Path) -> None:
    engine_runs.run(ONE, *BF16, *DELAYED, "--save", str(tmp_path))
    ((scores, new, _),) = engine.run(figures, str(tmp_path), {}, [[5, 6, 7, 8], [104, 101, 108]], 3, world_size=1)
    assert len(scores) == 2 and [len(one) for one in new] == [3, 3]


def test_tasks_are_scored_during_training(engine: Engine, dataset: str, tmp_path: Path) -> None:
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--log-dir", str(tmp_path), "--bf16", *DELAYED]
    assert engine.run(scored_in_training, [*command, "--exit-interval", "1"], world_size=1) == [([5, 1, 32], True)]


def test_what_a_run_says(engine: Engine, dataset: str, tmp_path: Path) -> None:
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--log-dir", str(tmp_path), "--bf16", *DELAYED]
    (printed,) = engine.run(printed_by, [*command, "--exit-interval", "1"], world_size=1)
    (line,) = (line for line in printed.splitlines() if line.startswith("runs on"))
    assert ", fp8 hybrid, delayed scaling" in line
    first, *_ = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["config"]["precision"]["fp8_amax_history_len"] == 16


@pytest.mark.parametrize(
    ("recipe", "problem", "said"),
    [
        (DELAYED, "compute capability 8.9 or higher required.", "--fp8-recipe delayed: compute capability 8.9"),
        (RECIPES["mxfp8"], "compute capability 10.0 or higher required.", "10.0 or higher required; use another"),
        (RECIPES["blockwise"], None, "--fp8-recipe blockwise: Transformer Engine 2.11.0 does not have it"),
    ],
    ids=["an older GPU", "mxfp8", "an older Transformer Engine"],
)  # fmt: skip
def test_recipes_that_are_not_available(
    engine: Engine, dataset: str, tmp_path: Path, recipe: tuple[str, ...], problem: str | None, said: str
) -> None:
    command = [*run_flags(dataset), *TE, *ONE.flags, "--device", "cpu", "--log-dir", str(tmp_path), "--bf16", *recipe]
    (line,) = engine.run(refusal_of, command, problem, world_size=1)
    assert said in line and "\n" not in line
