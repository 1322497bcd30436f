"""``--deterministic-mode``: every library sums in one order, so that a run on GPUs repeats itself bit for bit.

    torch                refuses operations without a deterministic algorithm
    cuBLAS               has workspaces that do not depend on what runs at the same time
    NCCL                 does not reduce in switches
    Transformer Engine   takes attention kernels whose backward pass has one order

The environment variables of these libraries are set for the time of the run. On a CPU all of them are deterministic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron.ltd.errors import UserError

_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}
"""The values that are deterministic; the first is set if the user has set none."""


@contextmanager
def deterministic_mode(*, enabled: bool) -> Iterator[None]:
    """A block in which libraries are deterministic, if ``enabled``. It must begin before CUDA is used.

    Raises ``UserError`` if an environment variable of the user contradicts it.
    """
    if not enabled:
        yield
        return
    for name, values in _VARIABLES.items():
        given = os.environ.get(name, values[0])
        if given not in values:
            raise UserError(f"{name}={given}: --deterministic-mode needs {' or '.join(values)}; unset it")
    unset = [name for name in _VARIABLES if name not in os.environ]
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    os.environ.update({name: _VARIABLES[name][0] for name in unset})
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        for name in unset:
            del os.environ[name]
