"""Sampling of the next token."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.evaluation.sampler import Sampler, pick_all
from tests.support_errors import refused


def chi_square(sampler: Sampler, weights: list[float], expected: list[float]) -> float:
    """The statistic of 4000 draws from these weights; infinite if a token was drawn that must never be."""
    logits_V = torch.tensor(weights).log()
    counts_V = torch.tensor([sampler.pick(logits_V) for _ in range(4000)]).bincount(minlength=len(weights)).double()
    expected_V = torch.tensor(expected).double()
    possible = expected_V > 0
    if counts_V[~possible].any():
        return float("inf")
    expected_V *= 4000 / expected_V.sum()
    return float(((counts_V - expected_V) ** 2 / expected_V)[possible].sum())


def test_top_k_samples_from_the_softmax_of_the_likeliest() -> None:
    """Top-k 3 of 5 at temperature 0.5, which squares the weights; 13.8 is the 0.999 quantile of chi-square."""
    sampler = Sampler.build(1234, temperature=0.5, top_k=3)
    assert chi_square(sampler, [1.0, 2.0, 3.0, 0.5, 0.9], [1.0, 4.0, 9.0, 0.0, 0.0]) < 13.8


def test_top_p_samples_from_the_fewest_tokens_that_reach_the_share() -> None:
    """0.4 + 0.3 is less than a top-p of 0.75, so 0.2 is kept too; at 0.65 these two tokens are enough."""
    weights = [0.1, 0.4, 0.2, 0.3]
    assert chi_square(Sampler.build(1, top_p=0.75), weights, [0.0, 0.4, 0.2, 0.3]) < 13.8
    assert chi_square(Sampler.build(2, top_p=0.65), weights, [0.0, 0.4, 0.0, 0.3]) < 10.8
    assert chi_square(Sampler.build(3, top_p=1e-6), weights, [0.0, 1.0, 0.0, 0.0]) == 0.0


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-3])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    assert Sampler.build(0, temperature).pick(torch.tensor([-2.0, 3e38, 1.0])) == 1
    assert Sampler.build(0, temperature).pick(torch.tensor([-2.0, -7.0, -1.0])) == 2


def test_each_text_has_its_own_sampler() -> None:
    logits_NV = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    greedy, drawing = Sampler.build(0, 0.0), Sampler.build(0, 1.0, top_k=1)
    assert pick_all([greedy, greedy], logits_NV) == pick_all([greedy, drawing], logits_NV) == [1, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(value: float, temperature: float) -> None:
    logits_NV = torch.zeros(2, 4)
    logits_NV[1, 2] = value
    with refused("--load", value):
        pick_all([Sampler.build(0, temperature), Sampler.build(1, temperature)], logits_NV)
