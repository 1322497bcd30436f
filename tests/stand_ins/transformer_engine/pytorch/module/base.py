"""What all modules share: the extra state in ``state_dict``, and how parameters are made.

The extra state is an empty tensor without fp8. With fp8 it is a pickle, as bytes in a tensor; loading one unpickles it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...unreached import unreached

get_dummy_wgrad, get_workspace = unreached("get_dummy_wgrad"), unreached("get_workspace")


class WithExtraState(nn.Module):
    """A module whose state includes that of fp8."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False}

    def get_extra_state(self) -> Tensor:
        if not self.fp8_meta["fp8_checkpoint"]:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(pickle.dumps({"extra_fp8_variables": self.fp8_meta})), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | io.BytesIO | None) -> None:
        if state is None or (isinstance(state, Tensor) and state.numel() == 0):
            return
        if isinstance(state, Tensor):
            loaded = pickle.loads(state.detach().cpu().numpy().tobytes())
        elif isinstance(state, io.BytesIO):
            loaded = torch.load(state, weights_only=False)
        else:
            raise RuntimeError("Unsupported checkpoint format.")
        self.fp8_meta.update(loaded["extra_fp8_variables"])


class TransformerEngineBaseModule(WithExtraState):
    """A module that may be one part of a layer that is split over ``tp_group``."""

    tp_group: ProcessGroup | None = None

    def set_tensor_parallel_group(self, tp_group: ProcessGroup | None) -> None:
        self.tp_group = tp_group

    def make_parameter(
        self, shape: tuple[int, ...], dtype: torch.dtype | None, device: Any, set_values: Callable[[Tensor], Any]
    ) -> nn.Parameter:
        parameter = nn.Parameter(torch.empty(shape, dtype=dtype or torch.get_default_dtype(), device=device))
        with torch.no_grad():
            set_values(parameter)
        return parameter
