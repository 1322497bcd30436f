"""Whole runs with layers as CUDA graphs, of a stand-in, against the same runs without, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.launch import launch
from megatron.ltd.layers.routed_layer import RoutedTransformerLayer
from megatron.ltd.workloads import VIT
from tests.methods.cases import CASES, DROPPING_TOKENS
from tests.methods.test_equal_to_dense import assert_same_tensors, numbers
from tests.stand_ins import cuda_graphs
from tests.support import parse, pretrain, read_run
from tests.support_vit import finetune, vit_flags

FORWARD = RoutedTransformerLayer.forward


def with_contiguous_gradients(layer: RoutedTransformerLayer, *arguments: Any, **named: Any) -> Any:
    """A layer's forward pass whose gradient is copied into the memory layout of the output, as a replay copies it.

    Sums over tokens, such as a bias's gradient, are rounded in the order of the layout. The gradient of a classifier
    that reads one token has another.
    """
    output, context = FORWARD(layer, *arguments, **named)
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous())
    return output, context


def test_a_vision_transformer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*vit_flags(tmp_path), *CASES["random_ltd"].dropping]
    with monkeypatch.context() as patch:
        patch.setattr(RoutedTransformerLayer, "forward", with_contiguous_gradients)
        eager = finetune(flags, tmp_path / "eager")
    assert "CUDA graph" not in capsys.readouterr().out
    with cuda_graphs.on_cpu():
        more = ("--device", "auto", "--cuda-graph-impl", "local", "--save", str(tmp_path / "graphed"))
        launch(parse_run_config([*flags, *more], VIT))
        assert cuda_graphs.replays > 2 * cuda_graphs.captures > 0
    assert "each layer as a CUDA graph" in capsys.readouterr().out
    run = read_run(tmp_path / "graphed")
    assert numbers(run) == numbers(eager) and run.kind("validation") == eager.kind("validation")


@pytest.mark.parametrize("name", DROPPING_TOKENS)
@pytest.mark.parametrize("flags", ["GPT", "BERT"], indirect=True)
def test_graphs_change_no_bit(flags: list[str], name: str, folder: Path) -> None:
    """Losses, validation losses, weights and moments, with dropout and over three changes of K; then a restart."""
    flags = [*flags, *CASES[name].dropping]
    eager = pretrain(flags, folder / "eager")
    graphed = [*flags, "--cuda-graph-impl", "local"]
    with cuda_graphs.on_cpu():
        launch(parse([*graphed, "--save", str(folder / "graphed"), "--exit-interval", "8"]))
        assert cuda_graphs.replays > 2 * cuda_graphs.captures > 0
        launch(parse([*graphed, "--save", str(folder / "graphed"), "--load", str(folder / "graphed")]))
    run = read_run(folder / "graphed")
    assert numbers(run) == numbers(eager) and len(run.column("loss")) == 12
    assert run.kind("validation")[-1] == eager.kind("validation")[-1]
    assert_same_tensors(run.tensors(12), eager.tensors(12))
