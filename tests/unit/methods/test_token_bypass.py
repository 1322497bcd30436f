"""TokenBypass: its span and plan, refused flags, the learned token importance, and the tokens that it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.token_bypass.importance import (
    START,
    importance_of,
    most_important,
    next_importance,
    start_importance,
)
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.plan.accounting import ModelShape, layer_flops, step_flops
from megatron.ltd.routing.sampling import kept_indices
from megatron.ltd.schedules.step_plan import StepPlan
from tests.support_errors import refused

S = 32
FACTS = ModelFacts(num_layers=12, seq_length=S, seed=7)
IDS = torch.tensor([4, 9])


def build(facts: ModelFacts = FACTS, **flags: Any) -> TokenBypass:
    named = {f"token_bypass_{name}": value for name, value in flags.items()}
    return TokenBypass.build(TokenBypassConfig(token_bypass=True, **named), facts)


def test_the_default_plan_is_the_papers() -> None:
    """Of 12 layers, 6 to 11 keep half of the tokens at every step; the entry layer 6 attends to all tokens."""
    method = build()
    plan = StepPlan(S, (S,) * 5 + (S // 2,) * 6 + (S,), (1.0,) * 12, frozenset({6}))
    assert method.plan(0) == method.plan(10**6) == plan
    assert list(method.stages(70)) == [(0, 70, plan)]
    assert method.observes and not build(selector="random").observes


@pytest.mark.parametrize(("num_layers", "span"), [(3, "2-2"), (4, "2-3"), (5, "2-4"), (24, "12-23")])
def test_the_default_span(num_layers: int, span: str) -> None:
    assert build(ModelFacts(num_layers, S, 7)).settings["token_bypass_layers"] == span


def test_stages_match_the_growing_plan_of_every_step() -> None:
    method = build(kept_tokens=8, growth_steps=10, granularity=8, layers="3-5", entry="kept")
    assert [plan.kept_tokens[2] for plan in map(method.plan, range(12))] == [8] * 4 + [16] * 3 + [24] * 3 + [32] * 2
    walked = [plan for _, steps, plan in method.stages(12) for _ in range(steps)]
    assert walked == [method.plan(step) for step in range(12)]
    assert method.plan(0).entry_layers == frozenset() and method.plan(10) == StepPlan.dense(S, 12)


def test_all_layers_of_the_span_keep_the_same_random_tokens() -> None:
    method = build(selector="random", layers="4-8", strata=2)
    (kept,) = method.select(Samples(IDS), range(4, 9), 16)
    assert torch.equal(kept, kept_indices(7, IDS, 4, S, 16, strata=2))
    blocks = build(selector="random", layers="4-8", block_size=4)
    assert torch.equal(blocks.select(Samples(IDS), [6], 16)[0], kept_indices(7, IDS, 4, S, 16, block_size=4))
    assert blocks.name == "TokenBypass in blocks of 4"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"layers": "1-4"}, ("--token-bypass-layers 1-4", 2, 11, "--num-layers 12")),
        ({"layers": "6-12"}, ("--token-bypass-layers 6-12", 2, 11)),
        ({"layers": "7-6"}, ("--token-bypass-layers 7-6",)),
        ({"layers": "2,4"}, ("--token-bypass-layers 2,4", "6-11")),
        (
            {"special_ids": (1, 2), "selector": "random"},
            ("--token-bypass-special-ids 1 2", "--token-bypass-selector random"),
        ),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, Any], line: tuple[object, ...]) -> None:
    with refused(*line):
        build(**flags)


def test_flags_that_do_not_fit_the_model_are_refused() -> None:
    with refused("--num-layers 2", 3):
        build(ModelFacts(2, S, 7))
    for outside, most in ((-1, "2,147,483,647"), (50, 49)):
        with refused(f"--token-bypass-special-ids {outside}", 0, most):
            build(special_ids=(3, outside)).initial_state(50)


def test_importance_is_an_exponential_average_from_ten() -> None:
    """Token id 1 has losses in the first and third step; ids 0 and 2 never do and keep the start value."""
    importance_V = start_importance(3)
    expected = 10.0
    for step, mean in enumerate((4.0, None, 7.0)):
        sums, counts = torch.zeros(2, 3, dtype=torch.float64)
        if mean is not None:
            count = step + 2
            sums[1], counts[1] = mean * count, count
            expected = 0.995 * expected + 0.005 * mean
        importance_V = next_importance(importance_V, sums, counts)
    assert importance_V.tolist() == [START, pytest.approx(expected, rel=1e-12), START]


def test_a_skipped_step_leaves_the_importance_unchanged() -> None:
    """A step with a non-finite loss passes None instead of losses by token id, and the learned importance stays."""
    method = build()
    learned_V = method.observe(method.initial_state(5), torch.ones(2, 5, dtype=torch.float64))
    assert learned_V is not None and method.observe(learned_V, None) is learned_V
    assert build(selector="random").observe(None, None) is None


def test_the_most_important_tokens_are_kept_and_ties_are_random() -> None:
    """Compared with sorting in plain Python; only four importances occur, so that most cut-offs fall on ties."""
    generator = torch.Generator().manual_seed(0)
    importance_BS = torch.randint(0, 4, (6, S), generator=generator).double()
    keys_BS = torch.stack([torch.randperm(S, generator=generator) for _ in range(6)])
    for strata, kept_tokens in ((1, 5), (4, 12), (1, S), (2, 2)):
        found = most_important(importance_BS, keys_BS, kept_tokens, strata)
        for row in range(6):
            expected: list[int] = []
            for start in range(0, S, S // strata):
                run = range(start, start + S // strata)
                run_sorted = sorted(run, key=lambda i: (-importance_BS[row, i].item(), keys_BS[row, i].item()))
                expected += sorted(run_sorted[: kept_tokens // strata])
            assert found[row].tolist() == expected


def test_unlearned_importance_draws_like_the_random_selector() -> None:
    """With equal importances, ties are broken as the random selector draws, and each sample independently of others."""
    tokens_BS = torch.arange(2 * S).view(2, S) % 50
    method = build(strata=2)
    found = method.select(Samples(IDS, tokens_BS, method.initial_state(50)), [6], 16)
    assert torch.equal(found, build(selector="random", strata=2).select(Samples(IDS), [6], 16))
    assert torch.equal(method.select(Samples(IDS[1:], tokens_BS[1:], method.initial_state(50)), [9], 16), found[:, 1:])


def test_special_ids_are_always_kept() -> None:
    tokens_BS = torch.arange(S)[None] % 16
    importance_V = torch.arange(16).double()
    method = build(special_ids=(0, 3))
    kept = method.select(Samples(IDS[:1], tokens_BS, importance_V), [6], 6)[0, 0]
    assert kept.tolist() == [0, 3, 15, 16, 19, 31]
    assert importance_of(tokens_BS, importance_V, (0, 3)).isinf().sum() == 4


def test_flops_of_an_entry_layer() -> None:
    """By hand for one head of size 8: QKV of all 32 tokens, the rest for 16 kept tokens, 16 * 33 / 2 pairs."""
    shape = ModelShape(3, 8, 20, 1, 1, 8, False, 64, 32)
    queries_keys_values, output, feed_forward = 2 * 32 * 8 * 24, 2 * 16 * 8 * 8, 2 * 16 * 8 * 20 * 2
    entry = queries_keys_values + 4 * (16 * 33 // 2) * 8 + output + feed_forward
    assert layer_flops(shape, 16, attends_to_all=True) == entry
    assert layer_flops(shape, 32, attends_to_all=True) == layer_flops(shape, 32)
    full = layer_flops(shape, 32)
    plan = StepPlan(32, (32, 16, 32), (1.0,) * 3, frozenset({2}))
    assert step_flops(shape, plan, 2) == 3 * 2 * (2 * full + entry + 2 * 32 * 8 * 64)
