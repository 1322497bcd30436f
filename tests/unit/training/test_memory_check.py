"""A run that cannot fit is refused by the whole memory of its device, and the line says what of it is free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.training import memory_check
from tests.support_errors import refused

FLAGS = (
    "--device cpu --num-layers 2 --hidden-size 64 --num-attention-heads 2 --seq-length 16 --micro-batch-size 3 "
    "--train-iters 1 --lr 1e-3 --tokenizer-type ByteTokenizer --train-data-path unread"
).split()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_line_names_what_is_free(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = SimpleNamespace(parts={"weights": 5_000_000})
    monkeypatch.setattr(memory_check, "stage_memory", lambda *_: [needed])
    mesh: Any = SimpleNamespace(world_size=1, pipeline_parallel_rank=0, device=torch.device(device))
    nothing: Any = None

    def check(free: int, total: int) -> None:
        other = (10**12, 10**12)
        on_gpu, on_cpu = ((free, total), other) if device != "cpu" else (other, (free, total))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: on_gpu)
        monkeypatch.setattr(memory_check, "free_memory_bytes", lambda: on_cpu[0])
        monkeypatch.setattr(memory_check, "memory_bytes", lambda: on_cpu[1])
        memory_check.check_memory(parse_run_config(FLAGS), nothing, nothing, mesh)

    with refused(
        "--hidden-size 64", "--micro-batch-size 3", "5.000 MB", f"{device} has 4.000 MB, of which 3.000 MB is free"
    ):
        check(3_000_000, 4_000_000)
    check(3_000_000, 5_000_000)  # other programs may end
