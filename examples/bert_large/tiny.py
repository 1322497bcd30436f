"""The data of TINY=1: texts that come with Python, a vocabulary of them, and sentences labelled by a word in them.

python examples/bert_large/tiny.py --out DIR     writes train.jsonl, valid.jsonl, words-vocab.txt, labelled.jsonl and
                                                 dev.jsonl
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import run_command, writes_to
from megatron.ltd.flags import Settings, flag, read_command

_VOCAB_SIZE = 1000


@dataclass(frozen=True)
class TinyConfig(Settings):
    """data of TINY=1"""

    out: str = flag(None, metavar="DIR", help="folder to write to", required="give a folder to write to")


def main() -> None:
    """Read the flag, and write the files."""
    (config,) = read_command(__doc__, TinyConfig)
    with writes_to(f"--out {config.out}"):
        write(Path(config.out))


def write(out: Path) -> None:
    """Write the files; the last one shows that all are complete."""
    from pydoc_data.topics import topics

    from megatron.ltd.data.sentences import split_sentences
    from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

    out.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(topics[name].split()) for name in sorted(topics)]
    for name, part in (("train", texts[:-5]), ("valid", texts[-5:])):
        _write(out / f"{name}.jsonl", [{"text": text} for text in part])
    train_tokenizer(
        TrainTokenizerConfig(
            input=(str(out / "train.jsonl"),), vocab_size=_VOCAB_SIZE, output_prefix=str(out / "words"),
            model_type="wordpiece", overwrite=True,
        )
    )  # fmt: skip
    sentences = [sentence for text in texts for sentence in split_sentences(text) if len(sentence.split()) < 16]
    rows = [
        {"text": sentence, "label": "conditional" if re.search(r"\bif\b", sentence, re.IGNORECASE) else "plain"}
        for sentence in sentences
    ]
    conditional = [row for row in rows if row["label"] == "conditional"]
    plain = [row for row in rows if row["label"] == "plain"][:: max(1, len(rows) // len(conditional) - 1)]
    _write(out / "labelled.jsonl", [*conditional[::2], *plain[::2]])
    _write(out / "dev.jsonl", [*conditional[1::2], *plain[1::2]])


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
