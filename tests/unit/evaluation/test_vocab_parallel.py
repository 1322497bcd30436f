"""Log-probabilities from logits that are split over the vocabulary; several ranks are in tests/distributed."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.evaluation.vocab_parallel import target_log_probabilities


class OneRank:
    """A process group of one rank."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_log_softmax_over_true_ids(dtype: torch.dtype) -> None:
    logits_NV = (8 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits_NV[:, 33:] += 30.0  # logits of padding ids, which would always be the largest
    targets_N = torch.arange(50) % 33
    expected = logits_NV[:, :33].float().log_softmax(-1)
    found, are_likeliest = target_log_probabilities(logits_NV.clone(), targets_N, OneRank(), 33)
    assert torch.allclose(found, expected.gather(1, targets_N[:, None])[:, 0], atol=1e-5, rtol=0)
    assert are_likeliest.tolist() == (expected.argmax(1) == targets_N).tolist()


def test_of_equally_likely_tokens_the_lowest_id_is_the_likeliest() -> None:
    logits_NV = torch.tensor([[0.0, 2.0, 2.0, 2.0]]).expand(4, -1).clone()
    _, are_likeliest = target_log_probabilities(logits_NV, torch.arange(4), OneRank(), 4)
    assert are_likeliest.tolist() == [False, True, False, False]
