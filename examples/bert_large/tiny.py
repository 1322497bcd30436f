"""The data of TINY=1: texts that come with Python, a vocabulary of them, and sentences labelled by a word in them.

python examples/bert_large/tiny.py OUT      writes train.jsonl, valid.jsonl, words-vocab.txt, labelled.jsonl, dev.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

from megatron.ltd.data.sentences import split_sentences
from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

_VOCAB_SIZE = 1000


def main(out: Path) -> None:
    """Write the files; the last one shows that all are complete."""
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
    main(Path(sys.argv[1]))
