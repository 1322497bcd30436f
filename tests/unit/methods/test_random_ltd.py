"""random-LTD's flags, plans, stages and draw."""

from __future__ import annotations

import itertools

import pytest
import torch

from megatron.ltd.errors import UserError
from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig, parse_layers
from megatron.ltd.routing.sampling import kept_indices

FACTS = ModelFacts(num_layers=6, seq_length=64, seed=11)


def build(facts: ModelFacts = FACTS, **flags: object) -> RandomLTD:
    settings: dict[str, object] = {"ltd_min_kept_tokens": 16, "ltd_growth_steps": 12, "ltd_granularity": 8}
    return RandomLTD.build(RandomLTDConfig(random_ltd=True, **(settings | flags)), facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("2-4", (2, 3, 4)),
        ("2,4", (2, 4)),
        ("5,2-3", (2, 3, 5)),
        ("3-3", (3,)),
        (" 2 , 4-5 ", (2, 4, 5)),
        ("2-4,3", (2, 3, 4)),
    ],
)
def test_layer_lists(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 6, allow_edge_layers=False) == layers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2-x", '"2-x" is neither'),
        ("", "neither"),
        ("2,,3", "neither"),
        ("-3", "neither"),
        ("0-2", "0 is outside"),
        ("2-7", "7 is outside"),
        ("4-2", "the list is empty"),
        ("1-3", "layer 1 is the first layer"),
        ("3,6", "layer 6 is the last layer"),
    ],
)
def test_bad_layer_lists_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_layers(text, 6, allow_edge_layers=False)
    message = str(refused.value)
    assert "--ltd-layers" in message and said in message and "\n" not in message


def test_edge_layers_need_to_be_allowed() -> None:
    assert parse_layers("1-6", 6, allow_edge_layers=True) == (1, 2, 3, 4, 5, 6)
    assert build(ltd_layers="1,6", ltd_allow_edge_layers=True).plan(0).kept_tokens == (16, 64, 64, 64, 64, 16)


def test_by_default_all_but_the_first_and_last_layer_drop() -> None:
    assert build().plan(0).kept_tokens == (64, 16, 16, 16, 16, 64)
    assert build().plan(0).keep_probability == (1.0,) * 6
    with pytest.raises(UserError, match="--num-layers 2 has none between"):
        build(ModelFacts(2, 64, 1))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ltd_growth_steps": None}, "--ltd-growth-steps is missing"),
        ({"ltd_min_kept_tokens": 72}, "--ltd-min-kept-tokens 72 is above --seq-length 64"),
        ({"ltd_min_kept_tokens": 0}, "--ltd-min-kept-tokens 0"),
        ({"ltd_granularity": 5}, "--ltd-granularity 5 does not divide --ltd-min-kept-tokens 16"),
        ({"ltd_strata": 3}, "--ltd-strata is 3"),
        ({"ltd_strata": 0}, "--ltd-strata is 0"),
        ({"ltd_strata": 16}, "--ltd-strata is 16"),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(**flags)


def test_strata_that_the_shards_of_a_sequence_do_not_divide_are_refused() -> None:
    """Every shard keeps as many tokens as any other, or the ranks would compute on sequences of unequal length."""
    with pytest.raises(UserError, match="--ltd-strata is 2: it must be a multiple of 4, .*; use 4"):
        build(ModelFacts(6, 64, 1, sequence_runs=4), ltd_strata=2)
    assert build(ModelFacts(6, 64, 1, sequence_runs=4), ltd_strata=8).settings["ltd_strata"] == 8


def test_blocks_are_drawn_and_named() -> None:
    ids = torch.tensor([5, 900])
    method = build(ltd_block_size=4, ltd_strata=2)
    assert torch.equal(method.select(Samples(ids), 3, 24), kept_indices(11, ids, 3, 64, 24, strata=2, block_size=4))
    assert method.name == "random-LTD in blocks of 4" and build().name == "random-LTD"
    assert method.settings["method"] == build().settings["method"] == "random_ltd"


@pytest.mark.parametrize("num_steps", [1, 5, 12, 20])
def test_stages_are_the_plans_of_every_step(num_steps: int) -> None:
    method = build(ltd_layers="2,5")
    steps = itertools.chain.from_iterable(
        [(first + n, kept) for n in range(steps)] for first, steps, kept in method.stages(num_steps)
    )
    assert list(steps) == [(step, method.plan(step)) for step in range(num_steps)]
    assert method.plan(12).kept_tokens == (64,) * 6


def test_the_draw_is_the_contracts() -> None:
    """Of the run's seed, sample ids, layer and strata: nothing else."""
    ids = torch.tensor([5, 900, 5])
    found = build(ltd_strata=4).select(Samples(ids), 3, 24)
    assert torch.equal(found, kept_indices(11, ids, 3, 64, 24, strata=4))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert torch.bincount(found[0] // 16, minlength=4).tolist() == [6, 6, 6, 6]
