"""Keys and values of the tokens that a model has read, so that each new token costs one token's work.

B samples, S new tokens, T slots, G key-value heads of this tensor-parallel rank, D head size.

              slot = position        a sample's slots end at its own newest token:
    sample 0  k k k k k k . .        columns above a query's position are masked,
    sample 1  k k k x x . . .        and padding (x) is overwritten before it is seen

    cache = KeyValueCache(slots=8)
    with cache.reading(positions_BS):   # the first time the prompts, positions 0, 1, ...; then token by token
        hidden = decoder(...)           # each attention module asks current_cache()

What is kept is what core attention gets: keys with their rotary embedding. Not here: generation itself
(``evaluation.decoding``), and Transformer Engine's attention, which knows nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class KeyValueCache:
    """The cache of one batch: of each layer two tensors [B, G, T, D], made at the layer's first use."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._positions_BS: Tensor | None = None
        self._end = 0
        self._forbidden: Tensor | None = None

    @contextmanager
    def reading(self, positions_BS: Tensor) -> Iterator[None]:
        """Make this the cache of the layers called inside the block, for tokens at these positions, int64.

        The first tokens are a prompt at positions 0 to S - 1 of every sample, and none but later ones may follow.
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
        """Keep the new tokens' keys and values of a layer; all that its queries may see.

        Keys and values [T, B, G, D], and the mask [B, 1, S, T], True where attending is forbidden; None for a prompt,
        which is plainly causal.
        """
        assert self._positions_BS is not None, "outside of reading()"
        if layer_number not in self._layers:
            S, B, G, D = key_SBGD.shape
            # Zeros: a masked slot weighs nothing, and nothing times what memory happens to hold may be NaN.
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
        """Go on with these samples alone, by their places in the batch, int64."""
        self._layers = {number: (key[samples_N], value[samples_N]) for number, (key, value) in self._layers.items()}


_current_cache: ContextVar[KeyValueCache | None] = ContextVar("key_value_cache", default=None)


def current_cache() -> KeyValueCache | None:
    """The cache of the tokens being computed, or None if all of them are."""
    return _current_cache.get()
