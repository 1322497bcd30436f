"""The GPU benchmark: what its rows are, figures from known seconds, failures, and a second start. No GPU.

``tests/gpu/test_benchmark.py`` runs the whole command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu import contenders, run
from gpu.cases import Arm, Case, Model, cases, check_run_flags
from gpu.config import CONTENDERS, GpuConfig
from gpu.measure import ModelMeter, Profile, summarize
from gpu.plain_gpt import PlainGPT
from gpu.record import Record, Row
from gpu.report import Figures, figures, page, run_tokens_per_second
from torch.autograd import DeviceType

from megatron.ltd.errors import RunStopped
from megatron.ltd.plan.accounting import ModelShape
from tests.reference.plain_gpt import PlainConfig
from tests.reference.plain_gpt import PlainGPT as ReferenceGPT
from tests.support_errors import refused

FULL = Model("1.3b", tiny=False)


def case(contender: str = "local") -> Case:
    return Case(FULL, contender, 8, 1, "cuda", "")


def test_models_and_plans_are_those_of_the_recipe() -> None:
    """Numbers of the pages of the recipes: parameters, the run's steps, and a step of one of eight GPUs."""
    assert (FULL.micro_batch_size, FULL.step_samples, FULL.run_plan(1).num_steps) == (8, 64, 372_757)
    small = Model("350m", tiny=False)
    assert (small.micro_batch_size, small.step_samples, small.shape.hidden_size) == (16, 32, 1024)
    forecast = case().forecast(Arm())
    assert forecast.sizes.num_parameters == 1_315_819_520 and forecast.dtype == "bfloat16"


def test_rows_of_ours_keep_parts_of_the_sequence() -> None:
    """FLOPs by hand: 22 of 24 layers on K of 2048 tokens, H 2048, V 50304, 64 samples, backward twice forward."""
    layer = {n: 24 * n * 2048**2 + 4 * (n * (n + 1) // 2) * 2048 for n in (128, 512, 1024, 2048)}
    head = 2 * 2048 * 2048 * 50304
    found = {(arm.kept_tokens, arm.block_size): case().forecast(arm).plan.flops(1) for arm in case().arms}
    assert found.keys() == {(None, 1), *((kept, size) for kept in (128, 512, 1024) for size in (1, 16))}
    for (kept, _), flops in found.items():
        assert flops == 3 * 64 * (2 * layer[2048] + 22 * layer[kept or 2048] + head)
    assert [arm.name for arm in case("plain").arms] == ["dense"]


def test_rows_on_both_kernels_of_routing_stand_side_by_side() -> None:
    both = replace(case(), ltd_kernels=("torch", "triton"))
    assert [arm.name for arm in both.arms[1:4]] == [
        "random-LTD, K = 128",
        "random-LTD, K = 128, --ltd-kernels triton",
        "random-LTD in blocks of 16, K = 128",
    ]
    assert [both.config(arm).build_method().facts.kernels for arm in both.arms[1:3]] == ["torch", "triton"]
    assert [turn[0].ltd_kernels for turn in cases(GpuConfig(ltd_kernels=("triton",)), "cuda")][:1] == [("triton",)]


def test_the_plain_gpt_computes_what_the_reference_does() -> None:
    """Both have the same weights, and as many parameters as our model."""
    config = PlainConfig(learned_positions=16)
    reference, shape = ReferenceGPT(config), ModelShape(3, 24, 40, 4, 4, 6, False, 32, 16)
    model, weights = PlainGPT(shape), reference.state_dict()
    renamed = {name.replace(".out.", ".projection."): tensor for name, tensor in weights.items()}
    for layer in range(3):
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"layers.{layer}.{part}.{kind}") for part in ("query", "key", "value")]
            renamed[f"layers.{layer}.qkv.{kind}"] = torch.cat(parts)
    model.load_state_dict(renamed)
    tokens, labels = torch.randint(32, (2, 2, 16), generator=torch.Generator().manual_seed(1))
    losses = [reference.token_losses(*sample) for sample in zip(labels, map(reference, tokens), strict=True)]
    torch.testing.assert_close(model(tokens, labels), torch.stack(losses).mean())
    tiny = Case(Model("350m", tiny=True), "plain", 2, 1, "cpu", "")
    numbers = sum(parameter.numel() for parameter in PlainGPT(tiny.model.shape).parameters())
    assert numbers == tiny.forecast(Arm()).sizes.num_parameters


