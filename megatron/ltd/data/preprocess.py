"""Text files to indexed tokens, for ``tools/preprocess_data.py``.

    --input files --documents--> chunks --encode (workers)--> ids --writer--> PREFIX_<key>_document.{bin,idx,json}

With ``--split-sentences`` the output is ``PREFIX_<key>_sentence``, with a sequence for each sentence. Flags and output
are Megatron-LM's; the .json card (``indexed.DatasetCard``) is ours. The same input gives the same files with any number
of workers, and the shards of ``--shard`` merge to the same files too (``data.merge``). torch is imported only after the
arguments are checked.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from megatron.ltd.data.encode import EncodedChunk, EncodeOptions, encode_all
from megatron.ltd.data.indexed import DatasetCard
from megatron.ltd.data.inputs.documents import WHOLE, Shard, read_chunks
from megatron.ltd.data.inputs.files import InputFile, find_inputs
from megatron.ltd.data.pending import check_output
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, Range
from megatron.ltd.format import count_of, format_bytes, format_count
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles

if TYPE_CHECKING:
    from megatron.ltd.data.writer import DatasetWriter


@dataclass(frozen=True)
class PreprocessConfig(Settings):
    """preprocessing"""

    input: tuple[str, ...] = flag(
        (),
        metavar="FILE",
        required="give text files",
        help="files, folders or quoted patterns: JSON lines (one object a line), plain text (each file is one "
        "document), Parquet, Arrow, or a saved Hugging Face dataset; text also compressed (gzip, bzip2, xz, Zstandard)",
    )
    output_prefix: str = flag(
        None,
        metavar="PREFIX",
        required="give the prefix of the output files, for example data/books",
        help="writes PREFIX_KEY_document.bin, .idx and .json for each of --json-keys (with "
        "--split-sentences: PREFIX_KEY_sentence)",
    )
    json_keys: tuple[str, ...] = flag(
        ("text",), metavar="KEY", help="keys of a JSON line, or columns of a table, that hold text"
    )
    workers: int = flag(1, range=Range(1, 1 << 10), metavar="N", help="processes that encode")
    shard: str | None = flag(
        None,
        metavar="I/N",
        help="encode the I-th of N equal parts of --input only (I counts from 1); merge_datasets.py joins what N such "
        "commands write",
    )
    append_eod: bool = flag(False, help="end each document with the tokenizer's end of document")
    split_sentences: bool = flag(False, help="keep the sentences of each document apart, as BERT's samples need them")
    skip_bad_lines: bool = flag(False, help="leave out JSON lines that cannot be used, and count them")
    overwrite: bool = flag(False, help="replace output that is there already")
    log_interval: int = flag(
        0,
        range=COUNT_OR_ZERO,
        metavar="N",
        help="without a terminal, print a line of progress every N documents (0: only at the end)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            Shard.parse(self.shard)
        if len(set(self.json_keys)) != len(self.json_keys):
            raise UserError(f"--json-keys {' '.join(self.json_keys)}: a key is given twice")
        if self.split_sentences and self.append_eod:
            raise UserError(
                "--append-eod and --split-sentences: samples of sentences have no end of document; remove --append-eod "
                "for BERT, or --split-sentences for GPT"
            )

    @property
    def part(self) -> Shard:
        """The shard of ``--shard``."""
        return WHOLE if self.shard is None else Shard.parse(self.shard)


@dataclass(frozen=True)
class PreprocessResult:
    """The cards of the output by prefix, and the numbers of what was left out."""

    cards: dict[str, DatasetCard]
    empty_documents: int
    bad_lines: int
    text_bytes: int
    seconds: float

    def summary(self) -> str:
        """One line an output prefix."""
        seconds = max(self.seconds, 1e-9)
        left_out = [f"{count_of(self.bad_lines, 'bad line')} skipped"] if self.bad_lines else []
        left_out += [f"{count_of(self.empty_documents, 'empty document')} left out"] if self.empty_documents else []
        return "\n".join(
            "; ".join(
                [
                    f"{prefix}: {count_of(card.documents, 'document')}, {count_of(card.tokens, 'token')}, "
                    f"{format_bytes(self.text_bytes)} in {self.seconds:.1f} s "
                    f"({format_bytes(self.text_bytes / seconds)}/s, {format_count(card.tokens / seconds)} tokens/s)",
                    *left_out,
                ]
            )
            for prefix, card in self.cards.items()
        )


def preprocess(config: PreprocessConfig, tokenizer_files: TokenizerFiles) -> PreprocessResult:
    """Encode ``--input`` into indexed datasets, one per JSON key.

    Raises ``UserError`` for input that cannot be read or parsed, a tokenizer that cannot be built, output that exists
    (without ``--overwrite``) or cannot be written. A failure or Ctrl-C leaves no file behind and what was there intact.
    """
    started = time.monotonic()
    level = "sentence" if config.split_sentences else "document"
    prefixes = {key: f"{config.output_prefix}_{key}_{level}" for key in config.json_keys}
    files = find_inputs(config.input)
    _check_keys(files, config.json_keys)
    check_output(config.output_prefix, list(prefixes.values()), config.overwrite)
    tokenizer = build_tokenizer(tokenizer_files)
    loss = tokenizer.loss()
    if loss is not None:
        print(f"warning: --tokenizer-model {tokenizer_files.tokenizer_model}: {loss}", flush=True)
    options = EncodeOptions(
        tokenizer_files, config.json_keys, config.append_eod, config.skip_bad_lines, config.split_sentences
    )
    raw_chunks = read_chunks(files, shard=config.part, json_keys=config.json_keys)
    chunks = _with_progress(encode_all(raw_chunks, options, tokenizer, config.workers), files, config)

    with warnings.catch_warnings():
        # Warnings about packages for training on GPUs do not matter here.
        warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
        from megatron.ltd.data.writer import DatasetWriter

    writers: dict[str, DatasetWriter] = {}
    empty_documents = bad_lines = text_bytes = 0
    with writes_to(f"--output-prefix {config.output_prefix}"), ExitStack() as cleanup:
        cleanup.callback(chunks.close)
        for key, prefix in prefixes.items():
            writers[key] = DatasetWriter(prefix, tokenizer.vocab_size)
            cleanup.callback(writers[key].discard)
        for chunk in chunks:
            for key, documents in chunk.documents.items():
                writers[key].add(documents)
            empty_documents += chunk.empty_documents
            bad_lines += chunk.bad_lines
            text_bytes += chunk.num_bytes
        cards = _finish(writers, prefixes, config, tokenizer)
    return PreprocessResult(cards, empty_documents, bad_lines, text_bytes, time.monotonic() - started)


def _finish(
    writers: dict[str, DatasetWriter], prefixes: dict[str, str], config: PreprocessConfig, tokenizer: Tokenizer
) -> dict[str, DatasetCard]:
    """Complete all output files before any is renamed."""
    for key, writer in writers.items():
        if writer.tokens == 0:
            where = f"--input {' '.join(config.input)}"
            if config.shard is not None:
                raise UserError(f'--shard {config.shard}: has no text under "{key}" of {where}; use fewer shards')
            raise UserError(f'{where}: no text under "{key}"; give files with documents')
    cards = {
        prefixes[key]: writer.finish(tokenizer, key, config.append_eod, config.shard) for key, writer in writers.items()
    }
    for writer in writers.values():
        writer.publish()
    return cards


def _check_keys(files: Sequence[InputFile], json_keys: Sequence[str]) -> None:
    text_file = next((file.path for file in files if not file.is_json and file.table is None), None)
    if text_file is not None and len(json_keys) > 1:
        raise UserError(
            f"--json-keys {' '.join(json_keys)}: {text_file} is plain text, a document without keys; give one key only"
        )


def _with_progress(
    chunks: Iterator[EncodedChunk], files: Sequence[InputFile], config: PreprocessConfig
) -> Generator[EncodedChunk, None, None]:
    """Pass chunks on under a progress bar on a terminal, or with a line every ``--log-interval`` documents."""
    begin, end = config.part.span(sum(file.num_bytes for file in files))
    total_bytes = end - begin
    is_terminal = sys.stderr.isatty()
    started = time.monotonic()
    done_bytes = documents = lines = 0
    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc="encoding", disable=not is_terminal) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(chunk.stored_bytes)
            done_bytes += chunk.stored_bytes
            documents += len(chunk.documents[config.json_keys[0]].lengths)
            if config.log_interval and not is_terminal and documents // config.log_interval > lines:
                lines = documents // config.log_interval
                rate = done_bytes / max(time.monotonic() - started, 1e-9)
                share = min(done_bytes / max(total_bytes, 1), 1.0)  # a shard's last document may pass its end
                print(f"{documents:,} documents, {share:.0%}, {format_bytes(rate)}/s", flush=True)
