"""random-LTD: its flags, plans and stages, and the random selection of kept tokens."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig, parse_layers
from megatron.ltd.routing.sampling import kept_indices
from tests.support_errors import refused

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
def test_layer_lists_are_parsed(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 6, allow_edge_layers=False) == layers


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2-x", ("2-x", "2-23")),
        ("", ("2-23",)),
        ("2,,3", ("2,,3", "2-23")),
        ("-3", ("-3", "2-23")),
        ("0-2", ("--num-layers 6", 0)),
        ("2-7", ("--num-layers 6", 7)),
        ("4-2", ("4-2", "--num-layers 6")),
        ("1-3", ("layer 1", "--ltd-allow-edge-layers")),
        ("3,6", ("layer 6", "--ltd-allow-edge-layers")),
    ],
)
def test_bad_layer_lists_are_refused(text: str, names: tuple[object, ...]) -> None:
    with refused("--ltd-layers", *names):
        parse_layers(text, 6, allow_edge_layers=False)


def test_edge_layers_need_to_be_allowed() -> None:
    assert parse_layers("1-6", 6, allow_edge_layers=True) == (1, 2, 3, 4, 5, 6)
    assert build(ltd_layers="1,6", ltd_allow_edge_layers=True).plan(0).kept_tokens == (16, 64, 64, 64, 64, 16)


def test_by_default_all_but_the_first_and_last_layer_drop() -> None:
    assert build().plan(0).kept_tokens == (64, 16, 16, 16, 16, 64)
    assert build().plan(0).keep_probability == (1.0,) * 6
    with refused("--num-layers 2"):
        build(ModelFacts(2, 64, 1))


def test_strata_that_the_shards_of_a_sequence_do_not_divide_are_refused() -> None:
    """All shards must keep equally many tokens, or the ranks would compute on sequences of unequal length."""
    with refused("--ltd-strata 2", 4):
        build(ModelFacts(6, 64, 1, sequence_parts=4), ltd_strata=2)
    assert build(ModelFacts(6, 64, 1, sequence_parts=4), ltd_strata=8).settings["ltd_strata"] == 8


def test_whole_blocks_are_selected_and_the_name_says_so() -> None:
    ids = torch.tensor([5, 900])
    method = build(ltd_block_size=4, ltd_strata=2)
    assert torch.equal(
        method.select(Samples(ids), [3], 24)[0], kept_indices(11, ids, 3, 64, 24, strata=2, block_size=4)
    )
    assert method.name == "random-LTD in blocks of 4" and build().name == "random-LTD"
    assert method.settings["method"] == build().settings["method"] == "random_ltd"


def test_the_selection_is_that_of_kept_indices() -> None:
    """It depends on the run's seed, the sample ids, the layer and the strata, and on nothing else."""
    ids = torch.tensor([5, 900, 5])
    (found,) = build(ltd_strata=4).select(Samples(ids), [3], 24)
    assert torch.equal(found, kept_indices(11, ids, 3, 64, 24, strata=4))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert torch.bincount(found[0] // 16, minlength=4).tolist() == [6, 6, 6, 6]