def test_turns_visit_all_contenders_before_the_first_again() -> None:
    turns = cases(GpuConfig(shapes=("1.3b",), contenders=("local", "plain")), "cuda")
    assert [(turn[0].contender, turn[0].visit) for turn in turns] == [
        ("local", 1), ("plain", 1), ("local", 2), ("plain", 2),
    ]  # fmt: skip
    assert [(each.micro_batch_size, each.num_microbatches) for each in turns[0]] == [(8, 8), (4, 16), (2, 32), (1, 64)]


def test_graphs_are_measured_on_the_smallest_model_one_sample_at_a_time() -> None:
    """With and without them, dense and at K = S/4; each row by itself, since graphs hold one number of tokens."""
    turns = cases(GpuConfig(contenders=("one_sample", "one_sample_graphs"), visits=1), "cuda")
    assert [(turn[0].contender, turn[0].model.name, turn[0].micro_batch_size, len(turn)) for turn in turns] == [
        ("one_sample", "350m", 1, 1), ("one_sample_graphs", "350m", 1, 1),
    ]  # fmt: skip
    (without,), (graphed,) = turns
    assert [arm.kept_tokens for arm in without.arms] == [arm.kept_tokens for arm in graphed.arms] == [None, 512]
    assert [each.config(Arm(512)).model.cuda_graph_impl for each in (without, graphed)] == ["none", "local"]
    assert {*graphed.command(Arm())} - {*without.command(Arm())} == {"--cuda-graph-impl"}


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the collection of garbage between models, which is slow in the process of the tests."""
    monkeypatch.setattr("gpu.measure.gc.collect", lambda: 0)


def row(kept_tokens: int | None = None, **changes: Any) -> Row:
    values = {
        "model": "1.3b", "contender": "local", "arm": f"K = {kept_tokens}", "block_size": 1, "micro_batch_size": 2,
        "visit": 1, "samples": 4, "tokens": 4000, "flops": 100, "dense_flops": 100, "date": "2026-11-30",
    }  # fmt: skip
    return Row(kept_tokens=kept_tokens, **values | changes)


def test_figures_of_all_visits_are_one() -> None:
    """The second round of the first visit is three times slower, which changes no ratio within a round."""
    visits = [
        row(512, flops=60, seconds=[1.0, 3.0], dense_seconds=[2.0, 6.0], peak_bytes=7, routing_seconds=0.05),
        row(512, flops=60, seconds=[1.0], dense_seconds=[2.5], peak_bytes=8, visit=2),
        row(512, failed="it broke", visit=3),
    ]
    (found,) = figures(visits)
    assert (found.seconds, found.tokens_per_second, found.peak_bytes, found.routing_share) == (1.0, 4000.0, 8, 0.05)
    assert found.theoretical == pytest.approx(0.4) and found.realised == pytest.approx(0.5)
    assert found.share_realised == pytest.approx(1.25)
    assert found.speed(1e-9) == pytest.approx({"tflops_per_device": 60e-12, "mfu": 0.06})
    dense = Figures((row(seconds=[2.0]),))
    assert dense.theoretical is dense.realised is dense.share_realised is dense.routing_share is None


def test_a_run_takes_the_time_between_measured_steps() -> None:
    """If time is a line over FLOPs, the mean over the run is the line's value at the mean FLOPs."""
    model = Model("1.3b", tiny=True)
    tiny = Case(model, "local", 2, 1, "cuda", "")

    def measured(arm: Arm) -> Figures:
        flops = tiny.forecast(arm).plan.flops(1)
        seconds = 4 * (0.5 + flops / 4 * 1e-9)
        return Figures((row(arm.kept_tokens, block_size=arm.block_size, flops=flops, seconds=[seconds]),))

    ours, plan = [measured(arm) for arm in tiny.arms], model.run_plan(16)
    samples = plan.samples(plan.num_steps)
    expected = samples * 256 / (0.5 * samples + 1e-9 * plan.flops(plan.num_steps))
    assert run_tokens_per_second(model, ours, 16) == pytest.approx(expected)
    assert run_tokens_per_second(model, ours[:-1], 16) is None


def settings(**changes: Any) -> dict[str, Any]:
    shared = {"tiny": False, "run_flags": "", "rounds": 2, "warmup_rounds": 0}
    return shared | {"peak_tflops": 989.0, "peak_dtype": "bfloat16"} | changes


