"""Which kernels torch may choose from, and what is refused. CUDA tensors are stand-ins without data."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.ltd.layers.attention import FusedAttention
from megatron.ltd.layers.attention_backend import check_backend, kernels_of, set_switches
from megatron.ltd.parallel.mesh import Mesh
from tests.support import core_config, small_model
from tests.support_errors import refused

SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], tuple[int, ...], bool]]:
    """Of each attention: the kernels that torch may take, the shape of the keys, and whether torch repeats them."""
    seen: list[tuple[set[str], tuple[int, ...], bool]] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        cuda = torch.backends.cuda
        allowed = {
            "flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled(),
            "math": cuda.math_sdp_enabled(), "cudnn": cuda.cudnn_sdp_enabled(),
        }  # fmt: skip
        seen.append(({name for name, is_allowed in allowed.items() if is_allowed}, tuple(key.shape), how["enable_gqa"]))
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return seen


def attention_of(mesh: Mesh, backend: str) -> FusedAttention:
    config = core_config(small_model(attention_backend=backend), mesh)
    return FusedAttention(config, 1, AttnMaskType.causal, "self")


def attend(mesh: Mesh, backend: str, device: str, dtype: torch.dtype, *, masked: bool, groups: int = 2) -> None:
    with FakeTensorMode():
        query, keys = (torch.empty(8, 1, heads, 4, dtype=dtype, device=device) for heads in (4, groups))
        mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool, device=device) if masked else None
        attention_of(mesh, backend)(query, keys, keys, mask)


FUSED = {"flash", "efficient"}


@pytest.mark.parametrize(
    ("backend", "kernels"),
    [("auto", FUSED), ("local", FUSED), ("flash", {"flash"}), ("fused", {"cudnn"}), ("unfused", {"math"})],
)
def test_cuda_has_only_the_kernels_of_the_backend(
    mesh: Mesh, calls: list[Any], backend: str, kernels: set[str]
) -> None:
    attend(mesh, backend, "cuda", torch.bfloat16, masked=False)
    assert [allowed for allowed, _, _ in calls] == [kernels]
    assert torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.cudnn_sdp_enabled()  # elsewhere as before


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "repeated"),
    [
        ("cuda", torch.bfloat16, False, False),
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float32, False, True),
        ("cpu", torch.float32, True, False),
    ],
)
def test_keys_are_repeated_where_the_kernel_has_no_groups(
    mesh: Mesh, calls: list[Any], device: str, dtype: torch.dtype, masked: bool, repeated: bool
) -> None:
    attend(mesh, "auto", device, dtype, masked=masked)
    ((_, key_shape, enable_gqa),) = calls
    assert (key_shape, enable_gqa) == ((1, 4 if repeated else 2, 8, 4), not repeated)


def test_repeated_keys_compute_the_same(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(8, 2, heads, 4, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)[None, None]
    expected = attention_of(mesh, "auto")(query, key, value, mask)
    monkeypatch.setattr("megatron.ltd.layers.attention.expands_groups", lambda query, masked: True)
    torch.testing.assert_close(attention_of(mesh, "auto")(query, key, value, mask), expected)


def test_no_kernel_is_one_line() -> None:
    """The error is torch's own, since a CPU has no memory-efficient kernel."""
    query = torch.randn(1, 2, 8, 12)
    with pytest.raises(RuntimeError, match="No viable backend") as found, sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        F.scaled_dot_product_attention(query, query, query)
    with (
        refused("--attention-backend auto", "float32", 12, "--attention-backend unfused"),
        FakeTensorMode(),
        kernels_of(AttnBackend.auto, torch.empty(1, 2, 8, 12, device="cuda")),
    ):
        raise found.value
    with pytest.raises(RuntimeError, match="out of memory"), kernels_of(AttnBackend.unfused, query):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("backend", ["flash", "fused"])
def test_what_a_backend_cannot_compute_is_refused(backend: str) -> None:
    chosen, cuda = AttnBackend[backend], torch.device("cuda", 0)
    check_backend(chosen, cuda, torch.bfloat16, ours_is_masked=False)
    for device, dtype, masked, name in (
        (torch.device("cpu"), torch.bfloat16, False, "cpu"),
        (cuda, torch.float32, False, "--bf16"),
        (cuda, torch.bfloat16, True, "masks"),
    ):
        with refused(f"--attention-backend {backend}", name):
            check_backend(chosen, device, dtype, ours_is_masked=masked)


@pytest.mark.parametrize(
    ("backend", "values"), [("auto", "111"), ("flash", "100"), ("fused", "010"), ("unfused", "001"), ("local", "000")]
)
def test_switches_are_what_megatron_core_expects(
    monkeypatch: pytest.MonkeyPatch, mesh: Mesh, backend: str, values: str
) -> None:
    """Megatron-Core asserts the values of these variables; a user's contradicting value is refused in one line."""
    from megatron.core.models.common.language_module.language_module import LanguageModule

    for name, value in zip(SWITCHES, "010", strict=True):  # of another model in this process
        monkeypatch.setenv(name, value)
    config = core_config(small_model(attention_backend=backend), mesh)
    set_switches(AttnBackend[backend], {})
    LanguageModule(config)
    assert "".join(os.environ[name] for name in SWITCHES) == values
    for name, value in zip(SWITCHES, values, strict=True):
        set_switches(AttnBackend[backend], {name: value})
        other = str(1 - int(value))
        with refused(f"{name}={other}", f"--attention-backend {backend}", f"to {value}"):
            set_switches(AttnBackend[backend], {name: other})


def test_scores_divided_by_the_number_of_the_layer_are_refused() -> None:
    """Transformer Engine's attention would divide them, and Megatron-Core fails."""
    set_switches(AttnBackend.auto, {"NVTE_APPLY_QK_LAYER_SCALING": "0"})
    assert "NVTE_APPLY_QK_LAYER_SCALING" not in os.environ
    with refused("NVTE_APPLY_QK_LAYER_SCALING=1", "unset"):
        set_switches(AttnBackend.auto, {"NVTE_APPLY_QK_LAYER_SCALING": "1"})
