"""Kill a run at random moments, resume it each time, and check that it ends like an undisturbed run.

    python tools/soak.py --kills 30 --output-prefix soak
    python tools/soak.py --kills 30 --output-prefix soak --async-save

The run has two processes under torchrun on the CPU. SIGKILL ends one rank, both, the launcher, or all of them. The exit
status is 0 if every step and the final weights are bit-equal to those of an undisturbed run, and no process is left.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from soak.config import SoakConfig

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import read_command
from megatron.ltd.format import text_table


def main() -> None:
    """Read the flags, run the soak test, and print the result."""
    (config,) = read_command(__doc__, SoakConfig)
    if config.work_dir is None:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            soak_in(Path(folder), config)
        return
    folder = Path(config.work_dir).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--work-dir {config.work_dir}: is not empty; give an empty folder")
    soak_in(folder, config)


def soak_in(folder: Path, config: SoakConfig) -> None:
    """Make a corpus in ``folder`` and run the soak test there. Exits with status 1 if the test fails."""
    from soak.drive import soak
    from soak.report import lines_of, to_json, write

    from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
    from megatron.ltd.tokenizers.config import TokenizerFiles

    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "text.jsonl"
    sentences = [f"Sentence number {number}, with {number * number % 97} of something in it. " for number in range(500)]
    source.write_text("".join(json.dumps({"text": sentence * 4}) + "\n" for sentence in sentences))
    prepared = preprocess(
        PreprocessConfig(input=(str(source),), output_prefix=str(folder / "text")), TokenizerFiles("ByteTokenizer")
    )
    result = soak(config, next(iter(prepared.cards)), folder, lambda text: print(text, flush=True))
    print(text_table(lines_of(asdict(result)).items(), num_labels=2))
    if config.output_prefix is not None:
        command = shlex.join(["python", "tools/soak.py", *sys.argv[1:]])
        write(config.output_prefix, config.mode, to_json(config, result, command))
    if not result.is_good:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
