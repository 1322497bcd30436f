"""Which kernels compute attention (``--attention-backend``), and which attention they cannot compute.

               Transformer Engine's attention   ours (``layers.attention``) on CUDA
    auto       all three; it chooses            flash; memory-efficient with a mask, and in fp32
    flash      flash                            flash: no masks, half precision
    fused      cuDNN                            cuDNN: no masks, half precision
    unfused    plain products                   plain products
    local      ours takes its place             as auto

Ours computes attention with a mask under Transformer Engine too, which ignores a mask if its mask type is causal. torch
itself would choose among all kernels: cuDNN's backward pass gives NaN with some masks, and plain products store all
pairs of tokens. An attention that no kernel of the backend can compute is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.ltd.errors import UserError

_FUSED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_KERNELS = {
    AttnBackend.auto: _FUSED_KERNELS,
    AttnBackend.local: _FUSED_KERNELS,
    AttnBackend.flash: [SDPBackend.FLASH_ATTENTION],
    AttnBackend.fused: [SDPBackend.CUDNN_ATTENTION],
    AttnBackend.unfused: [SDPBackend.MATH],
}
_WITHOUT_MASKS = (AttnBackend.flash, AttnBackend.fused)
_VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
"""Transformer Engine's switches of flash, cuDNN and plain products. Megatron-Core asserts what they are."""
_SCALING = "NVTE_APPLY_QK_LAYER_SCALING"
"""Its switch of dividing scores by the number of the layer, which our layers do not do."""
USERS_SWITCHES = {name: os.environ[name] for name in (*_VARIABLES, _SCALING) if name in os.environ}
"""What they were when the program started."""


def check_backend(backend: AttnBackend, device: torch.device, dtype: torch.dtype, *, ours_is_masked: bool) -> None:
    """Raise ``UserError`` if ``backend`` cannot compute the attention of a model.

    ``ours_is_masked``: some layer has our attention with a mask, or with a part of the queries of a sequence.
    """
    if backend not in _WITHOUT_MASKS:
        return
    problem = None
    if device.type != "cuda":
        problem = f"it names kernels for CUDA, and this run computes on {device.type}; use auto"
    elif dtype == torch.float32:
        problem = "its kernels compute in half precision; add --bf16, or use auto"
    elif ours_is_masked:
        problem = (
            "its kernels have no attention masks, which separated documents, padding, entry layers and context "
            "parallelism need here; use auto"
        )
    if problem is not None:
        raise UserError(f"--attention-backend {backend.name}: {problem}")


def set_switches(backend: AttnBackend, users: Mapping[str, str]) -> None:
    """Set Transformer Engine's switches as Megatron-Core expects to find them.

    Raises ``UserError`` if one of ``users`` contradicts ``backend``.
    """
    on = {
        AttnBackend.auto: _VARIABLES,
        AttnBackend.flash: _VARIABLES[:1],
        AttnBackend.fused: _VARIABLES[1:2],
        AttnBackend.unfused: _VARIABLES[2:],
        AttnBackend.local: (),
    }[backend]
    for name, given in users.items():
        value = str(int(name in on))
        if given != value and name == _SCALING:
            raise UserError(f"{name}={given}: attention scores are not divided by the number of the layer; unset it")
        if given != value:
            raise UserError(
                f"{name}={given}: --attention-backend {backend.name} sets it to {value}; unset it, and choose kernels "
                "with --attention-backend"
            )
    os.environ.update({name: str(int(name in on)) for name in _VARIABLES})


def expands_groups(query: Tensor, *, masked: bool) -> bool:
    """Whether keys and values must be repeated for the queries of a group: flash alone has groups on CUDA."""
    return query.is_cuda and (masked or query.dtype == torch.float32)


@contextmanager
def kernels_of(backend: AttnBackend, query: Tensor) -> Iterator[None]:
    """A block whose attention runs on the kernels of ``backend``. On a CPU torch has one besides plain products.

    Raises ``UserError`` if none of them can compute the attention in the block.
    """
    if not query.is_cuda and backend != AttnBackend.unfused:
        yield
        return
    try:
        with sdpa_kernel(_KERNELS[backend]):
            yield
    except RuntimeError as error:
        if not str(error).startswith(("No available kernel", "No viable backend")):
            raise
        dtype = str(query.dtype).removeprefix("torch.")
        raise UserError(
            f"--attention-backend {backend.name}: no kernel of it computes this attention in {dtype} with heads of "
            f"size {query.shape[-1]}; use --attention-backend unfused, which stores all pairs of tokens"
        ) from None
