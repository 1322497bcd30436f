"""No microbatch waits for the device, with any method: a step reads values from it only at its end.

On a GPU torch refuses everything that waits; on a CPU the operations that would wait are counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.methods.base import Method
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from tests.gpu.runs import SIZES
from tests.support_dispatch import Operations

MICROBATCHES = 3
CASES = {
    "dense": "",
    "random-LTD": "--random-ltd --ltd-schedule constant --position-embedding-type rope",
    "blocks": "--random-ltd --ltd-schedule constant --ltd-block-size 16 --recompute-granularity full "
    "--recompute-method uniform --recompute-num-layers 1",
    "masks": "--random-ltd --ltd-schedule constant --reset-attention-mask --reset-position-ids",
    "TokenBypass": "--token-bypass",
    "Triton": "--random-ltd --ltd-schedule constant --ltd-kernels triton",
    "layer dropping": "--layer-drop --layer-drop-theta 0.5 --layer-drop-gamma 1",
}


@contextmanager
def refusing(device: str) -> Iterator[None]:
    """A block in which nothing waits for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with Operations() as operations:
        yield
    # Megatron-Core's schedule makes one number for each microbatch, without a device: it stays on the host.
    assert operations.waiting == {"lift_fresh": MICROBATCHES}


def strict(stepper: Any, device: str) -> None:
    """Make the forward and backward passes of ``stepper`` refuse to wait, but for the sums at the end of the step."""
    forward_backward: Callable[..., Any] = stepper._forward_backward
    config = stepper.chunks[0].config
    finish = config.finalize_model_grads_func

    def microbatches(**arguments: Any) -> Any:
        finished: list[tuple[Any, ...]] = []
        config.finalize_model_grads_func = lambda *given, **named: finished.append((given, named))
        with refusing(device):
            reports = forward_backward(**arguments)
        config.finalize_model_grads_func = finish
        for given, named in finished:
            finish(*given, **named)
        return reports

    stepper._forward_backward = microbatches


@pytest.mark.parametrize("case", CASES)
def test_no_microbatch_waits(
    device: str, impl: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "Triton" and device == "cpu":
        pytest.skip("Triton's interpreter reads all values")
    if case == "Triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(Method, "check_positions", lambda *_: None)  # reads positions, on a CPU only
    sizes = SIZES[device].partition("--global-batch-size")[0]
    samples = int(sizes.split()[-1]) * MICROBATCHES
    common = f"{sizes} --global-batch-size {samples} --train-iters 2 --lr 1e-3 --eval-iters 0 --mock-data --bf16"
    words = f"{common} --tokenizer-type ByteTokenizer --device {device} --transformer-impl {impl} {CASES[case]}"
    config = parse_run_config([*words.split(), "--log-dir", str(tmp_path)])
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        run.log.close()
        with closing(run.batches(run.train_data, 0)) as source:
            batches = list(itertools.islice(source, MICROBATCHES))

        def step() -> float:
            return run.stepper.train(iter(batches), run.method.plan(0), 0, MICROBATCHES, run.state.learned_V).loss

        first = step()  # makes what later steps have
        strict(run.stepper, device)
        assert 0 < step() < first
