"""The data of TINY=1: texts that come with Python, a vocabulary of bytes, and sentences whose last word is predicted.

python examples/gpt3/tiny.py OUT     writes text-1.jsonl, text-2.jsonl, encoder.json, vocab.bpe,
                                     tasks/lambada_openai/test.jsonl and done
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

from megatron.ltd.data.sentences import split_sentences
from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

_HELD_OUT_TOPICS = 5
_QUESTIONS = 20


def main(out: Path) -> None:
    """Write the files; the last one shows that all are complete."""
    tasks = out / "tasks" / "lambada_openai"
    tasks.mkdir(parents=True, exist_ok=True)
    texts = [topics[name] for name in sorted(topics)]
    train, held_out = texts[:-_HELD_OUT_TOPICS], texts[-_HELD_OUT_TOPICS:]
    _write(out / "text-1.jsonl", train[::2])
    _write(out / "text-2.jsonl", train[1::2])
    vocabulary = {piece: token for token, piece in enumerate([*byte_alphabet(), END_OF_TEXT])}
    (out / "encoder.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (out / "vocab.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    sentences = [sentence.rstrip(".") for text in held_out for sentence in split_sentences(text)]
    _write(tasks / "test.jsonl", [sentence for sentence in sentences if 30 < len(sentence) < 90][:_QUESTIONS])
    (out / "done").touch()


def _write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
