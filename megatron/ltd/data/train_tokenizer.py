"""Trains a vocabulary: a SentencePiece model with lossless encoding, or BERT's WordPiece.

With SentencePiece decode(encode(text)) == text, for source code too: there is no normalisation, no space is added or
removed, sequences of spaces and line ends are pieces, and other characters are encoded as bytes. Training reads the
documents in passages that end at line ends; of more text than ``--max-train-mb`` it takes evenly spaced passages. The
same input and flags give the same vocabulary.

Not here: using a vocabulary (``sentencepiece``, ``wordpiece``), and training WordPiece (``train_wordpiece``).
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from megatron.ltd.data.inputs.documents import parse_chunk, read_chunks
from megatron.ltd.data.inputs.files import find_inputs
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import Range
from megatron.ltd.small_files import write_whole
from megatron.ltd.tokenizers.base import needs_tokenizers

_PASSAGE_CHARACTERS = 2000
_LONGEST_LINE_CHARACTERS = 100_000
_ONLY_ERRORS = 2


@dataclass(frozen=True)
class TrainTokenizerConfig(Settings):
    """tokenizer training"""

    input: tuple[str, ...] = flag(
        (), metavar="FILE", help="files, folders or quoted patterns, of every kind that preprocess_data.py takes",
        required="give text files",
    )  # fmt: skip
    json_keys: tuple[str, ...] = flag(
        ("text",), metavar="KEY", help="keys of a JSON line, or columns of a table, that hold text"
    )
    vocab_size: int = flag(
        8192, range=Range(300, 1 << 20), metavar="N", help="pieces, bytes and special ones among them"
    )
    output_prefix: str = flag(
        None, metavar="PREFIX", help="writes PREFIX.model, or PREFIX-vocab.txt with --model-type wordpiece",
        required="give the prefix of the model, for example data/books",
    )  # fmt: skip
    model_type: str = flag(
        "bpe", choices=("bpe", "unigram", "wordpiece"), help="how pieces are found; wordpiece is BERT's vocabulary"
    )
    cased: bool = flag(False, help="WordPiece: keep capitals and accents, for --tokenizer-type BertWordPieceCase")
    threads: int = flag(2, range=Range(1, 64), metavar="N", help="threads that train a SentencePiece model")
    max_train_mb: float = flag(
        256.0, range=Range(0, 1e9, above=True), metavar="N", help="train on at most about this much text [MB]"
    )
    overwrite: bool = flag(False, help="replace a model that is there already")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cased and self.model_type != "wordpiece":
            raise UserError(f"--cased: has no effect with --model-type {self.model_type}; remove it, or use wordpiece")

    @property
    def path(self) -> Path:
        """The file that is written."""
        return Path(f"{self.output_prefix}{'-vocab.txt' if self.model_type == 'wordpiece' else '.model'}")


@dataclass(frozen=True)
class TrainedTokenizer:
    """What was written, and from how much text."""

    path: str
    vocab_size: int
    text_bytes: int
    seconds: float

    def summary(self) -> str:
        """One line."""
        return f"{self.path}: {self.vocab_size:,} pieces from {self.text_bytes / 1e6:.1f} MB in {self.seconds:.1f} s"


def train_tokenizer(config: TrainTokenizerConfig) -> TrainedTokenizer:
    """Train and write PREFIX.model or PREFIX-vocab.txt, which appears when it is complete.

    Raises ``UserError`` for input that cannot be read, a vocabulary that the text cannot fill, or a model that exists
    (without ``--overwrite``) or cannot be written.
    """
    started = time.monotonic()
    path = config.path
    if not path.parent.is_dir():
        raise UserError(f"--output-prefix {config.output_prefix}: folder {path.parent} does not exist; create it first")
    if path.exists() and not config.overwrite:
        raise UserError(
            f"--output-prefix {config.output_prefix}: {path} exists; use another prefix, or --overwrite to replace it"
        )
    passages = _Passages(config)
    learn = _wordpiece if config.model_type == "wordpiece" else _sentencepiece
    model = learn(config, passages)
    with writes_to(f"--output-prefix {config.output_prefix}"):
        write_whole(path, model)
    return TrainedTokenizer(str(path), config.vocab_size, passages.text_bytes, time.monotonic() - started)


def _sentencepiece(config: TrainTokenizerConfig, passages: _Passages) -> bytes:
    """The bytes of a SentencePiece model."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(passages),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=4 * (_PASSAGE_CHARACTERS + _LONGEST_LINE_CHARACTERS),
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=config.threads,
            minloglevel=_ONLY_ERRORS,
        )
    except (RuntimeError, OSError) as error:
        # The library's message is "Internal: <file>(<line>) [<condition>] <what to do>", with options of its own.
        reason = str(error).rpartition("] ")[2].strip().rstrip(".") or "there is too little text"
        fewest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason)
        if fewest:
            reason = f"the characters of the text alone take {fewest[1]} pieces; give more than that"
        raise UserError(f"--vocab-size {config.vocab_size}: {config.path} cannot be trained: {reason}") from None
    return model.getvalue()


def _wordpiece(config: TrainTokenizerConfig, passages: _Passages) -> bytes:
    """The bytes of a vocab.txt."""
    with needs_tokenizers("--model-type wordpiece"):
        from megatron.ltd.data.train_wordpiece import learn_wordpiece
    pieces = learn_wordpiece(passages, config.vocab_size, cased=config.cased)
    if len(pieces) < config.vocab_size:
        raise UserError(
            f"--vocab-size {config.vocab_size}: {config.path} cannot be trained: the text holds {len(pieces)} pieces; "
            f"give at most {len(pieces)}, or more text"
        )
    return "".join(f"{piece}\n" for piece in pieces).encode("utf-8")


class _Passages:
    """The text to train on, in passages; counts the bytes it hands out."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        self._config = config
        self._files = find_inputs(config.input)
        total_bytes = self._text_bytes()
        if not total_bytes:
            raise UserError(f"--input {' '.join(config.input)}: holds no text; give files with text")
        self._share = min(1.0, config.max_train_mb * 1e6 / total_bytes)
        self.text_bytes = 0

    def __iter__(self) -> Iterator[str]:
        self.text_bytes = 0
        for number, passage in enumerate(self._all()):
            # Keeps the share of passages in even steps: exactly where share * number passes a whole number.
            if int((number + 1) * self._share) > int(number * self._share):
                self.text_bytes += len(passage.encode("utf-8"))
                yield passage

    def _text_bytes(self) -> int:
        """Of all files; compressed ones and tables are read for it."""
        if all(file.compression is None and file.table is None for file in self._files):
            return sum(file.num_bytes for file in self._files)
        return sum(chunk.num_bytes for chunk in read_chunks(self._files, json_keys=self._config.json_keys))

    def _all(self) -> Iterator[str]:
        for chunk in read_chunks(self._files, json_keys=self._config.json_keys):
            for texts in parse_chunk(chunk, self._config.json_keys, skip_bad_lines=False).texts:
                for text in texts:
                    yield from _passages(text)


def _passages(text: str) -> Iterator[str]:
    """``text`` in passages of whole lines, ``_PASSAGE_CHARACTERS`` or longer but for the last; cuts overlong lines."""
    passage: list[str] = []
    characters = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _LONGEST_LINE_CHARACTERS):
            passage.append(line[start : start + _LONGEST_LINE_CHARACTERS])
            characters += len(passage[-1])
            if characters >= _PASSAGE_CHARACTERS:
                yield "".join(passage)
                passage, characters = [], 0
    if passage:
        yield "".join(passage)
