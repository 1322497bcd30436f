"""What all modules share: the extra state in ``state_dict``, and how parameters are made.

The extra state is an empty tensor without fp8. With fp8 it is a pickle, as bytes in a tensor; loading one unpickles it,
though not here into scales, for which our checkpoints have tensors.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...signatures import recorded
from ...unreached import unreached
from ..fp8 import FP8GlobalStateManager, Scaling, SeeGradient, check_sizes

get_dummy_wgrad, get_workspace = unreached("get_dummy_wgrad"), unreached("get_workspace")


class WithExtraState(nn.Module):
    """A module whose state includes that of fp8."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False}

    def get_extra_state(self) -> Tensor:
        if not self.fp8_meta["fp8_checkpoint"]:
            return torch.empty(0, dtype=torch.uint8)
        plain = {name: value for name, value in self.fp8_meta.items() if isinstance(value, (bool, int, float, str))}
        return torch.frombuffer(bytearray(pickle.dumps({"extra_fp8_variables": plain})), dtype=torch.uint8)

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
    sequence_parallel = False
    parallel_mode: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = self.fp8_initialized = self.fp8_meta_tensors_initialized = False
        self._block = 0
        """The number of the block that the module has computed in."""
        self._recomputed: deque[Tensor] = deque()
        """Largest values of the input, of each microbatch whose forward pass will run again."""

    @recorded("pytorch.module.base.TransformerEngineBaseModule.init_fp8_meta_tensors")
    def init_fp8_meta_tensors(self, recipe: Any) -> None:
        sizes = {"scaling_fwd": 3 * self.fp8_meta["num_gemms"], "scaling_bwd": 2 * self.fp8_meta["num_gemms"]}
        for (name, number), largest in zip(sizes.items(), recipe.fp8_format.value, strict=True):
            if not isinstance(self.fp8_meta.get(name), Scaling):
                self.fp8_meta[name] = Scaling(recipe, number, largest) if recipe.delayed() else None
        self.fp8_meta_tensors_initialized = True

    @recorded("pytorch.module.base.TransformerEngineBaseModule.get_fp8_meta_tensors")
    def get_fp8_meta_tensors(self) -> dict[str, list[Tensor]] | None:
        if "scaling_fwd" not in self.fp8_meta:
            return None
        scalings = {name: self.fp8_meta[name] for name in ("scaling_fwd", "scaling_bwd")}
        return {name: [found.scale.clone(), found.amax_history.clone()] for name, found in scalings.items()}

    @recorded("pytorch.module.base.TransformerEngineBaseModule.reset_fp8_meta_tensors")
    def reset_fp8_meta_tensors(self, fp8_meta_tensors: dict[str, list[Tensor]]) -> None:
        for name, (scale, history) in fp8_meta_tensors.items():
            self.fp8_meta[name].scale.copy_(scale)
            self.fp8_meta[name].amax_history.copy_(history)

    def see(self, values: Tensor, weight: Tensor, is_first_microbatch: bool | None) -> None:
        """What precedes a product."""
        manager = FP8GlobalStateManager
        if self.fp8 and manager.recomputes:
            if self.fp8_meta["recipe"].delayed():
                expected = self._recomputed.popleft()
                assert values.abs().amax() == expected, "recomputed on other tokens than those of the forward pass"
            return
        self.fp8 = self.fp8_meta["fp8_checkpoint"] = manager.enabled
        if not self.fp8:
            self.fp8_initialized = False
            return
        recipe: Any = manager.recipe
        if not self.fp8_initialized or recipe != self.fp8_meta["recipe"]:
            self.fp8_meta |= {"recipe": recipe, "num_gemms": 1, "fp8_group": manager.group}
            self.init_fp8_meta_tensors(recipe)
            self.fp8_initialized = True
        gathers = self.sequence_parallel and self.parallel_mode == "column"
        check_sizes(recipe, values, weight, gathers=gathers)
        if not recipe.delayed():
            return
        assert self._block != manager.blocks, "a module computes twice in one block of delayed scaling"
        self._block = manager.blocks
        manager.add_fp8_tensors_to_global_buffer(self.fp8_meta)
        if self.training and manager.records:
            self._recomputed.append(values.detach().abs().amax())
        self.fp8_meta["scaling_fwd"].see(0, values)
        if is_first_microbatch is not False:
            self.fp8_meta["scaling_fwd"].see(1, weight)

    def see_gradient(self, product: Tensor) -> Tensor:
        """The product, whose gradient is seen in the backward pass."""
        manager = FP8GlobalStateManager
        if not self.fp8 or not torch.is_grad_enabled():
            return product
        ends_backward, manager.is_first = manager.is_first, manager.is_first and manager.recomputes
        return SeeGradient.apply(product, self.fp8_meta["scaling_bwd"], ends_backward)

    def set_tensor_parallel_group(self, tp_group: ProcessGroup | None) -> None:
        self.tp_group = tp_group

    def make_parameter(
        self, shape: tuple[int, ...], dtype: torch.dtype | None, device: Any, set_values: Callable[[Tensor], Any]
    ) -> nn.Parameter:
        parameter = nn.Parameter(torch.empty(shape, dtype=dtype or torch.get_default_dtype(), device=device))
        with torch.no_grad():
            set_values(parameter)
        return parameter
