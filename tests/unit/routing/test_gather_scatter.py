"""Gather and scatter against plain indexing and numerical gradients; the fused pair is bit-equal to the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron.ltd.routing.gather_scatter import (
    entry_mask,
    flat_rows,
    gather_mask,
    gather_rotary,
    gather_tokens,
    merge_tokens,
    scatter_tokens,
    split_tokens,
)
from tests.support_dispatch import Operations

S, B, H, K = 7, 3, 4, 3
KEPT_BK = torch.tensor([[0, 2, 6], [1, 2, 3], [0, 4, 5]])
ROWS = flat_rows(KEPT_BK)


def hidden(dtype: torch.dtype = torch.float64, seed: int = 0, length: int = S) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, B, H, dtype=dtype, generator=generator).requires_grad_()


def column_indices(kept_BK: Tensor) -> tuple[Tensor, Tensor]:
    return kept_BK.t(), torch.arange(kept_BK.shape[0])[None, :]


def test_gather_is_plain_indexing() -> None:
    x_SBH = hidden()
    part_KBH = gather_tokens(x_SBH, KEPT_BK)
    expected_KBH = x_SBH[column_indices(KEPT_BK)]
    assert torch.equal(part_KBH, expected_KBH)
    grad_KBH = torch.randn_like(part_KBH)
    (grad,) = torch.autograd.grad(part_KBH, x_SBH, grad_KBH)
    (expected,) = torch.autograd.grad(expected_KBH, x_SBH, grad_KBH)
    assert torch.equal(grad, expected)


def test_scatter_is_plain_indexing() -> None:
    x_SBH, part_KBH = hidden(), hidden(seed=1, length=K)
    out_SBH = scatter_tokens(x_SBH, part_KBH, KEPT_BK)
    expected_SBH = x_SBH.index_put(column_indices(KEPT_BK), part_KBH)
    assert torch.equal(out_SBH, expected_SBH)
    grad_SBH = torch.randn_like(out_SBH)
    grads = torch.autograd.grad(out_SBH, (x_SBH, part_KBH), grad_SBH)
    expected = torch.autograd.grad(expected_SBH, (x_SBH, part_KBH), grad_SBH)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_gradients_of_gather_and_scatter() -> None:
    x_SBH, part_KBH = hidden(), hidden(seed=1, length=K)
    assert torch.autograd.gradcheck(lambda x: gather_tokens(x, KEPT_BK), x_SBH)
    assert torch.autograd.gradcheck(lambda x, part: scatter_tokens(x, part, KEPT_BK), (x_SBH, part_KBH))


def fused(x_SBH: Tensor) -> Tensor:
    part_KBH, rest_SBH = split_tokens(x_SBH, ROWS)
    return merge_tokens(rest_SBH, part_KBH.tanh() * 3.0, ROWS)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_the_fused_pair_are_right_together(layers: int) -> None:
    def run(x_SBH: Tensor) -> Tensor:
        return fused(x_SBH) if layers == 1 else fused(fused(x_SBH))

    assert torch.autograd.gradcheck(run, hidden())
    assert torch.autograd.gradgradcheck(run, hidden())


def routed_layers(x_SBH: Tensor, weights: list[Tensor], fast: bool) -> Tensor:
    """Layers in a row that each compute on other tokens, with the fused pair (``fast``) or the plain one."""
    for layer, weight_HH in enumerate(weights):
        kept_BK = (KEPT_BK + layer) % S
        kept_BK = kept_BK.sort(dim=1).values
        if fast:
            rows = flat_rows(kept_BK)
            part_KBH, rest_SBH = split_tokens(x_SBH, rows)
            x_SBH = merge_tokens(rest_SBH, part_KBH + (part_KBH @ weight_HH).tanh(), rows)
        else:
            part_KBH = gather_tokens(x_SBH, kept_BK)
            x_SBH = scatter_tokens(x_SBH, part_KBH + (part_KBH @ weight_HH).tanh(), kept_BK)
    return x_SBH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_pair_is_bit_equal_to_the_plain_pair(dtype: torch.dtype) -> None:
    outcomes = []
    for fast in (False, True):
        leaf_SBH = hidden(dtype)
        weights = [hidden(dtype, seed=layer, length=H)[:, 0].detach().requires_grad_() for layer in range(1, 5)]
        out_SBH = routed_layers(leaf_SBH * 1.5, weights, fast)
        out_SBH.square().sum().backward()
        outcomes.append([out_SBH, leaf_SBH.grad, *(weight.grad for weight in weights)])
    assert all(torch.equal(plain, quick) for plain, quick in zip(*outcomes, strict=True))


def test_a_shared_gradient_is_not_modified() -> None:
    """Autograd passes one gradient tensor to merge and to a sibling, so writing into it would corrupt both."""
    x_SBH, sibling_SBH = hidden(), hidden(seed=2)
    part_KBH, rest_SBH = split_tokens(x_SBH * 1.0, ROWS)
    total_SBH = merge_tokens(rest_SBH, part_KBH * 5.0, ROWS) + sibling_SBH
    grad_SBH = torch.randn_like(total_SBH)
    untouched_SBH = grad_SBH.clone()
    _, sibling_grad_SBH = torch.autograd.grad(total_SBH, (x_SBH, sibling_SBH), grad_SBH)
    assert torch.equal(grad_SBH, untouched_SBH)
    assert torch.equal(sibling_grad_SBH, untouched_SBH)


def expected_grad(part_factor: float, rest_factor: float) -> Tensor:
    grad_SBH = torch.full((S, B, H), rest_factor, dtype=torch.float64)
    grad_SBH[column_indices(KEPT_BK)] = part_factor
    return grad_SBH


def test_a_part_that_does_not_reach_the_loss() -> None:
    x_SBH = hidden()
    _, rest_SBH = split_tokens(x_SBH, ROWS)
    merge_tokens(rest_SBH, hidden(seed=1, length=K).detach(), ROWS).sum().backward()
    assert torch.equal(x_SBH.grad, expected_grad(0.0, 1.0))


def test_a_rest_that_does_not_reach_the_loss() -> None:
    x_SBH = hidden()
    part_KBH, _ = split_tokens(x_SBH, ROWS)
    (part_KBH * 2.0).sum().backward()
    assert torch.equal(x_SBH.grad, expected_grad(2.0, 0.0))


@pytest.mark.parametrize(
    ("put_back", "places"), [(scatter_tokens, KEPT_BK), (merge_tokens, ROWS)], ids=["scatter", "merge"]
)
def test_frozen_hidden_states_or_part(put_back: Callable[[Tensor, Tensor, Tensor], Tensor], places: Tensor) -> None:
    x_SBH, part_KBH = hidden(), hidden(seed=1, length=K)
    put_back(x_SBH.detach(), part_KBH, places).sum().backward()
    assert torch.equal(part_KBH.grad, torch.ones_like(part_KBH))
    scatter_tokens(x_SBH, part_KBH.detach(), KEPT_BK).sum().backward()
    assert torch.equal(x_SBH.grad, expected_grad(0.0, 1.0))


def test_a_leaf_is_not_written_and_the_output_is_not_a_view() -> None:
    x_SBH = hidden()
    before_SBH = x_SBH.detach().clone()
    out_SBH, scattered_SBH = fused(x_SBH), scatter_tokens(x_SBH, hidden(seed=1, length=K), KEPT_BK)
    assert torch.equal(x_SBH, before_SBH)
    assert out_SBH._base is None and scattered_SBH._base is None


def test_what_an_operation_computed_is_overwritten() -> None:
    computed_SBH = hidden() * 1.0
    assert fused(computed_SBH).data_ptr() == computed_SBH.data_ptr()


def test_the_input_of_a_checkpointed_function_is_not_written() -> None:
    """The input is saved after the function's first pass, so that autograd would not detect a write to it."""
    outcomes = []
    for checkpointed in (False, True):
        leaf_SBH = hidden()
        given_SBH = leaf_SBH * 1.5
        before_SBH = given_SBH.detach().clone()

        def two_layers(x_SBH: Tensor) -> Tensor:
            return fused(fused(x_SBH))

        out_SBH = checkpoint(two_layers, given_SBH, use_reentrant=True) if checkpointed else two_layers(given_SBH)
        assert torch.equal(given_SBH, before_SBH) is checkpointed
        out_SBH.square().sum().backward()
        outcomes.append((out_SBH, leaf_SBH.grad))
    assert all(torch.equal(plain, replayed) for plain, replayed in zip(*outcomes, strict=True))


