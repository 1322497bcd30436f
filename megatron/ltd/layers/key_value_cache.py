"""A key-value cache for generation: each new token costs the work of one token.

B samples, S new tokens, T slots, G key-value heads of this tensor-parallel rank, D head size.

              slot = position        the slots of a sample end at its newest token:
    sample 0  k k k k k k . .        columns above the position of a query are masked,
    sample 1  k k k x x . . .        and padding (x) is overwritten before it is read

    cache = KeyValueCache(slots=8)
    with cache.reading(positions_BS):   # first the prompts, positions 0, 1, ...; then token by token
        hidden = decoder(...)           # each attention module calls current_cache()

Keys are cached with their rotary embedding, as core attention receives them. Not here: generation itself
(``evaluation.decoding``), and Transformer Engine's attention, which does not use this cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class KeyValueCache:
    """The cache of one batch: for each layer two tensors [B, G, T, D], created at its first use."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._positions_BS: Tensor | None = None
        self._end = 0
        self._forbidden: Tensor | None = None

    @contextmanager
    def reading(self, positions_BS: Tensor) -> Iterator[None]:
        """Within the block layers use this cache, for tokens at these positions, int64.

        The first tokens are a prompt at positions 0 to S - 1 of every sample; after it positions must increase.
        """
        self._positions_BS = positions_BS
        if not self._layers:
            self._end, self._forbidden = positions_BS.shape[1], None
        else:
            self._end = int(positions_BS.max()) + 1
            slots_T = torch.arange(self._end, device=positions_BS.device)
            self._forbidden = (slots_T > positions_BS[:, :, None]).unsqueeze(1)
        assert self._end <= self.slots, (self._end, self.slots)
        token = _current_cache.set(self)
        try:
            yield
        finally:
            _current_cache.reset(token)

    def extend(self, layer_number: int, key_SBGD: Tensor, value_SBGD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the new tokens' keys and values of a layer, and return all that the queries may attend to.

        Keys and values [T, B, G, D], and the mask [B, 1, S, T], True where attending is forbidden; None for a prompt,
        which is causal.
        """
        assert self._positions_BS is not None, "outside of reading()"
        if layer_number not in self._layers:
            S, B, G, D = key_SBGD.shape
            # Zeros, because a masked slot has weight 0, and 0 times uninitialised memory may be NaN.
            key, value = (new.new_zeros(B, G, self.slots, D) for new in (key_SBGD, value_SBGD))
            self._layers[layer_number] = key, value
            for kept_BGTD, new_SBGD in zip(self._layers[layer_number], (key_SBGD, value_SBGD), strict=True):
                kept_BGTD[:, :, :S] = new_SBGD.permute(1, 2, 0, 3)
            return key_SBGD, value_SBGD, None
        sample_B1 = torch.arange(key_SBGD.shape[1], device=key_SBGD.device)[:, None]
        for kept_BGTD, new_SBGD in zip(self._layers[layer_number], (key_SBGD, value_SBGD), strict=True):
            kept_BGTD[sample_B1, :, self._positions_BS] = new_SBGD.transpose(0, 1)
        key, value = (kept_BGTD[:, :, : self._end].permute(2, 0, 1, 3) for kept_BGTD in self._layers[layer_number])
        return key, value, self._forbidden

    def keep(self, samples_N: Tensor) -> None:
        """Drop all but these samples, given by their indices in the batch, int64."""
        self._layers = {number: (key[samples_N], value[samples_N]) for number, (key, value) in self._layers.items()}


_current_cache: ContextVar[KeyValueCache | None] = ContextVar("key_value_cache", default=None)


def current_cache() -> KeyValueCache | None:
    """The cache in use, or None if all tokens are computed."""
    return _current_cache.get()