def test_goals_stand_beside_what_was_measured(tmp_path: Path) -> None:
    record = Record(tmp_path, settings(), {"machine": "a GPU"})
    tflop = 10**12
    dense = row(flops=600 * tflop, dense_flops=600 * tflop, seconds=[1.0])
    half = row(1024, flops=300 * tflop, dense_flops=600 * tflop, seconds=[0.52], dense_seconds=[1.0])
    triton = replace(half, seconds=[0.001], ltd_kernels="triton", arm="Triton")
    for each in (dense, triton, half, replace(half, block_size=16, arm="blocks"), row(128, failed="it broke")):
        record.add(each, page)
    text = (tmp_path / "gpu.md").read_text()
    assert "| 1.3B, dense, of the peak; ours on PyTorch's kernels | 55.00% | 60.67%, met |" in text
    assert "| 1.3B, K = S/2, time / FLOPs saved; ours on PyTorch's kernels | 0.970 | 0.960, missed |" in text
    assert "| 350M, dense, of the peak; ours on Transformer Engine | 55.00% | not measured |" in text
    assert "K = 128, micro-batch 2, visit 1: failed, it broke" in text
    record.settings["tiny"] = True
    assert "missed" not in page(record) and "only that the program works" in page(record)


def test_rows_are_stored_and_read_again(tmp_path: Path) -> None:
    record = Record(tmp_path, settings(), {"machine": "a GPU"})
    record.add(row(seconds=[1.0]), page)
    again = Record(tmp_path, settings(), {"machine": "another start"})
    assert again.rows == record.rows and again.about == {"machine": "a GPU"}
    with refused(f"--output {tmp_path}", "rounds 2", 3):
        Record(tmp_path, settings(rounds=3), {})
    (tmp_path / "gpu.json").write_text('{"rows": [')
    with refused(f"--output {tmp_path}", "gpu.json"):
        Record(tmp_path, settings(), {})


class Built:
    """Replaces the models: records which were built, and what their steps do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, problem: Callable[[Case, Arm], Exception | None]) -> None:
        self.cases: list[tuple[str, int]] = []
        self._problem = problem
        monkeypatch.setattr(contenders, "built", self._built)
        monkeypatch.setattr(ModelMeter, "profile", lambda meter, step: Profile(0.0, []))

    @contextmanager
    def _built(self, case: Case, mesh: object) -> Iterator[contenders.StepOf]:
        self.cases.append((case.contender, case.micro_batch_size))

        def step_of(arm: Arm, microbatches: int | None) -> contenders.Step:
            def step() -> float:
                problem = self._problem(case, arm)
                if problem is not None:
                    raise problem
                return 0.0

            return step

        yield step_of


def measure(folder: Path, contender: str, **changes: Any) -> list[tuple[str, int, str | None]]:
    """Run the benchmark in this process; its rows by arm and micro-batch size, and why they failed."""
    config = GpuConfig(
        output=str(folder), tiny=True, shapes=("1.3b",), contenders=(contender,), visits=1, rounds=1, warmup_rounds=0,
        device="cpu", **changes,
    )  # fmt: skip
    run.run(config)
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    return [(each["arm"], each["micro_batch_size"], each["failed"]) for each in rows]


def test_a_model_that_does_not_fit_is_measured_with_half_the_microbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(case: Case, arm: Arm) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory\nmore") if case.micro_batch_size > 1 else None

    built = Built(monkeypatch, problem)
    expected = [("dense", 2, "OutOfMemoryError: CUDA out of memory"), ("dense", 1, None)]
    assert measure(tmp_path, "plain") == expected and built.cases == [("plain", 2), ("plain", 1)]
    assert measure(tmp_path, "plain") == expected and len(built.cases) == 2, "a second start measures nothing"
    assert measure(tmp_path, "plain", retry_failed=True) == expected and len(built.cases) == 3


def test_a_row_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next row has a new model; without a dense step there are no rows."""
    built = Built(monkeypatch, lambda case, arm: ValueError("no such kernel") if arm.kept_tokens == 64 else None)
    rows = measure(tmp_path / "one", "local")
    assert [failed for _, _, failed in rows] == [None] * 3 + ["ValueError: no such kernel"] * 2 + [None] * 2
    assert len(built.cases) == 3 and "K = 64, micro-batch 2, visit 1: failed, ValueError" in capsys.readouterr().out
    Built(monkeypatch, lambda case, arm: ValueError())
    assert measure(tmp_path / "all", "local") == [("dense", 2, "ValueError")]


