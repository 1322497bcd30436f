"""Measure a training step: dense, random-LTD, and Hugging Face's GPT-2 of the same shape, in turns in one process.

    python tools/benchmark/step_time.py --markdown --json step_time.json

Prints seconds a step, FLOP/s and its share of the measured matrix-product rate, the saving in FLOPs and in time, the
time over Hugging Face's, and the share of sampling, gather and scatter. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from step_time.config import StepTimeConfig

from megatron.ltd.errors import run_command
from megatron.ltd.flags import add_flags, read_flags


def main() -> None:
    """Read the flags, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, StepTimeConfig)
    config = read_flags(parser.parse_args(), StepTimeConfig)

    from step_time.measure import measure
    from step_time.report import aligned, circumstances, figures, markdown, table, to_json

    measurement = measure(config)
    rows = figures(measurement)
    command = shlex.join(["python", "tools/benchmark/step_time.py", *sys.argv[1:]])
    about = circumstances(config, measurement, command)
    if config.markdown:
        print("\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in about.items()))
        print("\n" + markdown(table(rows)))
    else:
        print("\n".join(f"{name + ':':16}{value}" for name, value in about.items()))
        print("\n" + aligned(table(rows)))
    if config.json is not None:
        Path(config.json).write_text(
            json.dumps(to_json(config, measurement, rows, about), indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    run_command(main)
