"""Attention through the key-value cache equals plain attention over each sample's own tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron.ltd.layers.attention import FusedAttention
from megatron.ltd.layers.key_value_cache import KeyValueCache, current_cache
from tests.support import world

SLOTS, SAMPLES, HEADS, GROUPS, SIZE = 12, 3, 4, 2, 6
LENGTHS = torch.tensor([2, 5, 4])


@pytest.fixture(scope="module")
def attention() -> Iterator[FusedAttention]:
    with world():
        config = TransformerConfig(
            num_layers=1, hidden_size=HEADS * SIZE, num_attention_heads=HEADS, num_query_groups=GROUPS,
            attention_dropout=0.0,
        )  # fmt: skip
        yield FusedAttention(config, 1, AttnMaskType.causal, "self").eval()


@pytest.fixture
def tokens() -> tuple[Tensor, ...]:
    """Queries [SLOTS, B, N, D], keys and values [SLOTS, B, G, D] of whole texts."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(SLOTS, SAMPLES, heads, SIZE, generator=generator) for heads in (HEADS, GROUPS, GROUPS))


def plain(tokens: tuple[Tensor, ...], sample: int, position: int) -> Tensor:
    """Reference attention output [N · D] of the token at ``position``."""
    query_ND, key_TGD, value_TGD = tokens[0][position, sample], *(part[: position + 1, sample] for part in tokens[1:])
    heads = []
    for head, query_D in enumerate(query_ND):
        group = head // (HEADS // GROUPS)
        weights_T = torch.softmax(key_TGD[:, group] @ query_D / SIZE**0.5, dim=0)
        heads.append(weights_T @ value_TGD[:, group])
    return torch.cat(heads)


def attended(attention: FusedAttention, tokens: tuple[Tensor, ...], cache: KeyValueCache, samples: list[int],
             positions_BS: Tensor) -> Tensor:  # fmt: skip
    """Attention outputs [S, B, N · D] of the tokens at these positions, computed with the cache."""
    rows = positions_BS.t()
    with cache.reading(positions_BS):
        return attention(*(part[rows, torch.tensor(samples)] for part in tokens), None)


def test_each_sample_sees_its_own_tokens(attention: FusedAttention, tokens: tuple[Tensor, ...]) -> None:
    """Padded prompts of 2, 5 and 4 tokens, then one token at a time; after one sample has left, two at once."""
    cache = KeyValueCache(SLOTS)
    everyone = [0, 1, 2]
    prompts = attended(attention, tokens, cache, everyone, torch.arange(5).expand(SAMPLES, -1))
    for sample, length in enumerate(LENGTHS.tolist()):
        for position in range(length):
            assert torch.allclose(prompts[position, sample], plain(tokens, sample, position), atol=1e-6)
    for step in range(3):
        positions_B = LENGTHS + step
        found = attended(attention, tokens, cache, everyone, positions_B[:, None])[0]
        for sample, position in enumerate(positions_B.tolist()):
            assert torch.allclose(found[sample], plain(tokens, sample, position), atol=1e-6)
    cache.keep(torch.tensor([0, 2]))
    positions_BS = (LENGTHS[[0, 2]] + 3)[:, None] + torch.arange(2)
    found = attended(attention, tokens, cache, [0, 2], positions_BS)
    for place, sample in enumerate([0, 2]):
        for step, position in enumerate(positions_BS[place].tolist()):
            assert torch.allclose(found[step, place], plain(tokens, sample, position), atol=1e-6)


def test_unwritten_slots_do_not_affect_the_output(
    attention: FusedAttention, tokens: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unwritten slots may hold NaN, and an attention weight of zero times NaN is still NaN."""
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: self.new_full(shape, torch.nan))
    cache = KeyValueCache(SLOTS)
    attended(attention, tokens, cache, [0, 1, 2], torch.arange(5).expand(SAMPLES, -1))
    found = attended(attention, tokens, cache, [0, 1, 2], torch.tensor([[2], [9], [4]]))
    assert torch.allclose(found[0, 0], plain(tokens, 0, 2), atol=1e-6)


def test_the_cache_is_current_only_inside_its_block() -> None:
    cache = KeyValueCache(SLOTS)
    with cache.reading(torch.zeros(1, 1, dtype=torch.int64)):
        assert current_cache() is cache
    assert current_cache() is None


def test_more_tokens_than_slots_fail_an_assertion() -> None:
    with pytest.raises(AssertionError), KeyValueCache(3).reading(torch.arange(4)[None]):
        pass
