"""Measure the time of a training step: dense, random-LTD and Hugging Face's GPT-2, alternating in one process.

    python tools/benchmark/step_time.py --markdown --json step_time.json

Prints seconds per step, FLOP/s and its share of the measured rate of matrix products, the savings in FLOPs and time,
the time relative to Hugging Face's, and the share of sampling, gather and scatter. Run it on an idle machine.
"""

from __future__ import annotations

from pathlib import Path

from common.page import facts, write_json
from step_time.config import StepTimeConfig

from megatron.ltd.errors import run_command
from megatron.ltd.flags import read_command
from megatron.ltd.format import markdown_table, text_table


def main() -> None:
    """Read the flags, measure, print the table, and write the JSON file."""
    (config,) = read_command(__doc__, StepTimeConfig)

    from step_time.measure import measure
    from step_time.report import circumstances, figures, table, to_json

    measurement = measure(config)
    rows = figures(measurement)
    about, (header, cells) = circumstances(config, measurement), table(rows)
    print(facts(about) if config.markdown else text_table(about.items(), num_labels=2))
    print("\n" + (markdown_table if config.markdown else text_table)(cells, header))
    if config.json is not None:
        write_json(Path(config.json), to_json(config, measurement, rows, about))


if __name__ == "__main__":
    run_command(main)
