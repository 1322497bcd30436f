"""The job of one rank in tests of whole runs: train as ``pretrain_gpt_ltd.py`` does, and record what was computed.

Gradients and weights are returned as pieces of whole tensors, cut and named like the shards of a Megatron-Core
checkpoint, so that the parent process can assemble the pieces of all ranks and compare them with one process
(``runs``).

All code that computes is the library's; the job only observes it, between steps and where a layer asks for its kept
tokens. On a CPU it also delivers what overlapped collectives compute as late as possible (``late``), so that code that
does not wait computes with NaN.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.utils import unwrap_model

from megatron.ltd.layers.route import KeptTokens, Place, Route
from megatron.ltd.models import graph_rules
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from megatron.ltd.training.loop import train
from megatron.ltd.training.optimizer import whole_weights
from megatron.ltd.training.run import Run
from tests.distributed import late
from tests.stand_ins import cuda_graphs
from tests.support import parse


@dataclass(frozen=True)
class Piece:
    """A rank's part of a whole tensor: ``whole[place] == values``."""

    name: str
    """Megatron-Core's key; for a layer's tensor, followed by the 0-based index of the layer."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    place: tuple[slice, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Step:
    """One step on one rank: the values it reported, and the rank's part of the gradient."""

    loss: float
    grad_norm: float
    lr: float
    gradients: list[Piece]


@dataclass
class Record:
    """All that one rank records of a run."""

    initial_weights: list[Piece]
    steps: list[Step] = field(default_factory=list)
    kept: dict[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)
    """(sample id, layer number, K) -> the positions that the layer computed on"""
    samples: dict[int, int] = field(default_factory=dict)
    """Sample id -> checksum of its tokens, for every training sample that this rank read"""
    validation_loss: float | None = None
    final_weights: list[Piece] = field(default_factory=list)
    learned: list[float] | None = None
    """The learned value of each token id; None if the method learns nothing"""


def train_and_record(command: Sequence[str]) -> Record:
    """Run the whole training that ``command`` describes, and record it."""
    config = parse(command)
    if config.parallel.device == "cpu":
        late.install()
    with initialize(config.parallel, agree_on=config.shared_flags()) as mesh:
        run = build_run(config, mesh)
        try:
            record = Record(weights(run))
            _listen(run, record)
            train(run)
            with whole_weights(run.state.chunks):
                record.final_weights = weights(run)
            record.learned = None if run.state.learned_V is None else run.state.learned_V.tolist()
            return record
        finally:
            run.log.close()


def train_without_waiting(command: Sequence[str]) -> Record:
    """The same with a fault: nobody waits for what overlapped collectives compute."""
    late.Late.wait = lambda self: None  # type: ignore[method-assign]
    return train_and_record(command)


def train_with_graphs(command: Sequence[str]) -> Record:
    """The same with CUDA graphs in every layer of every step; on a CPU those of a stand-in."""
    command = [*command, "--cuda-graph-impl", "local"]
    if parse(command[:-2]).parallel.device == "cuda":
        with mock.patch.object(graph_rules, "PASSES_PER_CAPTURED_PASS", 0):
            return train_and_record(command)
    with cuda_graphs.on_cpu():
        late.install()
        record = train_and_record([*command, "--device", "auto"])
    assert cuda_graphs.replays > cuda_graphs.captures > 0
    return record


def _listen(run: Run, record: Record) -> None:
    """Record every step, selection of kept tokens, sample and evaluation of ``run`` in ``record``."""
    train_step, evaluate = run.stepper.train, run.stepper.evaluate

    def recorded_step(*arguments: Any) -> Any:
        lr, result = run.learning_rate, train_step(*arguments)
        record.steps.append(Step(result.loss, result.grad_norm, lr, gradients(run)))
        return result

    def recorded_evaluation(*arguments: Any) -> dict[str, float]:
        measures = evaluate(*arguments)
        record.validation_loss = measures["loss"]
        return measures

    run.stepper.train, run.stepper.evaluate = recorded_step, recorded_evaluation  # type: ignore[method-assign]
    _listen_to_routes(record.kept)
    run.train_data = _ListeningSource(run.train_data, record.samples)


def _listen_to_routes(kept: dict[tuple[int, int, int], tuple[int, ...]]) -> None:
    """Record the tokens that layers compute, from now on in this process; a layer that asks again gets the same."""
    ask = Route.kept_tokens

    def recorded(route: Route, layer_number: int, place: Place | None = None) -> KeptTokens | None:
        tokens = ask(route, layer_number, place)
        if tokens is not None:
            sample_ids, rows = route.samples.sample_ids_B.tolist(), tokens.kept_BK.tolist()
            for sample_id, row in zip(sample_ids, rows, strict=True):
                before = kept.setdefault((sample_id, layer_number, len(row)), tuple(row))
                assert before == tuple(row), f"sample {sample_id}: layer {layer_number} keeps other tokens in a replay"
        return tokens

    Route.kept_tokens = recorded  # type: ignore[method-assign]


@dataclass(frozen=True)
class _ListeningSource:
    """Wraps ``source`` and records which samples were read, with a checksum of their content."""

    source: Any
    samples: dict[int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        sample = self.source[index]
        if sample:  # middle pipeline stages read no tokens
            content = sample["tokens"] if "tokens" in sample else sample["image"]
            self.samples[index] = zlib.crc32(np.asarray(content).tobytes())
        return sample


def weights(run: Run) -> list[Piece]:
    """This rank's parameters."""
    return [piece for chunk in run.state.chunks for piece in pieces(unwrap_model(chunk).sharded_state_dict())]


def gradients(run: Run) -> list[Piece]:
    """This rank's part of the gradient of the latest step, after clipping where the optimizer clips in place (fp32)."""
    if run.config.parallel.use_distributed_optimizer:
        _gather_shards(run)
    with _gradients_as_weights(run):
        return weights(run)


def _gather_shards(run: Run) -> None:
    """Gather the gradient: after a step of the distributed optimizer, each rank holds only the gradient of its own
    shard.
    """
    for chunk in run.state.chunks:
        for buffer in chunk.buffers:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


@contextmanager
def _gradients_as_weights(run: Run) -> Iterator[None]:
    """Replace the parameters' values by their gradients in the block, so that gradients can be cut and named like
    weights.
    """
    parameters = [parameter for chunk in run.state.chunks for parameter in chunk.parameters()]
    values = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter in parameters:
                parameter.copy_(parameter.main_grad)
            yield
        finally:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


def pieces(sharded_state: dict[str, Any]) -> list[Piece]:
    """The tensors of a sharded state, by Megatron-Core's keys."""
    apply_factories(sharded_state)
    found = []
    for tensor in nested_values(sharded_state):
        if isinstance(tensor, ShardedTensor):
            layers, place = tensor.global_slice()[: tensor.prepend_axis_num], tensor.global_slice()
            name = ".".join([tensor.key, *map(str, layers)])
            shape, place = tensor.global_shape[tensor.prepend_axis_num :], place[tensor.prepend_axis_num :]
            found.append(Piece(name, tuple(shape), place, tensor.data.detach().float().cpu().numpy().copy()))
    return found
