"""Evidence of where each method pays: training runs of many arms on real text, and a report.

    python tools/benchmark/evidence.py --data ../shared/data/gutenberg            # the plan, or what is missing of it
    python tools/benchmark/evidence.py --data ../shared/data/gutenberg --quick    # the same with toy models, in minutes

The plan (tools/benchmark/evidence/plan.yaml) names settings and arms, which are small files of flags. Runs without a
record are executed, several at a time on one thread each, about five CPU-minutes a run, and their results are added to
PREFIX.jsonl. Ctrl-C stops the runs, and the same command resumes them. Writes the report to PREFIX.md and its figure to
PREFIX.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.corpus import REPOSITORY, CorpusFacts, Encoding, prepare
from common.page import check_installed
from common.runs import locked, read_result, run_all
from common.spec import RunSpec
from evidence.plan import PLAN, READING, Run, planned_runs, quick
from evidence.plots import draw
from evidence.records import add_record, read_records
from evidence.report import to_markdown
from evidence.summary import by_setting

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import Settings, flag, read_command

_SAVE_STEPS = 300


@dataclass(frozen=True)
class EvidenceConfig(Settings):
    """evidence"""

    data: str = flag(
        f"{REPOSITORY.parent / 'shared' / 'data' / 'gutenberg'}",
        metavar="DIR",
        help="folder of Project Gutenberg books (.txt)",
    )
    plan: str = flag(f"{PLAN}", metavar="FILE", help="which runs there are")
    part: tuple[str, ...] = flag((), metavar="P", help="parts of the plan to run (default: all)")
    quick: bool = flag(False, help="toy models of every arm, one seed each: shows that everything runs, in minutes")
    work_dir: str | None = flag(
        None, metavar="DIR", help="where data and runs are kept (default: runs/evidence, or runs/evidence-quick)"
    )
    output_prefix: str | None = flag(
        None,
        metavar="PREFIX",
        help="writes PREFIX.jsonl, PREFIX.md and PREFIX.png (default: tools/benchmark/results/evidence, or evidence in "
        "--work-dir with --quick)",
    )
    jobs: int = flag(2, metavar="N", help="runs at a time, one thread each")
    report_only: bool = flag(False, help="run nothing: report on the records")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_prefix is not None and not self.prefix.parent.is_dir():
            raise UserError(f"--output-prefix {self.output_prefix}: there is no folder {self.prefix.parent}; make it")

    @property
    def work(self) -> Path:
        """The folder for data and runs."""
        return Path(self.work_dir or f"runs/evidence{'-quick' * self.quick}").resolve()

    @property
    def prefix(self) -> Path:
        """The path of records, report and figure, without their suffixes."""
        if self.output_prefix is not None:
            return Path(self.output_prefix)
        return self.work / "evidence" if self.quick else REPOSITORY / "tools/benchmark/results/evidence"

    def runs(self) -> list[Run]:
        """The runs of the plan, without duplicates."""
        planned = planned_runs(Path(self.plan), self.part)
        return list({run.key: run for run in (quick(planned) if self.quick else planned)}.values())


def main() -> None:
    """Read the flags, execute the runs without a record, and write the report."""
    (config,) = read_command(__doc__, EvidenceConfig)
    check_installed("matplotlib", "scipy")
    planned = config.runs()
    if config.report_only:
        report(config, planned)
        return
    with locked(config.work) as lock:
        try:
            make_runs(config, planned, lock)
        finally:
            report(config, planned)


def make_runs(config: EvidenceConfig, planned: Sequence[Run], lock: int) -> None:
    """Execute every run that has no record, and add its record."""
    records = config.prefix.with_name(f"{config.prefix.name}.jsonl")
    done = read_records(records)
    waiting: dict[str, tuple[Run, CorpusFacts]] = {}
    specs = []
    for run in planned:
        if run.key not in done:
            spec, facts = specification(run, config)
            waiting[run.name] = run, facts
            specs.append(spec)

    def record(spec: RunSpec) -> None:
        run, facts = waiting[spec.variant]
        result = read_result(spec)
        assert result is not None, "called with finished runs"
        add_record(records, run, result, facts.sha256)

    for spec in specs:
        if read_result(spec) is not None:  # finished by a command that ended before it wrote the record
            record(spec)
    run_all(specs, config.jobs, lock, record)


def specification(run: Run, config: EvidenceConfig) -> tuple[RunSpec, CorpusFacts]:
    """The run's specification, and facts about its data, which are made if they are missing."""
    chosen = run.setting
    encoding = Encoding(chosen.vocab_size, chosen.seq_length, chosen.batch_samples, 2 if config.quick else None)
    name = f"{chosen.corpus}-v{chosen.vocab_size or 'bytes'}-s{chosen.seq_length}-b{chosen.batch_samples}"
    source = None if chosen.corpus == "books" else chosen.corpus
    data, facts = prepare(encoding, Path(config.data), config.work / "data" / name, source)
    place = config.work / run.name
    checkpoints = f"{place / 'checkpoints'}"
    flags = (*run.flags, *data.flags(), "--eval-interval", f"{run.steps}", "--log-interval", "50")
    flags += ("--save", checkpoints, "--load", checkpoints, "--save-interval", f"{_SAVE_STEPS}", "--keep-last", "1")
    flags += ("--log-dir", f"{place}")
    return RunSpec(run.name, run.seed, run.steps, run.plan.flops(run.plan.num_steps), place, flags, run.script), facts


def report(config: EvidenceConfig, planned: Sequence[Run]) -> None:
    """Write the page and the figure from the records of the planned runs."""
    prefix = config.prefix
    found = read_records(prefix.with_name(f"{prefix.name}.jsonl"))
    records = [found[run.key] for run in planned if run.key in found]
    if not records:
        print("no run is finished: nothing to report yet")
        return
    settings = by_setting(records)
    picture = prefix.with_name(f"{prefix.name}.png")
    draw(settings, picture)
    reading = "Toy models: the figures say nothing." if config.quick else READING.read_text(encoding="utf-8")
    page = to_markdown(settings, records, reading, picture, len(planned))
    prefix.with_name(f"{prefix.name}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    run_command(main)
