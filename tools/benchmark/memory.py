#!/usr/bin/env python3
"""Compare the memory predicted by ``--plan`` with the memory allocated, for small runs on the CPU.

    python tools/benchmark/memory.py > tools/benchmark/results/memory.md

Each case is a run of ``pretrain_gpt_ltd.py`` of two steps in this process. torch's profiler records every allocation,
including those inside kernels, and their peak is compared with the plan for the same flags. The count is exact and
excludes other processes and the memory of Python and other libraries. GPU kernels and their allocator differ; see
``megatron.ltd.forecast.memory``.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.page import about, facts

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import run_command
from megatron.ltd.flags import read_command
from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.format import markdown_table
from megatron.ltd.launch import launch
from megatron.ltd.tokenizers.config import TokenizerFiles

_SHAPE = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 256 --micro-batch-size 2"
_NO_DROPOUT = "--attention-dropout 0 --hidden-dropout 0"
_LTD = "--random-ltd --ltd-schedule constant --ltd-min-kept-tokens 64 --num-layers 6"
_GROUPS = "--group-query-attention --num-query-groups 2"
_LLAMA = f"--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear {_GROUPS}"
_FULL = "--num-layers 6 --recompute-granularity full --recompute-method"
_SELECTIVE = "--recompute-granularity selective"
CASES = {
    "dense": f"{_SHAPE} {_NO_DROPOUT}",
    "longer, wider": f"{_SHAPE} {_NO_DROPOUT} --hidden-size 128 --seq-length 512 --micro-batch-size 1",
    "mostly weights": f"{_SHAPE} {_NO_DROPOUT} --hidden-size 256 --seq-length 16 --micro-batch-size 1",
    "large vocabulary": f"{_SHAPE} {_NO_DROPOUT} --vocab-size 4096",
    "large vocabulary, untied": f"{_SHAPE} {_NO_DROPOUT} --vocab-size 4096 --untie-embeddings-and-output-weights",
    "large vocabulary, bf16": f"{_SHAPE} {_NO_DROPOUT} --vocab-size 4096 --bf16",
    "several microbatches": f"{_SHAPE} {_NO_DROPOUT} --global-batch-size 6",
    "dropout": _SHAPE,
    "dropout, selective": f"{_SHAPE} {_SELECTIVE}",
    "hidden dropout": f"{_SHAPE} --attention-dropout 0",
    "dropout, bf16": f"{_SHAPE} --bf16",
    "bf16": f"{_SHAPE} {_NO_DROPOUT} --bf16",
    "RMSNorm": f"{_SHAPE} {_NO_DROPOUT} --normalization RMSNorm",
    "RMSNorm, bf16": f"{_SHAPE} {_NO_DROPOUT} --normalization RMSNorm --bf16",
    "rotary positions": f"{_SHAPE} {_NO_DROPOUT} --position-embedding-type rope",
    "grouped queries": f"{_SHAPE} {_NO_DROPOUT} {_GROUPS}",
    "grouped queries, bf16": f"{_SHAPE} {_NO_DROPOUT} {_GROUPS} --bf16",
    "rotary positions, grouped queries": f"{_SHAPE} {_NO_DROPOUT} --position-embedding-type rope {_GROUPS}",
    "norms of heads": f"{_SHAPE} {_NO_DROPOUT} --qk-layernorm",
    "Qwen3's layer": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA} --qk-layernorm",
    "Qwen3's layer, bf16": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA} --qk-layernorm --bf16",
    "Llama's layer": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA}",
    "Llama's layer, wide MLP": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA} --ffn-hidden-size 1024",
    "Llama's layer, full": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA} {_FULL} uniform --recompute-num-layers 1",
    "document masks": f"{_SHAPE} {_NO_DROPOUT} --reset-attention-mask",
    "selective": f"{_SHAPE} {_NO_DROPOUT} {_SELECTIVE}",
    "selective, MLP": f"{_SHAPE} {_NO_DROPOUT} {_SELECTIVE} --recompute-modules mlp",
    "full, each layer": f"{_SHAPE} {_NO_DROPOUT} {_FULL} uniform --recompute-num-layers 1",
    "full, by threes": f"{_SHAPE} {_NO_DROPOUT} {_FULL} uniform --recompute-num-layers 3",
    "full, three layers": f"{_SHAPE} {_NO_DROPOUT} {_FULL} block --recompute-num-layers 3",
    "random-LTD": f"{_SHAPE} {_NO_DROPOUT} {_LTD}",
    "random-LTD, Llama's layer": f"{_SHAPE} {_NO_DROPOUT} {_LTD} {_LLAMA}",
    "random-LTD, full": f"{_SHAPE} {_NO_DROPOUT} {_LTD} {_FULL} uniform --recompute-num-layers 1",
    "TokenBypass": f"{_SHAPE} {_NO_DROPOUT} --num-layers 6 --token-bypass --token-bypass-kept-tokens 64 "
    "--token-bypass-selector random",
    "TokenBypass, Llama's layer": f"{_SHAPE} {_NO_DROPOUT} {_LLAMA} --num-layers 6 --token-bypass "
    "--token-bypass-kept-tokens 64 --token-bypass-selector random",
}
"""Name -> flags of the case"""


def small_data(folder: Path) -> str:
    """Write a few documents to ``folder``, tokenized as bytes, and return the dataset's prefix."""
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"Line {number} of a few. " * 9}) + "\n" for number in range(40)))
    config = PreprocessConfig(input=(str(source),), output_prefix=str(folder / "text"), append_eod=True)
    return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))


