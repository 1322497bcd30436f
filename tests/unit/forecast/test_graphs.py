"""What the plan counts for CUDA graphs, against the tensors that captured layers hold on the stand-in."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.launch import launch
from megatron.ltd.layers import graphs
from tests.stand_ins import cuda_graphs
from tests.support import parse, small_dataset, small_sentences

SHAPE = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --micro-batch-size 2 --lr 1e-3 "
    "--eval-iters 0 --no-progress --cuda-graph-impl local --cuda-graph-warmup-steps 1"
)
GPT = "--tokenizer-type ByteTokenizer --split 1,0,0"
GROWING = "--train-iters 3 --random-ltd --ltd-min-kept-tokens 16 --ltd-granularity 8 --ltd-growth-steps 2"
CONSTANT = "--train-iters 1 --random-ltd --ltd-min-kept-tokens 8 --ltd-granularity 8 --ltd-schedule constant"
LLAMA = (
    "--position-embedding-type rope --rotary-percent 0.5 --normalization RMSNorm --swiglu --disable-bias-linear "
    "--group-query-attention --num-query-groups 2 --qk-layernorm"
)
BYPASS = (
    "--train-iters 1 --token-bypass --token-bypass-kept-tokens 8 --token-bypass-selector random "
    "--token-bypass-schedule constant"
)
CASES = {
    "kept tokens grow to all": GROWING,
    "documents, rotary, bf16": f"{CONSTANT} --position-embedding-type rope --reset-attention-mask --bf16",
    "Llama's layer": f"{CONSTANT} {LLAMA}",
    "an entry layer": BYPASS,
}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[Any]]:
    """All that was captured and still exists."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    capture = graphs._Captured.__init__

    def recorded(self: Any, *arguments: Any) -> None:
        capture(self, *arguments)
        alive.add(self)

    monkeypatch.setattr(graphs._Captured, "__init__", recorded)
    with cuda_graphs.on_cpu():
        yield alive


def num_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Of the memory that they share or do not."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def check(flags: str, captured: weakref.WeakSet[Any], num_graphed: int = 4) -> None:
    """Train, and compare. The static inputs are stored for backward, and planned with the activations."""
    config = parse(flags.split())
    planned = plan_ahead(config).fullest.parts["graphs"]
    launch(config)
    assert len(captured) == num_graphed, "the graphs of earlier numbers of kept tokens are gone"
    held = [[*layer.inputs, layer.output, layer.grad_output, *layer.gradients] for layer in captured]
    activations = [layer.inputs[0] for layer in captured]
    assert num_bytes(tensor for tensors in held for tensor in tensors) - num_bytes(activations) == planned


@pytest.mark.parametrize("case", CASES)
def test_what_graphs_of_a_gpt_hold_is_as_planned(case: str, captured: weakref.WeakSet[Any], tmp_path: Path) -> None:
    data = f"--data-path {small_dataset(tmp_path)} --log-dir {tmp_path / 'log'}"
    check(f"{SHAPE} {GPT} {CASES[case]} {data}", captured, 3 if case == "an entry layer" else 4)


def test_of_a_bert(captured: weakref.WeakSet[Any], tmp_path: Path) -> None:
    """Its samples are padded, and have a mask."""
    prefix, vocabulary = small_sentences(tmp_path)
    text = f"--tokenizer-type BertWordPieceLowerCase --vocab-file {vocabulary} --data-path {prefix} --split 1,0,0"
    check(f"pretrain_bert_ltd.py {SHAPE} {text} {CONSTANT} --log-dir {tmp_path / 'log'}", captured)
