"""Pretrain a small BERT on books with every method, finetune each on labelled sentences, and compare.

    python tools/benchmark/bert.py --data ../shared/data/gutenberg \\
        --labelled ../shared/data/sentence_polarity/sentence_polarity.zip

Trains a WordPiece tokenizer, encodes the books with the end of each held out, runs pretrain_bert_ltd.py for every
variant and finetune_bert_ltd.py from each, and trains a bag-of-words logistic regression as a baseline. Ctrl-C stops
it, and the same command resumes it. Writes the report to PREFIX.md and PREFIX.json.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_text.baseline import bag_of_words, token_frequencies
from bert_text.data import Facts, prepare
from bert_text.recipe import FULL, TINY, VARIANTS, Recipe, finetuning, pretraining
from bert_text.report import to_markdown
from common.corpus import REPOSITORY
from common.page import about, check_installed, facts, write_json
from common.runs import RunResult, locked, read_result, run_all
from common.spec import RunSpec

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.flags.ranges import SEED
from megatron.ltd.reports.metrics import read_history

_SHARED = REPOSITORY.parent / "shared" / "data"


@dataclass(frozen=True)
class BertConfig(Settings):
    """comparison of methods on BERT"""

    data: str = flag(f"{_SHARED / 'gutenberg'}", metavar="DIR", help="folder of Project Gutenberg books (.txt)")
    labelled: str = flag(
        f"{_SHARED / 'sentence_polarity' / 'sentence_polarity.zip'}", metavar="FILE", help="sentence_polarity.zip"
    )
    work_dir: str = flag("runs/bert", metavar="DIR", help="where data, runs and checkpoints are kept")
    output_prefix: str | None = flag(
        None, metavar="PREFIX", help="writes PREFIX.md and PREFIX.json (default: report in --work-dir)"
    )
    seeds: tuple[int, ...] = flag((1,), range=SEED, metavar="N", help="seeds of every variant")
    jobs: int = flag(2, metavar="N", help="runs at a time, one thread each")
    tiny: bool = flag(False, help="toy models, to test the benchmark in seconds a run; use another --work-dir")
    reading: str | None = flag(None, metavar="TEXT", help="first paragraph of the report")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give one or more, each once")

    @property
    def recipe(self) -> Recipe:
        """The model sizes and training settings of the comparison."""
        return TINY if self.tiny else FULL


def main() -> None:
    """Read the flags, prepare the data, pretrain, finetune, and write the report."""
    (config,) = read_command(__doc__, BertConfig)
    check_installed("sklearn")
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
    """Refuse a folder that contains another comparison; return the description of this one, to be stored there."""
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
    data: Facts,
) -> None:
    """Write PREFIX.md and PREFIX.json, and print the page."""
    first_losses = {spec.variant: read_history(spec.folder, spec.name).steps[0]["loss"] for spec in reversed(specs)}
    named = _facts(config, results, baseline, data)
    page = to_markdown(results, baseline, first_losses, config.reading, facts(named))
    prefix.with_name(f"{prefix.name}.md").write_text(page, encoding="utf-8")
    record = {
        "reading": config.reading,
        "facts": named,
        "recipe": dataclasses.asdict(config.recipe),
        "data": dataclasses.asdict(data),
        "baselines": baseline,
        "first_losses": first_losses,
        "runs": [dataclasses.asdict(result) for result in results],
    }
    write_json(prefix.with_name(f"{prefix.name}.json"), record)
    print(page)


def _facts(config: BertConfig, results: Sequence[RunResult], baseline: dict[str, float], data: Facts) -> dict[str, str]:
    recipe = config.recipe
    methods = {variant: shlex.join(recipe.method_flags(variant)) for variant in VARIANTS}
    return about(
        "bert.py",
        without="--reading",
        versions=", ".join(f"{name} {value}" for name, value in results[0].versions.items())
        + f"; one thread a run, {config.jobs} at a time",
        data=f"{', '.join(data.books)}, the end of each held out; sentence_polarity, {data.labelled_train:,} sentences "
        f"for training and {data.labelled_valid:,} held out; sha256 `{data.sha256}`",
        model=f"`{recipe.model}`, WordPiece vocabulary of {recipe.vocab_size}",
        pretraining=f"`{recipe.pretraining}`",
        finetuning=f"`{recipe.finetuning}`",
    ) | {
        **{variant: f"`{flags}`" for variant, flags in methods.items() if flags},
        "loss": "the masked tokens' plus that of sentence order; held-out figures keep every token and run every layer",
        "token frequencies": f"guesses by these alone have a held-out loss of {baseline['masked_lm_loss']:.3f}",
        "CPU seconds": "of the whole process",
    }


if __name__ == "__main__":
    run_command(main)