def case_config(flags: str, data: str, folder: Path) -> RunConfig:
    """The configuration of a case's run, which logs to ``folder``."""
    common = "--device cpu --tokenizer-type ByteTokenizer --split 1,0,0 --eval-iters 0 --lr 1e-3 --train-iters 2"
    return parse_run_config(
        [*flags.split(), *common.split(), "--no-progress", "--data-path", data, "--log-dir", str(folder)]
    )


def peak_bytes(work: Callable[[], object]) -> int:
    """The peak number of bytes that ``work`` holds of what it allocates with torch on the CPU.

    Gloo's own copies are left out: it releases them in its threads, of which the profiler does not hear, and NCCL
    makes none.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    peak, total, held = 0, 0, dict[int, int]()
    for address, size in _allocations(profiler):
        total -= held.pop(address, 0)  # a release, or an address that is used again
        if size > 0:
            held[address] = size
            total += size
        peak = max(peak, total)
    return peak


def _allocations(profiler: Any) -> list[tuple[int, int]]:
    """Address and bytes of all allocations outside c10d's operators, and of all releases with negative bytes."""
    found, events = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        kind, fields = event.typed
        if not event.name.startswith("c10d::"):
            events.extend(event.children)
        if kind == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found)]


def planned_and_measured(config: RunConfig) -> tuple[dict[str, int], int]:
    """The planned memory of a run in one process, by part, and its measured peak [bytes]."""
    planned = plan_ahead(config).fullest
    with contextlib.redirect_stdout(io.StringIO()):
        return planned.parts, peak_bytes(lambda: launch(config))


def main() -> None:
    """Measure every case, and print the table."""
    read_command(__doc__)
    names = ("weights", "gradients", "optimizer", "activations", "at work")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_data(folder)
        for case, flags in CASES.items():
            parts, measured = planned_and_measured(case_config(flags, data, folder / case))
            planned_total = sum(parts.values())
            cells = [_mb(parts[part]) for part in names]
            rows.append([case, *cells, _mb(planned_total), _mb(measured), f"{planned_total / measured - 1:+.1%}"])
    print("# Memory: planned and measured\n")
    print("Peak of two steps on the CPU, in MB (10^6 bytes); the parts are the plan's.\n")
    table = markdown_table(rows, ["", *names, "planned", "measured", "off by"])
    print(f"{table}\n\n{facts(about('memory.py', 'torch', 'megatron-core'))}")


def _mb(amount_bytes: int) -> str:
    return f"{amount_bytes / 1e6:.2f}"


if __name__ == "__main__":
    run_command(main)
