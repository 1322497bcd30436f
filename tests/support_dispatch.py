"""The operations that a piece of code gives to torch: how many there are, and which of them wait for a GPU.

with Operations() as operations:      everything that runs in this thread, the backward pass of CPU tensors included
    ...
operations.names                      Counter of "index_select", "clone", ...; views are left out
operations.waiting                    Counter of those that would wait for a GPU
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_OF_THE_VALUES = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique", "_unique2",
    "unique_dim", "unique_consecutive",
}  # fmt: skip
"""Operations whose result, or its shape, the host needs."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.copied: Counter[tuple[int, ...]] = Counter()
        """Shapes of what was cloned."""
        self._before = ""

    def __torch_dispatch__(self, operation: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        name, _, overload = operation.name().removeprefix("aten::").partition(".")
        counted = (name, overload) == ("repeat_interleave", "Tensor") or (name == "index" and _has_mask(args))
        if name in _OF_THE_VALUES or counted or (name == "index_put_" and _has_mask(args) and args[2].dim() > 0):
            self.waiting[name] += 1
        if name == "lift_fresh":  # torch.tensor and its like: numbers that are copied to the device
            self.waiting[name] += 1
        elif not operation.is_view:
            if self._before == "lift_fresh" and name in ("index_put_", "copy_") and args[-1].dim() == 0:
                self.waiting["lift_fresh"] -= 1  # tensor[place] = number: made on the device if the tensor is there
            self.names[name] += 1
            if name == "clone":
                self.copied[tuple(made.shape)] += 1
        self._before = self._before if operation.is_view and name != "lift_fresh" else name
        return made


def _has_mask(args: Any) -> bool:
    """Whether a mask is an index: the host must know how much of it is true, unless one value is filled in."""
    return any(index is not None and index.dtype == torch.bool for index in args[1])
