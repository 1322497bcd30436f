#!/usr/bin/env python3
"""How fast text is encoded, by kind of input, and how long a run over many small datasets takes to find its data.

    python tools/benchmark/data.py > tools/benchmark/results/data.md

The same documents, drawn from the standard library's own source, are written in every kind of file that ``--input``
takes, and encoded by ``preprocess_data.py``'s code in this process (or ``--workers``). Then a blend of ``--datasets``
datasets is opened as a training run opens it: with an empty index cache, and again with the indices of the first time.
CPU seconds are those of this process; wall seconds depend on what else the machine does.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
from common.estimate import markdown_table
from common.page import about, check_at_least, facts
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron.ltd.data.builtin.corpus import CorpusConfig, write_corpus
from megatron.ltd.data.config import VALID, DataConfig
from megatron.ltd.data.datasets import build_datasets, check_sources
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import run_command
from megatron.ltd.flags import flag, read_command
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.tokenizers.byte import ByteTokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles


@dataclass(frozen=True)
class Config:
    """benchmark"""

    megabytes: int = flag(8, help="text to encode [MB]")
    workers: int = flag(1, help="processes that encode")
    datasets: int = flag(2400, help="small datasets in the blend")
    rounds: int = flag(3, help="times that each input is encoded; the fastest counts")

    def __post_init__(self) -> None:
        check_at_least(self, megabytes=1, workers=1, datasets=1, rounds=1)


@dataclass
class Took:
    """Seconds of a block."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed() -> Iterator[Took]:
    """Measure the wall and CPU time of the block, which are set at its end."""
    took, wall, cpu = Took(), time.perf_counter(), time.process_time()
    yield took
    took.wall, took.cpu = time.perf_counter() - wall, time.process_time() - cpu


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


def start_rows(folder: Path, number: int) -> list[list[str]]:
    """A row for the first start over ``number`` datasets, and one for the second."""
    words = []
    for place in range(number):
        prefix = folder / f"{place:05d}"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
        draw = numpy.random.RandomState(place)
        for length in draw.randint(20, 200, size=20):
            builder.add_document(draw.randint(0, 256, length), [int(length)])
        builder.finalize(f"{prefix}.idx")
        words += ["1", str(prefix)]
    data = DataConfig(data_path=tuple(words), split="90,10", data_cache_path=str(folder / "cache"))
    rows, tokenizer = [], ByteTokenizer()
    for name in ("empty cache", "indices of the first start"):
        with timed() as checked:
            check_sources(data, tokenizer, read_tokens=False)
        with timed() as built:
            build_datasets(
                data, seq_length=64, seed=1, train_samples=20 * number, eval_samples={VALID: number},
                tokenizer=tokenizer,
            )  # fmt: skip
        rows.append([name, *(f"{seconds:.1f}" for seconds in (checked.cpu, checked.wall, built.cpu, built.wall))])
    return rows


def main() -> None:
    """Measure, and print the page."""
    (config,) = read_command(__doc__, Config)
    with tempfile.TemporaryDirectory() as name:
        encoded = encoding_rows(Path(name), config)
    with tempfile.TemporaryDirectory() as name, initialize(ParallelConfig(device="cpu"), agree_on={}):
        started = start_rows(Path(name), config.datasets)
    print("# Data: encoding, and finding many datasets\n")
    print(f"## Encoding bytes, {config.workers} process{'es' if config.workers > 1 else ''}\n")
    head = ["input", "file, MB", "text, MB", "MB per CPU second", "MB per second"]
    print("\n".join([*markdown_table(head, encoded), "", f"## Start over {config.datasets:,} datasets\n"]))
    print("Each has 20 documents of 20 to 200 tokens; weights are equal, samples of 64 tokens, two splits.\n")
    head = ["", "check, CPU s", "check, s", "sample indices, CPU s", "sample indices, s"]
    print(
        "\n".join([*markdown_table(head, started), "", *facts(about("data.py", "torch", "megatron-core", "pyarrow"))])
    )


if __name__ == "__main__":
    run_command(main)
