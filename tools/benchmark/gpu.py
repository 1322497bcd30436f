#!/usr/bin/env python3
"""Measure training on one GPU: GPT-3 1.3B and 350M in bf16, dense and with random-LTD, and others beside them.

    python tools/benchmark/gpu.py --tiny --output runs/gpu-tiny    # the same program in seconds, on a CPU too
    python tools/benchmark/gpu.py --output runs/gpu

Writes gpu.json and gpu.md in the folder of --output: tokens/s, TFLOP/s and their share of the GPU's peak, how much of
the theoretical saving is real, peak memory beside that of --plan, and the time of routing, beside the goals. Each row
is written as soon as it is measured. The same command continues after an interruption, and measures no row twice.
"""

from __future__ import annotations

from gpu.config import GpuConfig

from megatron.ltd.errors import run_command
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, measure what the output does not have yet, and print the report."""
    (config,) = read_command(__doc__, GpuConfig)

    from megatron.ltd.parallel.mesh import quiet_core_imports

    quiet_core_imports()
    from gpu.run import run

    print(run(config))


if __name__ == "__main__":
    run_command(main)