def copies_of(function: Callable[[], object]) -> int:
    """How many copies of all tokens ``function`` makes."""
    with Operations() as operations:
        function()
    return operations.copied[S, B, H]


@pytest.mark.parametrize("layers", [1, 4])
def test_copies_do_not_grow_with_the_layers(layers: int) -> None:
    """There is one copy of the leaf, and one of the gradient that comes from outside."""
    weights = [hidden(seed=layer, length=H)[:, 0].detach() for layer in range(layers)]
    outputs: list[Tensor] = []
    assert copies_of(lambda: outputs.append(routed_layers(hidden(), weights, True))) == 1
    assert copies_of(lambda: outputs[0].sum().backward()) == 1
    assert copies_of(lambda: outputs.append(routed_layers(hidden() * 1.0, weights, True))) == 0
    with torch.no_grad():  # the first pass of a function that is recomputed
        assert copies_of(lambda: routed_layers(hidden(), weights, True)) == 1


def test_hidden_states_that_are_not_contiguous() -> None:
    x_SBH = hidden().transpose(0, 1).contiguous().transpose(0, 1)
    assert not x_SBH.is_contiguous()
    assert torch.equal(fused(x_SBH), fused(x_SBH.contiguous()))
    assert torch.equal(gather_tokens(x_SBH, KEPT_BK), x_SBH[column_indices(KEPT_BK)])


