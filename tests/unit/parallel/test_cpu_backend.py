"""Replacements for CUDA functions that Megatron-Core calls on a CPU, without a cost for other operations."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from megatron.ltd.parallel import cpu_backend


@pytest.fixture(autouse=True)
def installed() -> None:
    cpu_backend.install()


def test_other_operations_are_not_wrapped() -> None:
    assert not _get_current_function_mode_stack()
    for name in ("__add__", "matmul", "to", "reshape"):
        assert (
            getattr(torch.Tensor, name).__module__ != cpu_backend.__name__
            if hasattr(getattr(torch.Tensor, name), "__module__")
            else True
        )
    assert torch.zeros.__module__ != cpu_backend.__name__ and not hasattr(torch.zeros, "__wrapped__")


def test_tensor_types_have_cuda_names_and_casts_are_torchs() -> None:
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1, dtype=torch.float16).type() == "torch.cuda.HalfTensor"
    cast = torch.tensor([1.7]).type(torch.int64)
    assert cast.dtype == torch.int64 and cast.item() == 1


def test_cuda_returns_the_same_tensor() -> None:
    tensor = torch.ones(3)
    assert tensor.cuda() is tensor
    assert tensor.cuda(0, non_blocking=True) is tensor


def test_the_current_device_is_the_cpu() -> None:
    assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
    torch.cuda.set_device(3)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_a_literal_cuda_device_means_the_cpu_only_in_megatron_core() -> None:
    clip_grads = importlib.import_module("megatron.core.optimizer.clip_grads")
    made = clip_grads.torch.tensor([1.0, 2.0], dtype=torch.float64, device="cuda")
    assert made.device.type == "cpu" and made.dtype == torch.float64 and made.tolist() == [1.0, 2.0]
    assert clip_grads.torch.zeros(2, 3, device="cuda", pin_memory=True).shape == (2, 3)
    assert clip_grads.torch.nn is torch.nn and clip_grads.torch.Tensor is torch.Tensor
    assert torch.zeros is not clip_grads.torch.zeros
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(1, device="cuda")


def test_streams_and_events_are_always_done() -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        event.record(torch.cuda.current_stream())
    stream.wait_event(event)
    stream.wait_stream(torch.cuda.default_stream())
    assert event.query() and stream.record_event(event) is event


def test_the_cuda_random_state_is_that_of_the_cpu() -> None:
    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(4)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(4, generator=torch.Generator().manual_seed(3)), first)


def test_the_tracker_forks_streams_and_restores_the_one_outside() -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("a", 1)
    tracker.add("b", 2)
    torch.manual_seed(9)
    outside = torch.Generator().manual_seed(9)
    drawn: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    for name in ("a", "b", "a"):
        with tracker.fork(name):
            drawn[name].append(torch.rand(3))
        assert torch.equal(torch.rand(2), torch.rand(2, generator=outside))
    expected = torch.Generator().manual_seed(1)
    assert all(torch.equal(found, torch.rand(3, generator=expected)) for found in drawn["a"])
    assert torch.equal(drawn["b"][0], torch.rand(3, generator=torch.Generator().manual_seed(2)))


def test_the_tracker_restores_after_an_error() -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("a", 1)
    torch.manual_seed(9)
    with pytest.raises(ZeroDivisionError), tracker.fork("a"):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(9)))


def test_installing_twice_changes_nothing() -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    def look() -> list[object]:
        schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
        return [torch.Tensor.type, torch.Tensor.cuda, torch.cuda.Stream, schedules.torch, get_cuda_rng_tracker()]

    before = look()
    cpu_backend.install()
    assert all(now is then for now, then in zip(look(), before, strict=True))
