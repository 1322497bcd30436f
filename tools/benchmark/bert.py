"""Pretrain a small BERT on real books with every method, finetune each on labelled sentences, and compare.

    python tools/benchmark/bert.py --data ../shared/data/gutenberg \\
        --labelled ../shared/data/sentence_polarity/sentence_polarity.zip

Trains a WordPiece vocabulary, encodes the books with the end of each held out, runs pretrain_bert_ltd.py for every
variant and then finetune_bert_ltd.py from each, and a bag-of-words logistic regression beside them. Ctrl-C stops it,
the same command goes on. Writes the report to PREFIX.md and PREFIX.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_text.baseline import bag_of_words, token_frequencies
from bert_text.data import Facts, prepare
from bert_text.recipe import FULL, TINY, VARIANTS, Recipe, finetuning, pretraining
from bert_text.report import to_markdown
from common.corpus import REPOSITORY
from common.runs import RunResult, locked, read_metrics, read_result, run_all
from common.spec import RunSpec

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import add_flags, flag, read_flags
from megatron.ltd.versions import cpu_model

_SHARED = REPOSITORY.parent / "shared" / "data"


@dataclass(frozen=True)
class BertConfig:
    """comparison of methods on BERT"""

    data: str = flag(f"{_SHARED / 'gutenberg'}", metavar="DIR", help="folder of Project Gutenberg books (.txt)")
    labelled: str = flag(
        f"{_SHARED / 'sentence_polarity' / 'sentence_polarity.zip'}", metavar="FILE", help="sentence_polarity.zip"
    )
    work_dir: str = flag("runs/bert", metavar="DIR", help="where data, runs and checkpoints are kept")
    output_prefix: str | None = flag(
        None, metavar="PREFIX", help="writes PREFIX.md and PREFIX.json (default: report in --work-dir)"
    )
    seeds: tuple[int, ...] = flag((1,), metavar="N", help="seeds; every variant runs with each")
    jobs: int = flag(2, metavar="N", help="runs at a time, one thread each")
    tiny: bool = flag(False, help="a toy size that takes seconds a run, to see that it runs; use another --work-dir")
    reading: str | None = flag(None, metavar="TEXT", help="what the figures say, for the report's first paragraph")

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: must be at least 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give one or more, each once")

    @property
    def recipe(self) -> Recipe:
        """Sizes and rates."""
        return TINY if self.tiny else FULL


def main() -> None:
    """Read the flags, prepare, pretrain, finetune, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, BertConfig)
    config = read_flags(parser.parse_args(), BertConfig)
    work = Path(config.work_dir).resolve()
    prefix = Path(config.output_prefix) if config.output_prefix is not None else work / "report"
    if config.output_prefix is not None and not prefix.parent.is_dir():
        raise UserError(f"--output-prefix {config.output_prefix}: there is no folder {prefix.parent}; make it first")
    with locked(work) as lock:
        recipe = _check_recipe(config, work)
        data, facts = prepare(config.recipe, Path(config.data), Path(config.labelled), work / "data")
        (work / "recipe.json").write_text(recipe, encoding="utf-8")
        specs = pretraining(config.recipe, data, config.seeds, work)
        run_all(specs, config.jobs, lock)
        specs += (tuned := finetuning(config.recipe, data, config.seeds, work))
        run_all(tuned, config.jobs, lock)
        results = [result for result in map(read_result, specs) if result is not None]
        baselines = bag_of_words(data) | {"masked_lm_loss": token_frequencies(data, config.recipe.vocab_size)}
        _report(config, prefix, specs, results, baselines, facts)


def _check_recipe(config: BertConfig, work: Path) -> str:
    """Refuse a folder that holds another comparison; what this one is, to be kept there."""
    path = work / "recipe.json"
    sources = {"data": f"{Path(config.data).resolve()}", "labelled": f"{Path(config.labelled).resolve()}"}
    wanted = json.dumps({**sources, **dataclasses.asdict(config.recipe)}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != wanted:
        raise UserError(f"--work-dir {config.work_dir}: holds another size or other data; give another folder")
    return wanted


def _report(
    config: BertConfig,
    prefix: Path,
    specs: Sequence[RunSpec],
    results: Sequence[RunResult],
    baseline: dict[str, float],
    facts: Facts,
) -> None:
    """Write PREFIX.md and PREFIX.json, and print the page."""
    first_losses = {spec.variant: read_metrics(spec.folder / "metrics.jsonl")[0][1]["loss"] for spec in reversed(specs)}
    frequencies = f"- Guessed by the frequencies of tokens alone, held-out text costs {baseline['masked_lm_loss']:.3f}."
    about: dict[str, Any] = {"reading": config.reading, "facts": [frequencies, *_facts(config, results, facts)]}
    page = to_markdown(results, baseline, first_losses, about)
    prefix.with_name(f"{prefix.name}.md").write_text(page, encoding="utf-8")
    record = {
        **about,
        "recipe": dataclasses.asdict(config.recipe),
        "data": dataclasses.asdict(facts),
        "baselines": baseline,
        "first_losses": first_losses,
        "runs": [dataclasses.asdict(result) for result in results],
    }
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(page)


def _facts(config: BertConfig, results: Sequence[RunResult], facts: Facts) -> list[str]:
    recipe, arguments = config.recipe, list(sys.argv[1:])
    if "--reading" in arguments:
        place = arguments.index("--reading")
        del arguments[place : place + 2]
    versions = ", ".join(f"{name} {value}" for name, value in results[0].versions.items())
    return [
        f"- Command: `{shlex.join(['python', 'tools/benchmark/bert.py', *arguments])}`, {time.strftime('%Y-%m-%d')}.",
        f"- Machine: {cpu_model()}, {os.cpu_count()} cores; {versions}; one thread a run, {config.jobs} at a time.",
        f"- Data: {', '.join(facts.books)}, the end of each held out; sentence_polarity, {facts.labelled_train:,} "
        f"sentences for training and {facts.labelled_valid:,} held out; sha256 `{facts.sha256}`.",
        f"- Model: {recipe.num_layers} layers, hidden {recipe.hidden_size}, {recipe.num_attention_heads} heads, "
        f"WordPiece vocabulary {recipe.vocab_size}; pre-norm, dropout 0.1.",
        f"- Pretraining: {recipe.train_steps} steps of {recipe.batch_samples} samples of {recipe.seq_length} tokens, "
        f"learning rate {recipe.lr:g}. Finetuning: {recipe.finetune_steps} steps of {recipe.finetune_batch_samples} "
        f"samples of {recipe.finetune_seq_length} tokens, learning rate {recipe.finetune_lr:g}. Both linear to 0, "
        "warm-up 10 %, weight decay 0.01.",
        *(
            f"- {variant}: `{shlex.join(recipe.method_flags(variant))}`."
            for variant in VARIANTS
            if recipe.method_flags(variant)
        ),
        "- The loss is the masked tokens' plus that of sentence order. Held-out figures keep every token and run every "
        "layer; CPU seconds are of the whole process.",
    ]


if __name__ == "__main__":
    run_command(main)