def test_a_gpu_that_is_lost_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed row is stored, so that the next start goes on after it."""

    def lost(meter: ModelMeter) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    Built(monkeypatch, lambda case, arm: None)
    monkeypatch.setattr(ModelMeter, "wait", lost)
    with refused("plain PyTorch", "illegal memory access", error=RunStopped):
        measure(tmp_path, "plain")
    monkeypatch.undo()
    Built(monkeypatch, lambda case, arm: None)
    ((_, _, failed),) = measure(tmp_path, "plain")
    assert failed and "illegal memory access" in failed


def test_memory_is_that_of_the_rows_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's allocator in small: the dense step takes more, and 100 bytes were there before the model."""
    now = {"peak": 0}
    stand_ins = {
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device: 100,
        "reset_peak_memory_stats": lambda device: now.update(peak=0),
        "max_memory_allocated": lambda device: now["peak"],
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def step(peak: int) -> Callable[[], object]:
        return lambda: now.update(peak=max(peak, now["peak"]))

    meter = ModelMeter.on(torch.device("cuda", 0))
    found = meter.measure(step(150), step(900), warmup_rounds=1, rounds=3)
    assert found["peak_bytes"] == 50 and len(found["seconds"]) == len(found["dense_seconds"]) == 3
    on_cpu = ModelMeter.on(torch.device("cpu")).measure(step(150), None, warmup_rounds=0, rounds=1)
    assert (on_cpu["dense_seconds"], on_cpu["peak_bytes"]) == ([], None)


def event(key: str, device_type: DeviceType, device: float, *, annotation: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        key=key, device_type=device_type, count=2, is_user_annotation=annotation, device_time_total=device,
        self_device_time_total=device, cpu_time_total=5.0, self_cpu_time_total=5.0,
    )  # fmt: skip


def test_routing_is_the_time_of_its_kernels() -> None:
    """A named block is in a profile twice, as an operation and on the GPU, where it lasts longer than its kernels."""
    events = [
        event("draw of kept tokens", DeviceType.CPU, 3e6), event("_Split", DeviceType.CPU, 1e6),
        event("_MergeBackward", DeviceType.CPU, 2e6), event("aten::mm", DeviceType.CPU, 50e6),
        event("draw of kept tokens", DeviceType.CUDA, 9e6, annotation=True), event("gemm", DeviceType.CUDA, 50e6),
    ]  # fmt: skip
    assert summarize(events, on_gpu=True) == Profile(6.0, [("gemm", 2, 50.0)])
    assert summarize(events, on_gpu=False).routing_seconds == pytest.approx(15e-6)
    with pytest.raises(RuntimeError, match="no kernels"):
        summarize(events[:4], on_gpu=True)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"device": "cpu"}, ["--device cpu", "--tiny"]),
        ({"tiny": True, "run_flags": "--no-such-flag"}, ["--no-such-flag"]),
        ({"tiny": True, "run_flags": "--lr '1"}, ["--run-flags --lr '1", "quotation"]),
        ({"tiny": True, "run_flags": "--reset-attention-mask"}, ["--run-flags", "--reset-attention-mask changes"]),
        ({"tiny": True, "run_flags": "--swiglu"}, ["--run-flags", "--swiglu changes"]),
        ({"tiny": True, "run_flags": "--token-bypass"}, ["--run-flags", "--token-bypass changes"]),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    with refused(*names):
        run.run(GpuConfig(**{"device": "cpu", "output": str(tmp_path / "new"), **flags}))
    assert not (tmp_path / "new").exists()
    check_run_flags(GpuConfig(run_flags="--attention-backend unfused --grad-reduce-in-bf16"))
    with refused("--rounds 0", 1):
        GpuConfig(rounds=0)


def test_what_a_machine_cannot_measure_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    reasons = {name: contenders.reason_to_skip(name, "cuda") for name in CONTENDERS}
    assert reasons["transformer_engine"] == "the package transformer-engine is not installed"
    assert {name for name, reason in reasons.items() if reason is None} == {
        *("local", "plain", "plain_compiled", "one_sample", "one_sample_graphs")
    }
    assert "CUDA" in str(contenders.reason_to_skip("one_sample_graphs", "cpu"))
    assert "CUDA" in str(contenders.reason_to_skip("transformer_engine", "cpu"))
