"""Small data, tokenizers, runs and models, which campaigns copy and damage: the folder ``material``.

text.jsonl, text.txt, labelled.tsv, images.npz, settings.yaml
data.bin .idx .json, more.* , sentences.*               indexed data: bytes, the same again, and sentences in WordPiece
vocab.txt, pieces.model, vocab.json, merges.txt, tokenizer.json, ranks.model   tokenizers
pngs/                                                   a folder of images for each of two classes
run/                                                    a GPT with checkpoints of steps 2, 4 and 6
half/                                                   the same run, left after step 4
last/                                                   its last checkpoint alone
bert/, vit/                                             a BERT and a vision transformer, left after step 1 of 2
hf/                                                     last/ as a Hugging Face folder
theirs/                                                 a checkpoint of Megatron-LM
tasks/, scores/, more_scores/                           data of three tasks, and lm-eval's results of last/ and half/
published/                                              a task as it is published
plan.json

Without lm-eval there are no tasks/, scores/ and more_scores/.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.ltd.errors import RunStopped
from megatron.ltd.tokenizers.gpt2_bpe import byte_alphabet
from megatron.ltd.tokenizers.wordpiece import SPECIAL_PIECES

from .child import Bounds, in_child
from .megatron_lm import save_as_megatron_lm
from .warm import REPOSITORY, run_program

GPT = (
    "--device cpu --tokenizer-type ByteTokenizer --num-layers 3 --hidden-size 16 --num-attention-heads 2 "
    "--seq-length 16 --micro-batch-size 2 --global-batch-size 4 --train-iters 6 --lr 1e-3 --lr-decay-style cosine "
    "--eval-interval 3 --eval-iters 1 --no-progress --random-ltd --ltd-min-kept-tokens 4 --ltd-granularity 4 "
    "--ltd-growth-steps 5 --train-data-path data --valid-data-path data"
).split()
_BERT = (
    "--device cpu --tokenizer-type BertWordPieceLowerCase --vocab-file vocab.txt --num-layers 3 --hidden-size 16 "
    "--num-attention-heads 2 --seq-length 32 --micro-batch-size 2 --global-batch-size 2 --train-iters 2 --lr 1e-3 "
    "--eval-iters 1 --no-progress"
).split()
BERT = [*_BERT, *"--data-path sentences --split 90,10,0".split()]
CLASSIFIER = [*_BERT, *"--train-data-path labelled.tsv --valid-data-path labelled.tsv".split()]
VIT = (
    "--device cpu --num-layers 3 --hidden-size 16 --num-attention-heads 2 --micro-batch-size 2 --global-batch-size 2 "
    "--train-iters 2 --lr 1e-3 --no-progress --img-h 8 --img-w 8 --patch-dim 4 --num-channels 1 --num-classes 3 "
    "--train-data-path images.npz --valid-data-path images.npz"
).split()
_DATA = {
    "data": "--append-eod --tokenizer-type ByteTokenizer",
    "more": "--append-eod --tokenizer-type ByteTokenizer",
    "sentences": "--split-sentences --tokenizer-type BertWordPieceLowerCase --vocab-file vocab.txt",
}
TASKS = "--device cpu --task-data tasks --tasks piqa sciq openbookqa".split()
_WORDS = "the model keeps some of its tokens and every other token skips this layer while it runs".split()


def make_material(folder: Path) -> Path:
    """Make everything in ``folder/material``, and return that folder. Raises ``RunStopped`` if a command fails."""
    material = folder / "material"
    material.mkdir(parents=True)
    _write_sources(material)
    _call(material, "tools/train_tokenizer.py", *"--input text.jsonl --vocab-size 300 --output-prefix pieces".split())
    for key, flags in _DATA.items():
        _call(material, "tools/preprocess_data.py", "--input", "text.jsonl", "--output-prefix", key, *flags.split())
        for path in sorted(material.glob(f"{key}_text_*")):
            path.rename(material / f"{key}{path.suffix}")
    _call(material, "pretrain_gpt_ltd.py", *GPT, "--save", "run", "--save-interval", "2")
    _call(material, "pretrain_gpt_ltd.py", *GPT, "--save", "half", *"--save-interval 2 --exit-interval 4".split())
    _call(material, "pretrain_gpt_ltd.py", *GPT, "--save", "last", "--save-interval", "6")
    _call(material, "pretrain_bert_ltd.py", *BERT, *"--save bert --exit-interval 1".split())
    _call(material, "finetune_vit_ltd.py", *VIT, *"--save vit --exit-interval 1".split())
    _call(material, "pretrain_gpt_ltd.py", *GPT, "--plan", "--plan-json", "plan.json")
    _call(material, "tools/export_hf.py", *"--load last --output hf --no-tokenizer".split())
    _do(material, lambda: save_as_megatron_lm(Path("theirs")), "Megatron-LM's checkpoint")
    if importlib.util.find_spec("lm_eval") is not None:
        _write_tasks(material / "tasks")
        _call(material, "tools/evaluate.py", "--load", "last", *TASKS[:-1], "--output_path", "scores")
        _call(material, "tools/evaluate.py", "--load", "last", *TASKS, "--output_path", "scores")
        _call(material, "tools/evaluate.py", "--load", "half", *TASKS, "--output_path", "more_scores")
    return material


def copy_of(material: Path, folder: Path) -> Path:
    """Copy the material to the new ``folder``, for one trial."""
    return Path(shutil.copytree(material, folder, symlinks=True))


def _write_sources(folder: Path) -> None:
    draw = random.Random(0)
    texts = [
        " ".join(" ".join(draw.choices(_WORDS, k=draw.randint(3, 9))).capitalize() + "." for _ in range(sentences))
        for sentences in (draw.randint(1, 9) for _ in range(80))
    ]
    lines = [json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)]
    (folder / "text.jsonl").write_text("".join(lines))
    (folder / "text.txt").write_text("\n".join(texts))
    rows = "".join(f"{number % 3}\t{text[:60]}\n" for number, text in enumerate(texts[:30]))
    (folder / "labelled.tsv").write_text(f"label\ttext\n{rows}")
    (folder / "settings.yaml").write_text("num-layers: 2\nlr: 2.0e-3\n")
    stems = {word[:3] for word in _WORDS} | {f"##{word[3:]}" for word in _WORDS if len(word) > 3}
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in (*SPECIAL_PIECES, ".", *sorted(stems))))
    pieces = [*byte_alphabet(), "Ġt", "he", "Ġthe", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n")
    symbols = enumerate(base64.b64encode(bytes([byte])).decode() for byte in range(256))
    (folder / "ranks.model").write_text("".join(f"{symbol} {rank}\n" for rank, symbol in symbols))
    model = {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}, "merges": []}
    cutter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "pre_tokenizer": cutter}))
    _write_images(folder)
    _write_published(folder / "published")


def _write_tasks(folder: Path) -> None:
    """Records of two tasks whose fields are checked, and of one whose fields only lm-eval knows."""
    records: dict[str, list[dict[str, Any]]] = {
        "piqa/validation": [{"goal": f"to {word}", "sol1": word, "sol2": "token", "label": 0} for word in _WORDS[:4]],
        "sciq/test": [
            {"question": word, "support": "layers", "correct_answer": word}
            | {f"distractor{n}": "x" * n for n in (1, 2, 3)}
            for word in _WORDS[:4]
        ],
        "openbookqa/test": [
            {"question_stem": word, "choices": {"text": [word, "x"], "label": ["A", "B"]}, "answerKey": "A"}
            for word in _WORDS[:4]
        ],
    }
    for name, found in records.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in found))


def _write_published(folder: Path) -> None:
    """PIQA as it is published: questions, and a label a line in a file of its own."""
    folder.mkdir()
    questions = [{"goal": f"to {word}", "sol1": word, "sol2": "token"} for word in _WORDS[:6]]
    (folder / "valid.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "valid-labels.lst").write_text("0\n1\n" * 3)


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.RandomState(0)
    images = draw.randint(0, 255, (12, 8, 8, 1), np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(12) % 3)
    for number, image in enumerate(images[:6]):
        path = folder / "pngs" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def _call(folder: Path, script: str, *words: str) -> None:
    """Run a command, which must succeed, in ``folder``."""
    _do(folder, lambda: run_program(REPOSITORY / script, words), script)


def _do(folder: Path, function: Callable[[], object], name: str) -> None:
    """Call ``function``, which must succeed, in a child in ``folder``."""
    ending = in_child(function, folder, Bounds(300.0))
    if ending.status != 0:
        raise RunStopped(f"{name} ended with {ending.status} while the material was made: {ending.said[-2000:]}")
