#!/usr/bin/env python3
"""How fast text is encoded, by kind of input.

    python tools/benchmark/data.py > tools/benchmark/results/data.md
    python tools/benchmark/data.py --megatron-lm DIR --tokenizer-model DIR >> tools/benchmark/results/data.md

The same documents, drawn from the standard library's own source, are written in every kind of file that ``--input``
takes, and encoded by ``preprocess_data.py``'s code in this process (or ``--workers``). CPU seconds are those of this
process and its children; wall seconds depend on what else the machine does.

With ``--megatron-lm`` it encodes the JSON lines with a tokenizer of Hugging Face instead, by our command and by
``tools/preprocess_data.py`` of a checkout of Megatron-LM, in turn, each in a process of its own, and checks that both
write the same tokens. What one line takes is the start, and is subtracted. CPU seconds are those of the process and its
children; medians count.
"""

from __future__ import annotations

import bz2
import filecmp
import gzip
import json
import lzma
import multiprocessing
import os
import runpy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common.corpus import REPOSITORY
from common.page import Took, about, children_cpu_seconds, facts, run_python

from megatron.ltd.data.builtin.corpus import CorpusConfig, write_corpus
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import RunStopped, UserError, run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.format import markdown_table
from megatron.ltd.tokenizers.config import TokenizerFiles