@pytest.mark.parametrize("batch", [1, B])
def test_masks_keep_their_own_rows_and_columns(batch: int) -> None:
    mask = torch.rand(batch, 1, S, S, generator=torch.Generator().manual_seed(3)) < 0.5
    kept_mask = gather_mask(mask, KEPT_BK)
    assert kept_mask is not None and kept_mask.shape == (B, 1, K, K) and kept_mask.dtype == torch.bool
    for sample in range(B):
        rows = KEPT_BK[sample].tolist()
        source = mask[sample if batch > 1 else 0, 0]
        assert kept_mask[sample, 0].tolist() == [[source[q, k].item() for k in rows] for q in rows]


def test_the_causal_mask_of_kept_tokens_is_causal() -> None:
    causal = torch.ones(S, S, dtype=torch.bool).triu(1)[None, None]
    assert torch.equal(gather_mask(causal, KEPT_BK), torch.ones(K, K, dtype=torch.bool).triu(1).expand(B, 1, K, K))


@pytest.mark.parametrize("batch", [1, B])
def test_padding_masks_keep_their_own_columns(batch: int) -> None:
    mask = torch.rand(batch, 1, 1, S, generator=torch.Generator().manual_seed(3)) < 0.5
    assert torch.equal(gather_mask(mask, KEPT_BK), mask.expand(B, 1, 1, S).gather(3, KEPT_BK[:, None, None, :]))


def test_rotary_embeddings_are_those_of_the_true_positions() -> None:
    rotary_S11D = torch.outer(torch.arange(S).float(), torch.tensor([1.0, 0.1]))[:, None, None, :]
    kept_KB1D = gather_rotary(rotary_S11D, KEPT_BK)
    assert isinstance(kept_KB1D, Tensor) and kept_KB1D.shape == (K, B, 1, 2)
    assert torch.equal(kept_KB1D[:, :, 0, 0], KEPT_BK.t().float())
    pair = gather_rotary((rotary_S11D, rotary_S11D * 2.0), KEPT_BK)
    same = gather_rotary((rotary_S11D, rotary_S11D), KEPT_BK)
    assert isinstance(pair, tuple) and isinstance(same, tuple)
    assert torch.equal(pair[0], kept_KB1D) and torch.equal(pair[1], kept_KB1D * 2.0)
    assert torch.equal(same[0], kept_KB1D) and torch.equal(same[1], kept_KB1D)


def test_none_stays_none() -> None:
    assert gather_mask(None, KEPT_BK) is None
    assert gather_rotary(None, KEPT_BK) is None


def test_the_mask_of_kept_queries_over_all_tokens() -> None:
    """It equals rows of the dense mask, for the whole sequence and for a rank that holds part of the rows."""
    causal_SS = torch.ones(S, S, dtype=torch.bool).triu(1)
    found = entry_mask(None, KEPT_BK, KEPT_BK, S)
    assert torch.equal(found, torch.stack([causal_SS[kept] for kept in KEPT_BK])[:, None])

    dense_B1SS = (torch.rand(B, 1, S, S, generator=torch.Generator().manual_seed(1)) < 0.5) | causal_SS
    found = entry_mask(dense_B1SS, KEPT_BK, KEPT_BK, S)
    assert torch.equal(found, torch.stack([mask[:, kept] for mask, kept in zip(dense_B1SS, KEPT_BK, strict=True)]))
    share = [0, 1, 6]  # the positions of the rank's rows; it keeps its rows 0 and 2 of each sample
    rows_BQ = torch.tensor([[0, 2]] * B)
    found = entry_mask(dense_B1SS[:, :, share], torch.tensor([[0, 6]] * B), rows_BQ, S)
    assert torch.equal(found, dense_B1SS[:, :, [0, 6]])
    padding_B11S = torch.rand(B, 1, 1, S) < 0.5
    assert entry_mask(padding_B11S, KEPT_BK, KEPT_BK, S) is padding_B11S
