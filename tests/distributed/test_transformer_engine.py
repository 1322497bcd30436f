"""The layers of Transformer Engine against our own, through a stand-in of it on the CPU (``engine``).

Initial weights and the names of all tensors must be equal, losses and every gradient up to rounding. Runs with our own
layers are those of processes that have no Transformer Engine. Every call is checked against its real signatures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.doctor.finding import OK
from tests.distributed.engine import TE, VERSIONS, Engine
from tests.distributed.engine_jobs import doctors_findings, modules_of_layers, printed_by, run_with_fp8_state
from tests.distributed.evaluation_jobs import figures
from tests.distributed.jobs import train_and_record
from tests.distributed.layouts import (
    BYPASS,
    LAYOUTS,
    RANDOM_BYPASS,
    RANDOM_LTD,
    RECOMPUTE,
    VARIANTS,
    one_process,
    run_flags,
)
from tests.distributed.pool import Pool
from tests.distributed.runs import Outcome, Runs, Tolerance, assert_same
from tests.distributed.test_hugging_face import SHAPE as GPT2_SHAPE
from tests.reference.gpt2_folder import write_gpt2

pytestmark = pytest.mark.distributed

ONE = one_process(1)
DEVICE = (*ONE.flags, "--device", "cpu")
_BLOCKS_OF_16 = "--random-ltd --ltd-min-kept-tokens 16 --ltd-granularity 16 --ltd-block-size 16 --ltd-growth-steps 6"
_HALF_OF_LLAMA = (
    "--qk-layernorm --apply-layernorm-1p --add-qkv-bias --disable-bias-linear --position-embedding-type rope"
)
OTHER_RUNS = {
    "blocks of 16": (*_BLOCKS_OF_16.split(), *VARIANTS["RoPE"]),
    "TokenBypass, random": RANDOM_BYPASS,
    "TokenBypass, importance": (*BYPASS, *VARIANTS["RoPE"]),
    "zero-centred norms of queries and keys": (*RANDOM_LTD, *_HALF_OF_LLAMA.split()),
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "document masks"])
def test_random_ltd(engine_runs: Runs, runs: Runs, variant: str) -> None:
    assert_same(engine_runs.run(ONE, *VARIANTS[variant]), runs.reference(1, *VARIANTS[variant]))


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_methods_and_norms(engine_bypass_runs: Runs, bypass_runs: Runs, name: str) -> None:
    assert_same(engine_bypass_runs.run(ONE, *OTHER_RUNS[name]), bypass_runs.reference(1, *OTHER_RUNS[name]))


@pytest.mark.parametrize("mode", RECOMPUTE)
def test_recompute(engine_runs: Runs, runs: Runs, mode: str) -> None:
    found = engine_runs.run(ONE, *VARIANTS["RoPE"], *RECOMPUTE[mode])
    assert_same(found, runs.reference(1, *VARIANTS["RoPE"]))


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_earlier_versions(runs: Runs, dataset: str, tmp_path: Path, version: str) -> None:
    command = [*run_flags(dataset), *TE, *RANDOM_LTD, *DEVICE, *VARIANTS["RoPE"], "--log-dir", str(tmp_path)]
    with Engine(version) as engine:
        found = Outcome.of([engine.run_alone(train_and_record, command)])
    assert_same(found, runs.reference(1, *VARIANTS["RoPE"]))


@pytest.mark.parametrize("saved_with", ["Transformer Engine", "our own layers"])
def test_a_checkpoint_continues_with_the_other_layers(
    engine_runs: Runs, runs: Runs, tmp_path: Path, saved_with: str
) -> None:
    """Under another layout too; Transformer Engine has an Adam of its own."""
    flags = VARIANTS["RoPE"]
    before, after = (engine_runs, runs) if saved_with == "Transformer Engine" else (runs, engine_runs)
    first = before.run(LAYOUTS["dp2 sharded"], *flags, "--save", str(tmp_path), "--exit-interval", "2")
    assert len(first.loss) == 2
    assert_same(first.then(after.run(LAYOUTS["pp2"], *flags, "--load", str(tmp_path))), runs.reference(1, *flags))


def test_only_an_entry_layer_gives_up_the_attention_of_transformer_engine(
    engine: Engine, dataset: str, tmp_path: Path
) -> None:
    """Its kept tokens attend to all tokens, which needs a mask. With separated documents every layer has one."""
    command = [*run_flags(dataset), *TE, *DEVICE, "--log-dir", str(tmp_path)]
    linear = ("TELayerNormColumnParallelLinear", "TERowParallelLinear")
    own, other = ("FusedAttention", *linear), ("TEDotProductAttention", *linear)
    bypass = [*command, *RANDOM_BYPASS, "--token-bypass-layers", "3-5"]
    ((found, (warning,)),) = engine.run(modules_of_layers, bypass, world_size=1)
    assert found == [other, other, own, other, other, other] and "fp32" in warning and "--bf16" in warning
    for more in (VARIANTS["document masks"], ("--attention-backend", "local")):
        assert engine.run(modules_of_layers, [*command, *more], world_size=1) == [([own] * 6, [])]


def test_states_of_fp8_are_neither_saved_nor_loaded(engine: Engine, dataset: str, tmp_path: Path) -> None:
    """Transformer Engine would unpickle them."""
    command = [*run_flags(dataset), *TE, *DEVICE, "--log-dir", str(tmp_path)]
    (names,) = engine.run(run_with_fp8_state, command, str(tmp_path), world_size=1)
    assert "decoder.final_layernorm.weight" in names and not any("_extra_state" in name for name in names)


def test_half_precision(engine_runs: Runs, runs: Runs) -> None:
    flags = (*VARIANTS["RoPE"], "--bf16")
    assert_same(engine_runs.run(ONE, *flags), runs.reference(1, *flags), Tolerance(loss=1e-3, gradient=2e-2))


def test_recompute_repeats_dropout(engine_runs: Runs) -> None:
    flags = (*VARIANTS["RoPE"], "--attention-dropout", "0.3", "--hidden-dropout", "0.2")
    assert_same(engine_runs.run(ONE, *flags, *RECOMPUTE["full uniform"]), engine_runs.reference(1, *flags))


def test_finetuning_from_hugging_face(engine_runs: Runs, runs: Runs, tmp_path: Path) -> None:
    write_gpt2(tmp_path, GPT2_SHAPE)
    flags = ("--finetune", "--openai-gelu", "--load", str(tmp_path))
    assert_same(engine_runs.run(ONE, *flags), runs.reference(1, *flags))


def test_evaluation(engine: Engine, pool: Pool, engine_runs: Runs, tmp_path: Path) -> None:
    """The scores and the generated text of a checkpoint, with a cache of keys and values."""
    engine_runs.run(ONE, *VARIANTS["RoPE"], "--save", str(tmp_path))
    asked = (str(tmp_path), {}, [[5, 6, 7, 8], [104, 101, 108, 108, 111, 32]], 6)
    (found,), (expected,) = (place.run(figures, *asked, world_size=1) for place in (engine, pool))
    assert found[1:] == expected[1:] and found[2]
    assert [greedy for _, greedy in found[0]] == [greedy for _, greedy in expected[0]]
    assert [one for one, _ in found[0]] == pytest.approx([one for one, _ in expected[0]], rel=1e-5)


def test_kernels_are_named(engine: Engine, dataset: str, tmp_path: Path) -> None:
    """The doctor, which finds nothing wrong, and the header of a run name them."""
    (found,) = engine.run(doctors_findings, world_size=1)
    ((state, text),) = found
    assert state == OK and "on cpu" in text and f"layers on Transformer Engine {VERSIONS[-1]}," in text
    command = [*run_flags(dataset), *TE, *DEVICE, *RANDOM_BYPASS, "--deterministic-mode", "--log-dir", str(tmp_path)]
    (printed,) = engine.run(printed_by, command, world_size=1)
    (line,) = (line for line in printed.splitlines() if line.startswith("runs on"))
    assert line.endswith(f"layers on Transformer Engine {VERSIONS[-1]}, attention with a mask on PyTorch's kernels")