@dataclass(frozen=True)
class Config(Settings):
    """benchmark"""

    megabytes: int = flag(8, help="text to encode [MB]")
    workers: int = flag(1, help="processes that encode")
    rounds: int = flag(3, help="times that each input is encoded; the fastest counts")
    megatron_lm: str | None = flag(None, metavar="DIR", help="a checkout of Megatron-LM, for its speed beside ours")
    tokenizer_model: str | None = flag(None, metavar="DIR", help="a HuggingFaceTokenizer's folder, with --megatron-lm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.megatron_lm is not None:
            script = Path(self.megatron_lm, "tools", "preprocess_data.py")
            if not script.is_file() or self.tokenizer_model is None:
                raise UserError(
                    f"--megatron-lm {self.megatron_lm}: needs {script} and --tokenizer-model; give a checkout of "
                    "Megatron-LM, and a folder with tokenizer.json"
                )


@contextmanager
def timed() -> Iterator[Took]:
    """Measure the wall and CPU time of the block, which are set at its end."""
    took, wall, cpu = Took(), time.perf_counter(), _cpu_seconds()
    yield took
    took.wall, took.cpu = time.perf_counter() - wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children: those that have ended, and the one that reads tables."""
    total = time.process_time() + children_cpu_seconds()
    for child in multiprocessing.active_children():
        times = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return total


def write_inputs(folder: Path, megabytes: int) -> dict[str, Path]:
    """The same documents in files of every kind, by its name."""
    write_corpus(CorpusConfig(output_dir=str(folder), max_mb=float(megabytes)))
    lines = (folder / "train.jsonl").read_bytes()
    texts = [json.loads(line)["text"] for line in lines.splitlines()]
    packers: dict[str, Callable[[bytes], bytes]] = {
        "JSON lines": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "Zstandard": _zstandard,
    }  # fmt: skip
    files = {}
    for number, (name, pack) in enumerate(packers.items()):
        files[name] = folder / f"{number}.jsonl"
        files[name].write_bytes(pack(lines))
    files["plain text"] = folder / "all.txt"
    files["plain text"].write_text("\n".join(texts), encoding="utf-8")
    return files | _tables(folder, texts)


def _zstandard(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def _tables(folder: Path, texts: list[str]) -> dict[str, Path]:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": texts})
    parquet.write_table(table, folder / "table.parquet")
    with pyarrow.OSFile(str(folder / "table.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"Parquet": folder / "table.parquet", "Arrow": folder / "table.arrow"}


def encoding_rows(folder: Path, config: Config) -> list[list[str]]:
    """A row for each kind of input: size, fastest of the rounds."""
    rows = []
    for name, path in write_inputs(folder, config.megabytes).items():
        best, text_bytes = Took(float("inf"), float("inf")), 0
        for _ in range(config.rounds):
            settings = PreprocessConfig(
                input=(str(path),), output_prefix=str(folder / "out"), workers=config.workers, append_eod=True,
                overwrite=True,
            )  # fmt: skip
            with timed() as took:
                text_bytes = preprocess(settings, TokenizerFiles("ByteTokenizer")).text_bytes
            best = Took(min(best.wall, took.wall), min(best.cpu, took.cpu))
        speeds = [f"{text_bytes / 1e6 / seconds:.1f}" for seconds in (best.cpu, best.wall)]
        rows.append([name, f"{path.stat().st_size / 1e6:.2f}", f"{text_bytes / 1e6:.2f}", *speeds])
    return rows


def beside_rows(folder: Path, config: Config) -> list[list[str]]:
    """A row for our command and one for Megatron-LM's: start, encoding, speed. Raises ``RunStopped``."""
    write_corpus(CorpusConfig(output_dir=str(folder), max_mb=float(config.megabytes)))
    text = (folder / "train.jsonl").read_bytes()
    (folder / "one.jsonl").write_text('{"text": "one"}\n')
    theirs = Path(str(config.megatron_lm)).resolve()
    places = {"Megatron-LTD": REPOSITORY, "Megatron-LM": theirs}
    took: dict[tuple[str, str], list[Took]] = {}
    for _ in range(config.rounds):
        for tool, place in places.items():
            for name in ("one", "train"):
                took.setdefault((tool, name), []).append(_encoded_by(place, folder, name, config))
            (folder / "train_text_document.bin").rename(folder / f"{tool}.bin")
        if not filecmp.cmp(*(folder / f"{tool}.bin" for tool in places), shallow=False):
            raise RunStopped("both tools wrote other tokens; give both the same tokenizer")
    rows = []
    for tool in places:
        start, whole = ([median(getattr(one, unit) for one in took[tool, name]) for unit in ("cpu", "wall")]
                        for name in ("one", "train"))  # fmt: skip
        spent = [after - before for before, after in zip(start, whole, strict=True)]
        speeds = (f"{len(text) / 1e6 / seconds:.2f}" for seconds in spent)
        rows.append([tool, *(f"{seconds:.1f}" for seconds in (*start, *spent)), *speeds])
    return rows


def _encoded_by(place: Path, folder: Path, name: str, config: Config) -> Took:
    """Encode ``folder``/``name``.jsonl with the tool of a checkout at ``place``."""
    flags = ["--input", f"{folder / name}.jsonl", "--output-prefix", str(folder / name), "--append-eod"]
    flags += ["--tokenizer-type", "HuggingFaceTokenizer"]
    flags += ["--tokenizer-model", os.path.abspath(config.tokenizer_model or "")]
    flags += ["--workers", str(config.workers)]
    for path in folder.glob(f"{name}_text_document.*"):
        path.unlink()
    script = str(place / "tools" / "preprocess_data.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
    ended, took = run_python(["-W", "ignore", script, *flags], cwd=place, env=environment)
    if ended.returncode:
        raise RunStopped(f"{script} ended with status {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return took


def main() -> None:
    """Measure, and print a part of the page."""
    (config,) = read_command(__doc__, Config)
    with tempfile.TemporaryDirectory() as name:
        if config.megatron_lm is None:
            print("# Data: encoding\n")
            print(f"## Encoding bytes, {_processes(config)}\n")
            head = ["input", "file, MB", "text, MB", "MB per CPU second", "MB per second"]
            rows = encoding_rows(Path(name), config)
        else:
            version = runpy.run_path(f"{config.megatron_lm}/megatron/core/package_info.py")["__version__"]
            print(f"## Beside the tool of Megatron-LM {version}: HuggingFaceTokenizer, {_processes(config)}\n")
            print(f"{config.megabytes} MB of JSON lines, medians of {config.rounds}; both write the same tokens.\n")
            spent = [f"{part}, {unit}" for part in ("start", "encoding") for unit in ("CPU s", "s")]
            head = ["tool", *spent, "MB per CPU second", "MB per second"]
            rows = beside_rows(Path(name), config)
    print(f"{markdown_table(rows, head)}\n\n{facts(about('data.py', 'torch', 'megatron-core', 'pyarrow'))}")


def _processes(config: Config) -> str:
    return f"{config.workers} process{'es' if config.workers > 1 else ''}"


if __name__ == "__main__":
    run_command(main)
