"""The runs of the comparison: a small BERT, pretrained with every method, and finetuned densely from each.

    pretrain    N steps on books, masked tokens and sentence order                 one run per variant
    finetune    n steps on labelled sentences, from each variant's weights         the same n, dense
                                               and from initial weights            shows the value of pretraining

A recipe consists of flags of the training scripts; the cost of a run is that of its plan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.spec import RunSpec, plan_of

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import Entry
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER

DENSE, FROM_SCRATCH = "dense", "no pretraining"
VARIANTS = (DENSE, "random-ltd", "token-bypass", "layer-drop", "random-ltd + layer-drop")
_TRAINING = "--lr-decay-style linear --lr-warmup-fraction 0.1 --weight-decay 0.01 --log-interval 50 --keep-last 1"


@dataclass(frozen=True)
class Recipe:
    """The flags of the runs. On one core, pretraining takes about four CPU-minutes and finetuning about three."""

    vocab_size: int = 4096
    model: str = "--num-layers 6 --hidden-size 128 --num-attention-heads 4 --max-position-embeddings 128 --device cpu"
    pretraining: str = (
        "--seq-length 128 --micro-batch-size 16 --train-iters 500 --lr 1e-3 --eval-interval 125 --eval-iters 40 "
        "--save-interval 125"
    )
    finetuning: str = (
        "--seq-length 64 --micro-batch-size 32 --train-iters 500 --lr 3e-4 --eval-interval 125 --eval-iters 1 "
        "--save-interval 125"
    )
    random_ltd: str = "--random-ltd --ltd-min-kept-tokens 32 --ltd-granularity 8 --ltd-growth-steps 330"
    layer_drop: str = "--layer-drop --layer-drop-theta 0.5 --layer-drop-gamma 0.2"

    def method_flags(self, variant: str) -> list[str]:
        """The flags that turn on the variant's methods."""
        flags = {"random-ltd": self.random_ltd, "token-bypass": "--token-bypass", "layer-drop": self.layer_drop}
        return [flag for part in variant.split(" + ") for flag in flags.get(part, "").split()]


FULL = Recipe()
TINY = Recipe(
    vocab_size=400,
    model="--num-layers 3 --hidden-size 32 --num-attention-heads 2 --max-position-embeddings 32 --device cpu",
    pretraining="--seq-length 32 --micro-batch-size 4 --train-iters 8 --lr 1e-3 --eval-interval 2 --eval-iters 2 "
    "--save-interval 4",
    finetuning="--seq-length 16 --micro-batch-size 8 --train-iters 6 --lr 3e-4 --eval-interval 1 --eval-iters 1 "
    "--save-interval 4",
    random_ltd="--random-ltd --ltd-min-kept-tokens 8 --ltd-granularity 8 --ltd-growth-steps 5",
    layer_drop="--layer-drop --layer-drop-theta 0.5 --layer-drop-gamma 12.5",
)
"""A recipe of runs of seconds. It tests that everything runs, and its results mean nothing."""


@dataclass(frozen=True)
class Data:
    """The files that the runs read."""

    train_prefix: Path
    valid_prefix: Path
    vocab: Path
    labelled_train: Path
    labelled_valid: Path

    def tokenizer_flags(self) -> list[str]:
        """The tokenizer's flags for the scripts."""
        return ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", f"{self.vocab}"]


def pretraining(recipe: Recipe, data: Data, seeds: Sequence[int], folder: Path) -> list[RunSpec]:
    """The pretraining runs, one per variant and seed."""
    flags = [
        *f"{recipe.model} {recipe.pretraining} {_TRAINING}".split(), *data.tokenizer_flags(),
        *("--train-data-path", f"{data.train_prefix}", "--valid-data-path", f"{data.valid_prefix}"),
    ]  # fmt: skip
    return [
        _spec(variant, seed, folder, [*flags, *recipe.method_flags(variant)], BERT, "pretrain_bert_ltd.py")
        for seed in seeds
        for variant in VARIANTS
    ]


def finetuning(recipe: Recipe, data: Data, seeds: Sequence[int], folder: Path) -> list[RunSpec]:
    """The finetuning runs: one from every pretraining run, and one per seed from initial weights."""
    common = [
        *f"{recipe.model} {recipe.finetuning} {_TRAINING}".split(), *data.tokenizer_flags(),
        *("--train-data-path", f"{data.labelled_train}", "--valid-data-path", f"{data.labelled_valid}"),
    ]  # fmt: skip
    specs = []
    for seed in seeds:
        for variant in (FROM_SCRATCH, *VARIANTS):
            name, flags = f"finetuned {variant}", list(common)
            started = (_checkpoints(folder, name, seed) / "latest_checkpointed_iteration.txt").exists()
            if variant != FROM_SCRATCH and not started:
                flags += ["--load", f"{_checkpoints(folder, variant, seed)}", "--finetune"]
            specs.append(_spec(name, seed, folder, flags, BERT_CLASSIFIER, "finetune_bert_ltd.py"))
    return specs


def _checkpoints(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"{re.sub(r'[^a-z]+', '-', variant)}-seed{seed}" / "checkpoints"


def _spec(variant: str, seed: int, folder: Path, flags: list[str], workload: Entry, script: str) -> RunSpec:
    checkpoints = _checkpoints(folder, variant, seed)
    flags = [*flags, "--seed", f"{seed}", "--save", f"{checkpoints}", "--log-dir", f"{checkpoints.parent}"]
    if "--load" not in flags:
        flags += ["--load", f"{checkpoints}"]
    config = parse_run_config(flags, workload)
    plan = plan_of(config, workload.open(config).shape)
    return RunSpec(variant, seed, plan.num_steps, plan.flops(plan.num_steps), checkpoints.parent, tuple(flags), script)
