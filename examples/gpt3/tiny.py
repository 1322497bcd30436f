"""The data of TINY=1: texts that come with Python, a vocabulary of bytes, and sentences whose last word is predicted.

python examples/gpt3/tiny.py --out DIR     writes text-1.jsonl, text-2.jsonl, encoder.json, vocab.bpe,
                                           tasks/lambada_openai/test.jsonl and done
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import run_command, writes_to
from megatron.ltd.flags import Settings, flag, read_command

_HELD_OUT_TOPICS = 5
_QUESTIONS = 20


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
    from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

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
    run_command(main)
