"""One process of a run on many GPUs, on tensors without memory: ``python one_of_many.py CASE...`` prints JSON.

Process groups of torch's "fake" backend have all the ranks and exchange nothing; fake tensors have shapes and types and
no numbers. What runs is the product: its layers, Megatron-Core's gradient buffers and the distributed optimizer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.parallel import cpu_backend
from megatron.ltd.parallel.mesh import Mesh, quiet_core_imports
from tests.unit.scale.cases import CASES, GRAPHED, TRACKED, Case


@contextmanager
def joined(case: Case, config: RunConfig) -> Iterator[Mesh]:
    """The groups of the case's rank, of all ranks of its run."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    parallel = config.parallel
    dist.init_process_group("fake", rank=case.rank, world_size=case.world_size, store=FakeStore())
    new_group = dist.new_group
    with mock.patch.object(
        dist, "new_group", lambda ranks, **options: new_group(ranks, **{**options, "backend": "fake"})
    ):
        parallel_state.initialize_model_parallel(
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
        )
    try:
        yield Mesh(
            device=torch.device("cpu"),
            rank=case.rank,
            world_size=case.world_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            context_parallel_rank=parallel_state.get_context_parallel_rank(),
            context_parallel_size=parallel.context_parallel_size,
            pipeline_parallel_rank=parallel_state.get_pipeline_model_parallel_rank(),
            pipeline_parallel_size=parallel.pipeline_model_parallel_size,
            groups=ProcessGroupCollection.use_mpu_process_groups(),
        )
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def converted(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """``Module._apply``, as ``to`` and ``bfloat16`` call it, without the exchange of data that fake tensors refuse."""
    for child in module.children():
        converted(child, function)
    for name, weight in module.named_parameters(recurse=False):
        new = function(weight.detach())
        if new.dtype != weight.dtype:
            replaced = torch.nn.Parameter(new)
            replaced.__dict__.update(weight.__dict__)
            module.register_parameter(name, replaced)
    return module


def fill(all_ranks: list[Any], own: Any) -> None:
    """What ``all_gather_object`` gives if all ranks send the same object."""
    all_ranks[:] = [own] * len(all_ranks)


class Saved:
    """Bytes of the tensors that autograd keeps for backward, each storage once, without ``weights``."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self._weights = {self._storage(weight) for weight in weights}
        self._kept: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @staticmethod
    def _storage(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._storage(tensor) not in self._weights:
            self._kept[self._storage(tensor)] = tensor.untyped_storage().nbytes()
            self._alive.append(tensor)  # so that no later storage has its address
        return tensor

    def add(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Count these as if they were kept."""
        for tensor in tensors:
            if tensor is not None:
                self._pack(tensor)

    @property
    def bytes(self) -> int:
        return sum(self._kept.values())


@contextmanager
def built(case: Case) -> Iterator[tuple[RunConfig, Mesh, list[Any], list[Any]]]:
    """Within the block tensors are fake; the case's settings, its rank's groups, and its chunks, bare and wrapped."""
    from megatron.ltd.layers import route
    from megatron.ltd.models.gpt import build_chunks
    from megatron.ltd.models.transformer import transformer_config
    from megatron.ltd.training.optimizer import wrap_chunks

    config = parse_run_config(case.flags)
    model = config.model
    route.install()
    with joined(case, config) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
        core = transformer_config(model, config.parallel, config.precision, config.recompute, mesh)
        with mock.patch.object(torch.nn.Module, "_apply", converted):
            chunks = build_chunks(model, core, config.workload.sizes(config).shape.vocab_size, mesh, seed=1)
            wrapped = wrap_chunks(chunks, config.parallel, config.precision)
        yield config, mesh, chunks, wrapped


def unchecked(method: Any) -> Any:
    """Tokens without numbers cannot be checked for their order."""
    return mock.patch.object(type(method), "check_selection", lambda *_: None)


def tracked(case: Case) -> int:
    """The peak bytes of a forward and backward pass, weights and gradients included, as torch's own tracker counts."""
    from megatron.ltd.layers.route import Route, use_route
    from megatron.ltd.methods.base import Samples

    with built(case) as (config, mesh, (chunk,), (wrapped,)):
        method, micro_batch = config.build_method(), config.training.micro_batch_size
        tokens = torch.zeros(micro_batch, config.model.seq_length // mesh.context_parallel_size, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(chunk, *(buffer.grad_data for buffer in wrapped.buffers))
        with unchecked(method), tracker:
            with use_route(Route(method.plan(case.steps[0]), method, Samples(torch.arange(micro_batch)), 0)):
                output = chunk(tokens, torch.zeros_like(tokens), None, labels=tokens)
            output.float().sum().backward()
        return sum(of_device["Total"] for of_device in tracker.get_tracker_snapshot("peak").values())


def graphed(case: Case) -> int:
    """Bytes of what captured layers hold, static or for backward, each storage once."""
    from torch._subclasses.fake_tensor import FakeTensor

    from megatron.ltd.layers import graphs
    from megatron.ltd.layers.route import Route, use_route
    from megatron.ltd.methods.base import Samples
    from tests.stand_ins import cuda_graphs

    with ExitStack() as stack:
        stack.enter_context(cuda_graphs.on_cpu())
        config, _, (chunk,), _ = stack.enter_context(built(case))
        method, micro_batch = config.build_method(), config.training.micro_batch_size
        kept = Saved(list(chunk.parameters()))
        capture = graphs._Captured.__init__

        def recorded(layer: Any, *arguments: Any) -> None:
            with kept.hooks:
                capture(layer, *arguments)
            kept.add([*layer.inputs, layer.output, layer.grad_output, *layer.gradients])

        stack.enter_context(mock.patch.object(graphs._Captured, "__init__", recorded))
        stack.enter_context(mock.patch.object(graphs._Captured, "_warm_up", lambda *_: None))
        stack.enter_context(mock.patch.object(cuda_graphs.Graph, "replay", lambda _: None))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", lambda _: 0))
        stack.enter_context(unchecked(method))
        tokens = torch.zeros(micro_batch, config.model.seq_length, dtype=torch.int64)
        with use_route(Route(method.plan(0), method, Samples(torch.arange(micro_batch)), 0)):
            chunk(tokens, torch.zeros_like(tokens), None, labels=tokens)
        return kept.bytes


def steps_of(case: Case) -> list[dict[str, Any]]:
    """What the case's process computes at each of its numbers of kept tokens."""
    from megatron.ltd.layers import route
    from megatron.ltd.methods.base import Samples
    from megatron.ltd.training.optimizer import build_optimizer

    with built(case) as (config, mesh, chunks, wrapped):
        model, micro_batch = config.model, config.training.micro_batch_size
        method = config.build_method()
        weights = [weight for chunk in chunks for weight in chunk.parameters()]
        with mock.patch.object(dist, "all_gather_object", lambda all_ranks, own, **_: fill(all_ranks, own)):
            optimizer = build_optimizer(
                wrapped, config.optimizer, config.precision, config.parallel, counts_zeros=False
            )
        owned = sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
        found = []
        for step in case.steps:
            plan = method.plan(step)
            tokens = torch.zeros(micro_batch, model.seq_length // mesh.context_parallel_size, dtype=torch.int64)
            saved = Saved(weights)
            shapes = []
            for number, chunk in enumerate(wrapped):
                first = mesh.pipeline_parallel_rank == 0 and number == 0
                if not first:
                    rows = model.seq_length // mesh.context_parallel_size
                    rows //= config.parallel.tensor_model_parallel_size if config.parallel.sequence_parallel else 1
                    hidden = torch.zeros(rows, micro_batch, model.hidden_size, dtype=torch.bfloat16)
                    chunks[number].set_input_tensor(hidden.requires_grad_())
                current = route.Route(plan, method, Samples(torch.arange(micro_batch)), step)
                with route.use_route(current), saved.hooks, unchecked(method):
                    output = chunk(tokens, torch.zeros_like(tokens), None, labels=tokens)
                shapes.append(list(output.shape))
                output.float().sum().backward()
            found.append(
                {
                    "stage": mesh.pipeline_parallel_rank,
                    "kept": plan.min_kept_tokens,
                    "shapes": shapes,
                    "saved_bytes": saved.bytes,
                    "parameters": sum(weight.numel() for weight in weights),
                    "owned": owned,
                    "gradients": sorted({str(weight.main_grad.dtype).removeprefix("torch.") for weight in weights}),
                }
            )
    return found


if __name__ == "__main__":
    quiet_core_imports()
    cpu_backend.install()
    kinds = [(CASES, steps_of), (TRACKED, tracked), (GRAPHED, graphed)]
    print(json.dumps({name: report(of[name]) for name in sys.argv[1:] for of, report in kinds if name in of}))
