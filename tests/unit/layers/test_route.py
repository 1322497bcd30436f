"""The route of the current microbatch: its kept tokens, where it is in effect, and what recomputation sees."""

from __future__ import annotations

import threading

import pytest
import torch

from megatron.ltd.layers import route as routes
from megatron.ltd.layers.route import Place, Route, current_route, use_route
from megatron.ltd.methods.base import Samples
from megatron.ltd.routing.gather_scatter import flat_rows
from megatron.ltd.routing.sampling import kept_indices
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.schedules.step_plan import StepPlan
from tests.support import random_ltd, small_model, world
from tests.support_dispatch import Operations

MODEL = small_model()


def make_route(*sample_ids: int, step: int = 0) -> Route:
    method = random_ltd(MODEL, 5)
    return Route(method.plan(step), method, Samples(torch.tensor(sample_ids)))


def test_kept_tokens_come_from_the_method_or_are_none_for_all() -> None:
    route = make_route(3, 4)
    assert route.kept_tokens(1) is None
    assert route.kept_tokens(3) is None
    assert torch.equal(route.kept_tokens(2).kept_BK, kept_indices(7, torch.tensor([3, 4]), 2, 16, 5))
    assert make_route(3, 4, step=10).kept_tokens(2) is None


def test_the_layers_of_a_chunk_are_drawn_together_and_once() -> None:
    """A chunk with layers 3 to 5, on the second of two sequence-parallel ranks."""
    model = small_model(num_layers=6)
    method, samples = random_ltd(model, 6, ltd_strata=2, ltd_granularity=2), Samples(torch.tensor([3, 4]))
    own, attention = SequenceShard.of(0, 1, 1, 2), SequenceShard.of(0, 1)
    route, place = Route(method.plan(0), method, samples), Place(range(3, 6), own, attention)
    with Operations() as operations:
        kept = [route.kept_tokens(layer, place) for layer in (3, 4, 5, 3)]
    assert operations.names["topk"] == 1 and kept[3] is kept[0]
    for layer, tokens in zip((3, 4, 5), kept, strict=False):
        expected_BK = kept_indices(7, samples.sample_ids_B, layer, 16, 6, strata=2)
        assert torch.equal(tokens.kept_BK, expected_BK) and torch.equal(tokens.attending_BK, expected_BK)
        assert torch.equal(tokens.own_BK, expected_BK[:, 3:] - 8)
        assert torch.equal(tokens.rows, flat_rows(tokens.own_BK))


def test_layers_that_keep_other_numbers_of_tokens() -> None:
    method, samples = random_ltd(small_model(num_layers=6), 6), Samples(torch.tensor([3, 4]))
    route = Route(StepPlan(16, (16, 6, 4, 16, 6, 16), (1.0,) * 6), method, samples)
    kept = {layer: tokens.kept_BK for layer in range(1, 7) if (tokens := route.kept_tokens(layer)) is not None}
    assert kept.keys() == {2, 3, 5}
    for layer, amount in ((2, 6), (3, 4), (5, 6)):
        assert torch.equal(kept[layer], kept_indices(7, samples.sample_ids_B, layer, 16, amount))


def test_a_route_holds_inside_its_block_and_nests() -> None:
    outer, inner = make_route(1), make_route(2)
    assert current_route() is None
    with use_route(outer):
        with use_route(inner):
            assert current_route() is inner
        assert current_route() is outer
        with use_route(None):
            assert current_route() is None
    assert current_route() is None


def test_an_error_ends_a_route() -> None:
    with pytest.raises(ZeroDivisionError), use_route(make_route(1)):
        raise ZeroDivisionError
    assert current_route() is None


@pytest.mark.parametrize("where", ["this thread", "another thread"])
def test_recomputation_sees_the_route_of_the_forward_pass(where: str) -> None:
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    seen: list[Route | None] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(current_route())
        return x * x

    recorded, other = make_route(1), make_route(2)
    x = torch.ones(2, requires_grad=True)
    with world():
        model_parallel_cuda_manual_seed(1)
        with use_route(recorded):
            y = tensor_parallel.checkpoint(function, False, x).sum()
        with use_route(other):
            if where == "this thread":
                y.backward()
            else:
                thread = threading.Thread(target=y.backward)
                thread.start()
                thread.join()
            assert current_route() is other
    assert len(seen) == 2 and all(route is recorded for route in seen)
    assert torch.equal(x.grad, torch.full((2,), 2.0))


def test_installing_twice_wraps_once() -> None:
    from megatron.core import tensor_parallel

    routes.install()
    wrapped = tensor_parallel.checkpoint
    routes.install()
    assert tensor_parallel.checkpoint is wrapped
