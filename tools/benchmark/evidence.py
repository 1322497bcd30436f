"""Evidence: where does each method pay? Runs of many arms, from small files of flags, and a report.

    python tools/benchmark/evidence.py --jobs 2

Makes the runs of tools/benchmark/evidence/plan.yaml that have no record yet, some at a time, one thread each, and adds
what they reach to the records. Ctrl-C stops it, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from evidence.plan import Run, planned_runs
from evidence.records import add_record, read_records
from real_text.corpus import REPOSITORY, CorpusFacts, prepare
from real_text.recipe import Recipe, RunData, RunSpec
from real_text.runs import locked, read_result, run_all

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import add_flags, flag, read_flags


@dataclass(frozen=True)
class EvidenceConfig:
    """evidence"""

    data: str = flag(
        f"{REPOSITORY.parent / 'shared' / 'data' / 'gutenberg'}",
        metavar="DIR",
        help="folder of Project Gutenberg books (.txt)",
    )
    part: tuple[str, ...] = flag((), metavar="P", help="parts of the plan to run (default: all)")
    work_dir: str = flag("runs/evidence", metavar="DIR", help="where data, runs and checkpoints are kept")
    records: str = flag(
        f"{REPOSITORY / 'tools/benchmark/results/evidence.jsonl'}", metavar="FILE", help="records of finished runs"
    )
    jobs: int = flag(2, metavar="N", help="runs at a time, one thread each")

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: must be at least 1")


def main() -> None:
    """Read the flags, prepare, run, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, EvidenceConfig)
    config = read_flags(parser.parse_args(), EvidenceConfig)
    work, records = Path(config.work_dir).resolve(), Path(config.records)
    with locked(work) as lock:
        done = read_records(records)
        runs = {run.key: run for run in planned_runs(config.part)}
        waiting = {key: run for key, run in runs.items() if key not in done}
        specs: dict[str, tuple[Run, CorpusFacts]] = {}
        jobs = []
        for run in waiting.values():
            spec, facts = specification(run, Path(config.data), work)
            specs[spec.variant] = run, facts
            jobs.append(spec)

        def record(spec: RunSpec) -> None:
            run, facts = specs[spec.variant]
            result = read_result(spec)
            assert result is not None
            add_record(records, run, result, facts.sha256)

        for spec in [spec for spec in jobs if read_result(spec) is not None]:
            record(spec)
        run_all(jobs, config.jobs, lock, record)


def specification(run: Run, source: Path, work: Path) -> tuple[RunSpec, CorpusFacts]:
    """The run's command line, and what it reads, which is made where it is missing."""
    data, facts = _data(run, source, work)
    place = work / run.name
    flags = (*run.flags, *data.flags(), "--eval-interval", f"{run.steps}", "--log-interval", "50")
    checkpoints = f"{place / 'checkpoints'}"
    flags += ("--save", checkpoints, "--load", checkpoints, "--save-interval", "300", "--keep-last", "1")
    flags += ("--log-dir", f"{place}")
    return RunSpec(run.name, run.seed, run.steps, run.plan.flops(run.plan.num_steps), place, flags), facts


def _data(run: Run, source: Path, work: Path) -> tuple[RunData, CorpusFacts]:
    chosen = run.setting
    recipe = dataclasses.replace(
        Recipe(), vocab_size=chosen.vocab_size, seq_length=chosen.seq_length, batch_samples=chosen.batch_samples
    )
    name = f"{chosen.corpus}-v{chosen.vocab_size}-b{chosen.seq_length * chosen.batch_samples}-s{chosen.seq_length}"
    return prepare(recipe, source, work / "data" / name)


if __name__ == "__main__":
    run_command(main)
