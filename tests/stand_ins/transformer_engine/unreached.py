"""Names that Megatron-Core imports and our code does not reach: a class of each name, which cannot be called.

With them Megatron-Core finds Transformer Engine in every module where it looks for it, as where it is installed.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_MODULES = {
    "cpp_extensions": ("general_gemm",),
    "float8_tensor": ("Float8Tensor",),
    "graph": (
        *("make_graphed_callables", "restore_fp8_tensors", "save_fp8_tensors", "set_capture_end", "set_capture_start"),
    ),
    "permutation": (
        *("moe_permute", "moe_permute_with_probs", "moe_unpermute"),
        *("moe_sort_chunks_by_index", "moe_sort_chunks_by_index_with_probs"),
    ),
    "router": (*("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function"),),
    "tensor": ("QuantizedTensor",),
    "tensor.float8_tensor": ("Float8Tensor",),
    "tensor.mxfp8_tensor": ("MXFP8Tensor",),
    "tensor.utils": ("cast_master_weights_to_fp8", "post_all_gather_processing", "replace_raw_data"),
    "utils": ("make_weak_ref",),
}
"""By the modules of ``transformer_engine.pytorch``."""


def unreached(name: str) -> type:
    """A class that can be a base or be asked about with ``isinstance``, but not be called."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError(f"the stand-in of Transformer Engine has only the name {name}")

    return type(name, (), {"__init__": refuse})


def add_modules(package: str) -> None:
    """Make the modules of ``_MODULES`` importable as parts of ``package``."""
    for path, names in _MODULES.items():
        module = ModuleType(f"{package}.{path}")
        for name in names:
            setattr(module, name, unreached(name))
        module.__path__ = []
        sys.modules[module.__name__] = module
        parent, _, own_name = module.__name__.rpartition(".")
        setattr(sys.modules[parent], own_name, module)
