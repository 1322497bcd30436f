"""Damaged files of checkpoints, data, tokenizers, models, settings and logs.

Right: one line and exit status 2, or a result equal to that of the undamaged files, from an older checkpoint too. Where
nothing can tell the damaged file from another good one, such as a vocabulary, any result is right.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.checkpoint import files as checkpoint_files

from ..commands import OUTPUT, Command, Undisturbed
from ..damage import CHANGES, KINDS, damage
from ..material import BERT, CLASSIFIER, GPT, TASKS, VIT, copy_of
from ..trials import Trial
from ..verdict import problem_of


@dataclass(frozen=True)
class Target:
    """Files, a command that reads them, and what is compared if it succeeds."""

    patterns: Sequence[str]
    script: str
    words: Sequence[str]
    results: Sequence[str] = ()
    """As of a ``Command``."""
    sealed: str | None = None
    """A checkpoint whose manifest may be written again after the damage, as an attacker would."""
    needs: str | None = None
    """The package without which it is skipped."""

    @property
    def command(self) -> Command:
        """What reads the files."""
        return Command(self.script, self.words, self.results)


_LAST, _HALF = "last/iter_0000006", "half/iter_0000004"
_EXPORTED, _LOGGED = ("out/*.safetensors", "out/config.json"), ("out/metrics.jsonl",)
_IMPORTED, _RESUMED = ("out/iter*/*.distcp",), ("half/iter_0000006/*.distcp",)
_CHECKPOINT = ("*.distcp", ".metadata", "*.pt", "*.json")
_THEIRS = [*(f"theirs/iter_0000005/{name}" for name in _CHECKPOINT), "theirs/latest_checkpointed_iteration.txt"]
_SCORES = ["scores/**/results_*.json", "more_scores/**/results_*.json"]
_TOOLS = "tools/"
TARGETS: Mapping[str, Target] = {
    "checkpoint, resumed": Target(
        [f"{_HALF}/{name}" for name in _CHECKPOINT] + ["half/latest_checkpointed_iteration.txt"], "pretrain_gpt_ltd.py",
        [*GPT, *"--load half --save half --save-interval 2".split()], _RESUMED, _HALF),
    "checkpoint, finetuned": Target(
        [f"{_LAST}/{name}" for name in _CHECKPOINT], "pretrain_gpt_ltd.py",
        [*GPT, *"--load last --finetune --log-dir out".split()], _LOGGED, _LAST),
    "checkpoint, generating": Target(
        [f"{_LAST}/{name}" for name in _CHECKPOINT], f"{_TOOLS}generate_text.py",
        "--load last --prompt the --num-tokens-to-generate 8 --device cpu".split(), (OUTPUT,), _LAST),
    "checkpoint, exported": Target(
        [f"{_LAST}/{name}" for name in _CHECKPOINT], f"{_TOOLS}export_hf.py",
        "--load last --output out --no-tokenizer".split(), _EXPORTED, _LAST),
    "log, resumed": Target(
        ["half/metrics.jsonl", "half/config.yaml"], "pretrain_gpt_ltd.py",
        [*GPT, *"--load half --save half --save-interval 2".split()], _RESUMED),
    "log, summarized": Target(["run/metrics.jsonl"], f"{_TOOLS}summarize_runs.py", "--runs run half".split()),
    "log, reported": Target(
        ["run/metrics.jsonl", "plan.json"], f"{_TOOLS}report.py",
        "--run run --plan plan.json --output out.html".split()),
    "log, plotted": Target(["run/metrics.jsonl"], f"{_TOOLS}plot_run.py", "--runs run half --output out.svg".split()),
    "data, trained on": Target(
        ["data.*"], "pretrain_gpt_ltd.py", [*GPT, *"--log-dir out --train-iters 2".split()]),
    "cached indices, trained on": Target(
        ["data/cache/*/*"], "pretrain_gpt_ltd.py", [*GPT, *"--log-dir out".split()], _LOGGED),
    "sentences, trained on": Target(
        ["sentences.*", "vocab.txt"], "pretrain_bert_ltd.py", [*BERT, *"--log-dir out".split()]),
    "labels, trained on": Target(
        ["labelled.tsv", "vocab.txt"], "finetune_bert_ltd.py", [*CLASSIFIER, *"--log-dir out".split()]),
    "images, trained on": Target(["images.npz"], "finetune_vit_ltd.py", [*VIT, *"--log-dir out".split()]),
    "data, merged": Target(["data.*"], f"{_TOOLS}merge_datasets.py", "--input data more --output-prefix out".split()),
    "SentencePiece": Target(
        ["pieces.model"], f"{_TOOLS}preprocess_data.py", "--input text.jsonl --output-prefix out --tokenizer-type "
        "SentencePieceTokenizer --tokenizer-model pieces.model".split()),
    "GPT-2 BPE": Target(
        ["vocab.json", "merges.txt"], f"{_TOOLS}preprocess_data.py", "--input text.jsonl --output-prefix out "
        "--tokenizer-type GPT2BPETokenizer --vocab-file vocab.json --merge-file merges.txt".split()),
    "WordPiece": Target(
        ["vocab.txt"], f"{_TOOLS}preprocess_data.py", "--input text.jsonl --output-prefix out --split-sentences "
        "--tokenizer-type BertWordPieceLowerCase --vocab-file vocab.txt".split()),
    "tokenizer.json": Target(
        ["tokenizer.json"], f"{_TOOLS}preprocess_data.py", "--input text.jsonl --output-prefix out --tokenizer-type "
        "HuggingFaceTokenizer --tokenizer-model tokenizer.json --eod-token <|endoftext|>".split()),
    "tiktoken's ranks": Target(
        ["ranks.model"], f"{_TOOLS}preprocess_data.py", "--input text.jsonl --output-prefix out --tokenizer-type "
        "TikTokenizer --tokenizer-model ranks.model".split()),
    "folders of images, trained on": Target(
        ["pngs/*/*.png"], "finetune_vit_ltd.py",
        [*VIT, *"--train-data-path pngs --valid-data-path pngs --log-dir out".split()]),
    "BERT's checkpoint, resumed": Target(
        [f"bert/iter_0000001/{name}" for name in _CHECKPOINT], "pretrain_bert_ltd.py",
        [*BERT, *"--load bert --log-dir out".split()], _LOGGED, "bert/iter_0000001"),
    "ViT's checkpoint, resumed": Target(
        [f"vit/iter_0000001/{name}" for name in _CHECKPOINT], "finetune_vit_ltd.py",
        [*VIT, *"--load vit --log-dir out".split()], _LOGGED, "vit/iter_0000001"),
    "Hugging Face, generating": Target(
        ["hf/config.json", "hf/model.safetensors", "hf/generation_config.json"], f"{_TOOLS}generate_text.py",
        "--load hf --prompt the --num-tokens-to-generate 8 --device cpu --tokenizer-type ByteTokenizer".split()),
    "Hugging Face, imported": Target(
        ["hf/config.json", "hf/model.safetensors"], f"{_TOOLS}import_hf.py",
        "--load hf --save out --tokenizer-type ByteTokenizer".split()),
    "Hugging Face, finetuned": Target(
        ["hf/config.json", "hf/model.safetensors"], "pretrain_gpt_ltd.py",
        [*GPT, *"--load hf --finetune --log-dir out --train-iters 2".split()]),
    "Megatron-LM's checkpoint, imported": Target(
        _THEIRS, f"{_TOOLS}import_hf.py", "--load theirs --save out --tokenizer-type ByteTokenizer".split(), _IMPORTED),
    "Megatron-LM's checkpoint, finetuned": Target(
        _THEIRS, "pretrain_gpt_ltd.py", [*GPT, *"--load theirs --finetune --openai-gelu --log-dir out".split()],
        _LOGGED),
    "data of tasks, evaluated": Target(
        ["tasks/*/*"], f"{_TOOLS}evaluate.py", ["--load", "last", *TASKS], needs="lm_eval"),
    "a published task, prepared": Target(
        ["published/*"], f"{_TOOLS}prepare_tasks.py", "--task piqa --validation published/valid.jsonl "
        "published/valid-labels.lst --output-dir out".split(), needs="lm_eval"),
    "scores, compared": Target(
        _SCORES, f"{_TOOLS}compare_runs.py", "--results scores more_scores".split(), needs="lm_eval"),
    "scores, reported": Target(
        _SCORES, f"{_TOOLS}report.py", "--run run --scores scores more_scores --output out.html".split(),
        needs="lm_eval"),
    "settings": Target(
        ["settings.yaml"], "pretrain_gpt_ltd.py", [*GPT, *"--config settings.yaml --log-dir out".split()]),
}  # fmt: skip


def target_of(number: int) -> str:
    """The name of the target of a trial."""
    return list(TARGETS)[number % len(TARGETS)]


class Corruption:
    """See the module."""

    def __init__(self, material: Path) -> None:
        self._material, self._undisturbed = material, Undisturbed(material, "undamaged files")

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        name = target_of(number)
        target = TARGETS[name]
        if target.needs is not None and importlib.util.find_spec(target.needs) is None:
            return Trial(
                "corruption", number, name, target.script, "", f"skipped: {target.needs} is not installed", 0.0
            )
        whole = self._undisturbed.result_of(name, target.command)
        copy_of(self._material, folder)
        paths = sorted(path for pattern in target.patterns for path in folder.glob(pattern))
        path, kind = draw.choice(paths), draw.choice([*CHANGES, *CHANGES, *KINDS])
        damage(path, kind, draw)
        sealed = target.sealed is not None and kind in CHANGES and path.name != "manifest.json" and draw.random() < 0.5
        if sealed:
            _seal(folder / str(target.sealed))
        ending = target.command.run(folder)
        problem = problem_of(ending, may_stop=True)
        if not problem and ending.status == 0 and not sealed and target.command.result(folder, ending) != whole:
            problem = "another result, without a word"
        what = f"{path.relative_to(folder)}: {kind}{', with a new manifest' if sealed else ''}; {target.script}"
        return Trial("corruption", number, name, what, str(ending), problem, ending.seconds)


def _seal(checkpoint: Path) -> None:
    """Write a new manifest, so that the damage is not found by its checksums."""
    names = checkpoint_files.file_names(checkpoint)
    checkpoint_files.write_manifest(checkpoint, checkpoint_files.checksums(checkpoint, names))
