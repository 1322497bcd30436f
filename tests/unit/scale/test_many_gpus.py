"""One rank of runs on 64, 256 and 1,024 GPUs computes forward and backward, and stores what the plan says.

Nothing is computed or sent: tensors have shapes only (``one_of_many``). What it shows is that models, layouts, kept
tokens and gradient buffers of that size fit together, and that planned activations hold beyond one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.forecast.activations import Numbers, Share, layer_bytes
from megatron.ltd.forecast.forecast import plan_ahead
from tests.support import REPOSITORY
from tests.support_processes import PATIENCE_SECONDS
from tests.unit.scale.cases import CASES, GRAPHED, TRACKED, Case

KEPT = {"1.3B on 64": [512, 1280, 2048], "13B on 256": [1024, 2560, 4096], "175B on 1024": [512, 1280, 2048]}
EXACT = 2e-3
"""The relative tolerance of stored bytes: what few small tensors, such as positions, add to them."""


def reported(cases: Iterable[str]) -> Any:
    """What ``one_of_many`` reports of the cases, from one process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.unit.scale.one_of_many", *cases],
        env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, list[dict[str, Any]]]:
    answer: dict[str, list[dict[str, Any]]] = reported(CASES)
    return answer


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    answer: dict[str, int] = reported([*TRACKED, *GRAPHED])
    return answer


def share_of(config: RunConfig) -> Share:
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    sequence = tensor if parallel.sequence_parallel else 1
    return Share(config.training.micro_batch_size, tensor, sequence, parallel.context_parallel_size)


def planned_layers(case: Case, stage: int) -> list[int]:
    """Bytes that the plan counts for the layers of a stage of the case, at each of its numbers of kept tokens."""
    config = parse_run_config(case.flags)
    forecast, model = plan_ahead(config, case.world_size), config.model
    layers = forecast.memory[stage].layers
    rotary_share = model.rotary_percent if model.position_embedding_type == "rope" else 0.0
    rms_norm, fused_gate = model.normalization == "RMSNorm", bool(model.bias_swiglu_fusion)
    numbers = Numbers(2, True, False, False, rotary_share, False, rms_norm, fused_gate=fused_gate)
    shape, share, method = forecast.sizes.shape, share_of(config), config.build_method()
    plans = [method.plan(step) for step in case.steps]
    return [
        sum(layer_bytes(shape, numbers, share, plan.kept_tokens[layer - 1]).kept for layer in layers) for plan in plans
    ]


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case: str, found: dict[str, list[dict[str, Any]]]) -> None:
    config = parse_run_config(CASES[case].flags)
    parallel, steps = config.parallel, found[case]
    assert [step["kept"] for step in steps] == KEPT[case.partition(",")[0]]
    rows = config.model.seq_length // parallel.context_parallel_size
    hidden = [rows // share_of(config).sequence, config.training.micro_batch_size, config.model.hidden_size]
    losses = [config.training.micro_batch_size, rows]
    num_chunks = 2 if parallel.num_layers_per_virtual_pipeline_stage else 1
    ends = losses if steps[0]["stage"] == parallel.pipeline_model_parallel_size - 1 else hidden
    for step in steps:
        assert step["shapes"] == [hidden] * (num_chunks - 1) + [ends]
        assert step["gradients"] == ["float32"]


@pytest.mark.parametrize("case", CASES)
def test_the_distributed_optimizer_owns_its_share(case: str, found: dict[str, list[dict[str, Any]]]) -> None:
    forecast = plan_ahead(parse_run_config(CASES[case].flags), CASES[case].world_size)
    stage, copies = forecast.memory[-1 if "last" in case else 0], CASES[case].world_size
    copies //= parse_run_config(CASES[case].flags).parallel.model_parallel_size
    copies *= forecast.layout.parallel.context_parallel_size
    for step in found[case]:
        assert step["parameters"] * 2 == stage.parts["weights"]
        assert step["owned"] * copies == pytest.approx(step["parameters"], rel=EXACT)


@pytest.mark.parametrize("case", CASES)
def test_stored_activations_are_as_planned(case: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """The head is left out, since it stores the same for every number of kept tokens."""
    stored = [step["saved_bytes"] for step in found[case]]
    planned = planned_layers(CASES[case], -1 if "last" in case else 0)
    for later in (1, 2):
        assert stored[later] - stored[0] == pytest.approx(planned[later] - planned[0], rel=EXACT)
    if "first" in case:
        assert stored == pytest.approx(planned, rel=EXACT)


@pytest.mark.parametrize("case", TRACKED)
def test_the_peak_is_what_torchs_own_tracker_counts(case: str, peaks: dict[str, int]) -> None:
    """Of weights, gradients and activations, with what is at work; no step has been taken, so without moments."""
    (stage,) = plan_ahead(parse_run_config(TRACKED[case].flags), TRACKED[case].world_size).memory
    assert stage.total - stage.parts["optimizer"] == pytest.approx(peaks[case], rel=EXACT)


@pytest.mark.parametrize("case", GRAPHED)
def test_graphs_hold_what_is_planned_besides_activations(case: str, peaks: dict[str, int]) -> None:
    """What is static and what backward reads; the static input is both."""
    (stage,) = plan_ahead(parse_run_config(GRAPHED[case].flags), GRAPHED[case].world_size).memory
    (activations,) = planned_layers(GRAPHED[case], 0)
    assert peaks[case] == pytest.approx(activations + stage.parts["graphs"], rel=EXACT)


@pytest.mark.parametrize("kept_tokens", [2048, 512])
def test_a_layer_on_gpus_stores_what_megatron_lm_published(kept_tokens: int) -> None:
    """34 s b h / t bytes of a layer, "Reducing activation recomputation in large transformer models", equation 6.

    It counts neither a norm's statistics nor a flash kernel's sums, and has no layer whose tokens skip it.
    """
    config = parse_run_config(CASES["175B on 1024, first stage"].flags)
    shape, share = plan_ahead(config, 1024).sizes.shape, share_of(config)
    numbers = Numbers(2, on_cpu=False, hidden_dropout=True, attention_dropout=True, rotary_share=0, explicit_mask=False)
    planned = layer_bytes(shape, numbers, share, kept_tokens).kept
    assert planned == pytest.approx(34 * kept_tokens * 1 * 12288 // 8, rel=EXACT)
