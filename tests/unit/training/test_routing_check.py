"""The digest of a layer's kept tokens, and the report of the first difference between ranks."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
import torch

from megatron.ltd.checkpoint.load import Progress
from megatron.ltd.layers.route import Route
from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.schedules.step_plan import StepPlan
from megatron.ltd.training import routing_check
from megatron.ltd.training.routing_check import layer_digests, routing_problem
from tests.support import layer_drop, random_ltd, small_model, world

MODEL = small_model(num_layers=6)
IDS = torch.arange(4)


def digests(seed: int = 7, step: int = 0, ids: torch.Tensor = IDS) -> list[int]:
    method = random_ltd(MODEL, 4, seed=seed)
    return layer_digests(Route(method.plan(step), method, Samples(ids)))


def test_a_digest_identifies_the_kept_tokens() -> None:
    """It depends on seed, samples, their order, layer and number of kept tokens; layers that keep all tokens have equal
    digests.
    """
    base = digests()
    assert base == digests() and len(base) == 6 and len(set(base[1:5])) == 4 and base[0] == base[5]
    for other in (digests(seed=8), digests(ids=IDS + 1), digests(ids=IDS.flip(0)), digests(step=5)):
        assert [mine == theirs for mine, theirs in zip(base, other, strict=True)] == [True, *[False] * 4, True]
    assert all(0 <= digest < 2**63 for digest in base)


def test_digests_of_dropped_layers_depend_on_probability_and_gate() -> None:
    method = layer_drop(MODEL, 0.5)
    dense = StepPlan.dense(16, 6)
    dropping = replace(dense, keep_probability=(1.0, 1.0, 0.5, 1.0, 1.0, 1.0))
    found = [layer_digests(Route(plan, method, Samples(IDS))) for plan in (dense, dropping)]
    assert [mine == theirs for mine, theirs in zip(*found, strict=True)] == [True, True, False, True, True, True]
    step = next(
        step for step in range(100) if not method.executes(step, 0, 3, 0.5) and method.executes(step + 1, 0, 3, 0.5)
    )
    closed, opened = (layer_digests(Route(dropping, method, Samples(IDS), step + ahead)) for ahead in (0, 1))
    assert [mine == theirs for mine, theirs in zip(closed, opened, strict=True)][:3] == [True, True, False]


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Mesh:
    with world() as mesh:
        return replace(mesh, world_size=4)


def problem(mesh: Mesh, step: int = 0) -> str | None:
    method = random_ltd(MODEL, 4)
    return routing_problem(method.plan(step), method, mesh, Progress(step, 8 * step), 8)


@pytest.mark.parametrize(
    ("position", "line"),
    [
        (0, r"ranks 1,3 and rank 0 disagree on the steps done \(6 and 5\)"),
        (1, r"ranks 1,3 and rank 0 disagree on the samples consumed \(41 and 40\)"),
        (2, r"ranks 1,3 and rank 0 disagree on the samples in the next step \(9 and 8\)"),
        (3, "in step 6 ranks 1,3 would keep other tokens in layer 1 than rank 0, so"),
        (8, "in step 6 ranks 1,3 would keep other tokens in layer 6 than rank 0, so"),
    ],
)
def test_the_first_difference_is_named(position: int, line: str, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def over_ranks(own: list[int], mesh: Mesh) -> list[list[int]]:
        other = [value + (place == position) for place, value in enumerate(own)]
        return [own, other, own, other]

    monkeypatch.setattr(routing_check, "_over_ranks", over_ranks)
    said = problem(mesh, step=5)
    assert said is not None and re.match(f"{line}.*--load$", said)


def test_ranks_that_agree_have_no_problem(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_check, "_over_ranks", lambda own, mesh: [own] * 4)
    assert problem(mesh) is None


def test_a_digest_is_cheap() -> None:
    """For 24 layers of 2048 tokens it takes under 0.5 s of CPU time, a small part of any step of such a model."""
    method = random_ltd(small_model(num_layers=24, seq_length=2048), 1024)
    route = Route(method.plan(0), method, Samples(IDS))
    layer_digests(route)
    started = time.process_time()
    layer_digests(route)
    assert time.process_time() - started < 0.5


def test_digests_depend_on_learned_importance_and_the_entry_layer() -> None:
    """Layers 2 and 3 of six select by the learned importance; layer 2's digest also depends on the entry layer."""
    config = TokenBypassConfig(token_bypass=True, token_bypass_layers="2-3", token_bypass_kept_tokens=4)
    method = TokenBypass.build(config, ModelFacts(6, 16, 7))
    learned_V = method.initial_state(50)
    other_V = learned_V.clone()
    other_V[49] += 1e-12
    plan = method.plan(0)
    base = layer_digests(Route(plan, method, Samples(IDS, learned_V=learned_V)))
    for other, same in (
        (Route(plan, method, Samples(IDS, learned_V=other_V)), [True, False, False, True, True, True]),
        (
            Route(replace(plan, entry_layers=frozenset()), method, Samples(IDS, learned_V=learned_V)),
            [True, False, *[True] * 4],
        ),
    ):
        assert [mine == theirs for mine, theirs in zip(base, layer_digests(other), strict=True)] == same
