"""Compare methods with dense training on real books: random-LTD at equal steps and equal FLOPs, or every method.

    python tools/benchmark/real_text.py --data ../shared/data/gutenberg --jobs 2
    python tools/benchmark/real_text.py --data ../shared/data/gutenberg --compare methods --work-dir runs/methods

Trains a small vocabulary, encodes the books with the end of each held out, and runs pretrain_gpt_ltd.py for every
variant and seed. By default: dense, random-LTD at equal steps, and a shorter dense run planned for random-LTD's FLOPs,
about eight CPU-minutes a run. With --compare methods: every method at equal steps, about five. Ctrl-C stops it, the
same command goes on. Writes the report to PREFIX.md and PREFIX.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_text.corpus import REPOSITORY, CorpusFacts, prepare
from real_text.recipe import COMPARISONS, TINY, Comparison, Recipe, RunData, RunSpec, plan_runs
from real_text.report import summarize, to_json, to_markdown
from real_text.runs import locked, read_result, run_all

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import add_flags, flag, read_flags
from megatron.ltd.versions import cpu_model


@dataclass(frozen=True)
class RealTextConfig:
    """comparison on real text"""

    compare: str = flag(
        "equal-flops", choices=tuple(COMPARISONS), help="random-LTD at equal FLOPs too, or every method at equal steps"
    )
    data: str = flag(
        f"{REPOSITORY.parent / 'shared' / 'data' / 'gutenberg'}",
        metavar="DIR",
        help="folder of Project Gutenberg books (.txt)",
    )
    work_dir: str = flag("runs/real_text", metavar="DIR", help="where data, runs and checkpoints are kept")
    output_prefix: str | None = flag(
        None, metavar="PREFIX", help="writes PREFIX.md and PREFIX.json (default: report in --work-dir)"
    )
    seeds: tuple[int, ...] = flag(
        (), metavar="N", help="seeds; every variant runs with each (default: 1 2 3, of methods 1 2)"
    )
    jobs: int = flag(2, metavar="N", help="runs at a time, one thread each")
    tiny: bool = flag(False, help="a toy size that takes seconds, to see that it runs; use another --work-dir")
    report_only: bool = flag(False, help="run nothing: report on the runs that are finished")
    reading: str | None = flag(None, metavar="TEXT", help="what the figures say, for the report's first paragraph")

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: must be at least 1")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: a seed is given twice; give each once")

    @property
    def comparison(self) -> Comparison:
        """What is compared."""
        return COMPARISONS[self.compare]

    @property
    def recipe(self) -> Recipe:
        """Sizes and rates: the comparison's, or a toy's."""
        return TINY if self.tiny else self.comparison.full

    def plan(self, data: RunData, work: Path) -> list[RunSpec]:
        """Every run of the comparison."""
        return plan_runs(self.recipe, self.comparison.variants, data, self.seeds or self.comparison.seeds, work)

    @property
    def report_prefix(self) -> Path:
        """Where the report goes, without its suffix."""
        return Path(self.output_prefix) if self.output_prefix is not None else Path(self.work_dir) / "report"


def main() -> None:
    """Read the flags, prepare, run, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, RealTextConfig)
    config = read_flags(parser.parse_args(), RealTextConfig)
    work = Path(config.work_dir).resolve()
    if config.output_prefix is not None and not config.report_prefix.parent.is_dir():
        raise UserError(
            f"--output-prefix {config.output_prefix}: there is no folder {config.report_prefix.parent}; make it first"
        )
    if config.report_only:
        if not (work / "data" / "corpus.json").exists():
            raise UserError(
                f"--work-dir {config.work_dir}: holds no comparison yet; run it without --report-only first"
            )
        _check_recipe(config, work)
        data, corpus = prepare(config.recipe, Path(config.data), work / "data")
        _report(config, config.plan(data, work), corpus)
        return
    with locked(work) as lock:
        recipe = _check_recipe(config, work)
        data, corpus = prepare(config.recipe, Path(config.data), work / "data")
        (work / "recipe.json").write_text(recipe, encoding="utf-8")
        specs = config.plan(data, work)
        try:
            run_all(specs, config.jobs, lock)
        finally:
            _report(config, specs, corpus)


def _check_recipe(config: RealTextConfig, work: Path) -> str:
    """Refuse a folder that holds another comparison; what this one is, to be kept there."""
    path = work / "recipe.json"
    what = {"compare": config.compare, "data": f"{Path(config.data).resolve()}"}
    wanted = json.dumps({**what, **dataclasses.asdict(config.recipe)}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != wanted:
        raise UserError(
            f"--work-dir {config.work_dir}: holds another --compare, another size or other --data; give another folder"
        )
    return wanted


def _report(config: RealTextConfig, specs: list[RunSpec], corpus: CorpusFacts) -> None:
    """Write PREFIX.md and PREFIX.json from the finished runs, and print the page."""
    results = [result for result in map(read_result, specs) if result is not None]
    if not results:
        print("no run is finished: nothing to report yet")
        return
    about: dict[str, Any] = {
        "title": config.comparison.title,
        "reading": config.reading,
        "command": shlex.join(["python", "tools/benchmark/real_text.py", *_shown_arguments()]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": results[0].versions,
        "jobs": config.jobs,
        "recipe": dataclasses.asdict(config.recipe),
        "method_flags": {variant: config.recipe.method_flags(variant) for variant in config.comparison.variants},
        "corpus": dataclasses.asdict(corpus),
        "runs_planned": len(specs),
        "resumed_runs": [f"{result.variant} seed {result.seed}" for result in results if result.starts > 1],
    }
    summary = summarize(results)
    page = to_markdown(summary, results, about)
    prefix = config.report_prefix
    prefix.with_name(f"{prefix.name}.md").write_text(page, encoding="utf-8")
    record = json.dumps(to_json(summary, results, about), indent=1)
    prefix.with_name(f"{prefix.name}.json").write_text(record + "\n", encoding="utf-8")
    print(page)


def _shown_arguments() -> list[str]:
    """The command line for the report, without what only dresses the report itself."""
    arguments, shown = sys.argv[1:], []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--reading":
            arguments.pop(0)
        elif argument != "--report-only" and not argument.startswith("--reading="):
            shown.append(argument)
    return shown


def machine() -> str:
    """The processor's name and number of cores."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    run_command(main)
