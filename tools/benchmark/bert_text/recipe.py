"""What is compared: a small BERT pretrained with every method, and finetuned, dense, from each.

    pretrain    N steps on books, masked tokens and sentence order                 one run a variant
    finetune    n steps on labelled sentences, from each variant's weights         the same n, dense
                                               and from initial weights            what pretraining is worth

Each run is the product's own script; how costly it is comes from the product's own planner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.spec import RunSpec

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import Entry
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.tasks import BERT, BERT_CLASSIFIER

DENSE, FROM_SCRATCH = "dense", "no pretraining"
VARIANTS = (DENSE, "random-ltd", "token-bypass", "layer-drop", "random-ltd + layer-drop")


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates; a pretraining run takes about four CPU-minutes on one core, a finetuning run about three."""

    vocab_size: int = 4096
    num_layers: int = 6
    hidden_size: int = 128
    num_attention_heads: int = 4
    seq_length: int = 128
    batch_samples: int = 16
    train_steps: int = 500
    lr: float = 1e-3
    min_kept_tokens: int = 32
    granularity: int = 8
    growth_steps: int = 330
    layer_drop_theta: float = 0.5
    eval_batches: int = 40
    finetune_seq_length: int = 64
    finetune_batch_samples: int = 32
    finetune_steps: int = 500
    finetune_lr: float = 3e-4
    save_steps: int = 125

    def method_flags(self, variant: str) -> list[str]:
        """What switches the variant's methods on."""
        flags = {
            "random-ltd": (
                *("--random-ltd", "--ltd-min-kept-tokens", f"{self.min_kept_tokens}"),
                *("--ltd-granularity", f"{self.granularity}", "--ltd-growth-steps", f"{self.growth_steps}"),
            ),
            "token-bypass": ("--token-bypass",),
            "layer-drop": (
                *("--layer-drop", "--layer-drop-theta", f"{self.layer_drop_theta}"),
                *("--layer-drop-gamma", f"{100 / self.train_steps:.6f}"),
            ),
        }
        return [flag for part in variant.split(" + ") for flag in flags.get(part, ())]

    def model_flags(self) -> list[str]:
        """The model, for both kinds of run."""
        return [
            *("--num-layers", f"{self.num_layers}", "--hidden-size", f"{self.hidden_size}"),
            *("--num-attention-heads", f"{self.num_attention_heads}"),
            *("--max-position-embeddings", f"{self.seq_length}", "--device", "cpu"),
        ]


FULL = Recipe()
TINY = Recipe(
    vocab_size=400, num_layers=3, hidden_size=32, num_attention_heads=2, seq_length=32, batch_samples=4, train_steps=8,
    min_kept_tokens=8, growth_steps=5, eval_batches=2, finetune_seq_length=16, finetune_batch_samples=8,
    finetune_steps=6, save_steps=4,
)  # fmt: skip
"""Seconds, not minutes: shows that everything runs, says nothing about quality."""


@dataclass(frozen=True)
class Data:
    """What the runs read."""

    train_prefix: Path
    valid_prefix: Path
    vocab: Path
    labelled_train: Path
    labelled_valid: Path

    def tokenizer_flags(self) -> list[str]:
        """As flags of the scripts."""
        return ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", f"{self.vocab}"]


def pretraining(recipe: Recipe, data: Data, seeds: Sequence[int], folder: Path) -> list[RunSpec]:
    """One run a variant and seed."""
    common = [
        *recipe.model_flags(), *data.tokenizer_flags(), "--seq-length", f"{recipe.seq_length}",
        *("--train-data-path", f"{data.train_prefix}", "--valid-data-path", f"{data.valid_prefix}"),
        *_training(recipe.train_steps, recipe.batch_samples, recipe.lr, recipe.eval_batches),
    ]  # fmt: skip
    return [
        _spec(variant, seed, folder, [*common, *recipe.method_flags(variant)], recipe, BERT, "pretrain_bert_ltd.py")
        for seed in seeds
        for variant in VARIANTS
    ]


def finetuning(recipe: Recipe, data: Data, seeds: Sequence[int], folder: Path) -> list[RunSpec]:
    """One run from every pretraining run, and one from initial weights."""
    common = [
        *recipe.model_flags(), *data.tokenizer_flags(), "--seq-length", f"{recipe.finetune_seq_length}",
        *("--train-data-path", f"{data.labelled_train}", "--valid-data-path", f"{data.labelled_valid}"),
        *_training(recipe.finetune_steps, recipe.finetune_batch_samples, recipe.finetune_lr, 1),
    ]  # fmt: skip
    specs = []
    for seed in seeds:
        for variant in (FROM_SCRATCH, *VARIANTS):
            flags, place = list(common), _folder(folder, f"finetuned {variant}", seed)
            weights = _folder(folder, variant, seed) / "checkpoints"
            started = (place / "checkpoints" / "latest_checkpointed_iteration.txt").exists()
            if variant != FROM_SCRATCH and not started:
                flags += ["--load", f"{weights}", "--finetune"]
            elif started:
                flags += ["--load", f"{place / 'checkpoints'}"]
            name = f"finetuned {variant}"
            specs.append(_spec(name, seed, folder, flags, recipe, BERT_CLASSIFIER, "finetune_bert_ltd.py"))
    return specs


def _training(steps: int, batch_samples: int, lr: float, eval_batches: int) -> list[str]:
    return [
        *("--micro-batch-size", f"{batch_samples}", "--global-batch-size", f"{batch_samples}"),
        *("--train-iters", f"{steps}", "--lr", f"{lr}", "--lr-decay-style", "linear", "--lr-warmup-fraction", "0.1"),
        *("--weight-decay", "0.01", "--eval-interval", f"{max(1, steps // 4)}", "--eval-iters", f"{eval_batches}"),
        *("--log-interval", "50"),
    ]


def _folder(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"{re.sub(r'[^a-z]+', '-', variant)}-seed{seed}"


def _spec(variant: str, seed: int, folder: Path, flags: list[str], recipe: Recipe, task: Entry, script: str) -> RunSpec:
    place = _folder(folder, variant, seed)
    checkpoints = f"{place / 'checkpoints'}"
    flags = [*flags, "--seed", f"{seed}", "--save", checkpoints, "--save-interval", f"{recipe.save_steps}"]
    flags += ["--keep-last", "1", "--log-dir", f"{place}"]
    if "--load" not in flags:
        flags += ["--load", checkpoints]
    config = parse_run_config(flags, task)
    shape, method = task.open(config).shape, config.build_method()
    plan = RunClock.build(shape, config.global_batch_size(1), method, config.training, config.optimizer).plan()
    return RunSpec(variant, seed, plan.num_steps, plan.flops(plan.num_steps), place, tuple(flags), script)
