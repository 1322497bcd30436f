"""The evidence benchmark from books to page and figure, with tiny models."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from evidence.plan import PLAN, planned_runs
from evidence.records import read_records
from evidence.report import to_markdown
from evidence.summary import by_setting

from tests.support_tasks import write_task_data
from tests.unit.tools.common.made_up import book
from tests.unit.tools.evidence.made_up import dense, dense_loss, record
from tests.unit.tools.tables import table_rows
from tests.warm.start import warm_python

TOY_PLAN = """\
- {part: A, setting: s256, arms: [dense, single, blocks16, dense@blocks16, length-warmup@blocks16], seeds: [1, 2]}
- {part: C, setting: gpt2, arms: [dense], seeds: [1]}
"""


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books made from Python's help topics."""
    folder, names = tmp_path_factory.mktemp("books"), sorted(topics)
    for number in (0, 1):
        text = "\n\n".join(topics[name] for name in names[number::2])
        (folder / f"{number}.txt").write_text(book(text), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_quick_run_from_books_to_page(repository: Path, tmp_path: Path, books: Path) -> None:
    """Each run gets a record, then a page and a figure are written; runs with a record are not repeated."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(TOY_PLAN)
    flags = ("--quick", "--data", books, "--plan", plan, "--work-dir", tmp_path / "work")
    said = run(repository, "evidence.py", *flags, "--part", "A")
    assert said.count("finished ") == 5
    records = read_records(tmp_path / "work/evidence.jsonl")
    by_arm = {record.arm: record for record in records.values()}
    assert by_arm.keys() == {"dense", "single", "blocks16", "dense@blocks16", "length-warmup@blocks16"}
    assert by_arm["single"].flops == by_arm["blocks16"].flops < by_arm["dense"].flops
    assert by_arm["single"].loss != by_arm["blocks16"].loss and 4.0 < by_arm["dense"].loss < 7.0
    page = (tmp_path / "work/evidence.md").read_text()
    assert f"| blocks16 | 0.003 | 1 | {by_arm['blocks16'].loss:.4f} |" in page and "5 of 5 planned runs" in page
    assert (tmp_path / "work/evidence.png").read_bytes().startswith(b"\x89PNG")

    said = run(repository, "evidence.py", *flags, "--part", "A", "--report-only")
    assert "finished " not in said and read_records(tmp_path / "work/evidence.jsonl") == records
    refusal = run(repository, "evidence.py", *flags, "--part", "Z", status=2)
    assert "--part Z: the plan has no such part; give some of A C" in refusal and refusal.count("\n") == 1

    assert "--work-dir" in downstream(repository, tmp_path, plan, "--setting", "s1024", status=2)
    page = downstream(repository, tmp_path, plan, "--setting", "s256", "--limit", "2")
    scored = {row[0]: row for row in table_rows(page)}
    assert scored["dense"][1:3] == ["1", f"{by_arm['dense'].loss:.4f}"] and len(scored["dense"]) == 6
    assert scored["single"][1] == f"{by_arm['single'].loss - by_arm['dense'].loss:+.4f}"  # of the later table
    assert page.count("It was a dark evening") == 3 and "| guessing |  |  |  | 0% | 50% |" in page


def run(repository: Path, script: str, *flags: object, status: int = 0) -> str:
    """What a benchmark prints that ends with ``status``."""
    command = [warm_python(), repository / "tools/benchmark" / script, *flags]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def downstream(repository: Path, folder: Path, plan: Path, *more: object, status: int = 0) -> str:
    """What ``downstream.py`` prints about the arms dense and single of the quick run in ``folder``."""
    plan.write_text("- {part: A, setting: s256, arms: [dense, single], seeds: [1]}")
    if not (folder / "tasks").exists():
        write_task_data(folder / "tasks")
    flags = ["--plan", plan, "--new-tokens", "4", "--work-dir", folder / "work"]
    flags += ["--records", folder / "work/evidence.jsonl", "--task-data", folder / "tasks"]
    return run(repository, "downstream.py", *flags, "--tasks", "lambada_openai", "boolq", *more, status=status)


def test_the_page_says_which_methods_pay_off_and_how_certain_that_is() -> None:
    shares = ((1.0, "dense"), (0.8, "dense@blocks16"), (0.5, "dense*0.5"))
    records = [dense(seed, share, name) for seed in (1, 2, 3) for share, name in shares]
    for seed, noise in ((1, 0.0), (2, 1e-3), (3, -1e-3)):
        records.append(record("blocks16", seed, dense_loss(0.95, seed) + noise, cost=0.8))
        records.append(record("single", seed, dense_loss(0.7, seed) - noise, cost=0.8))
        records.append(record("constant", seed, dense_loss(0.8, seed) + 40 * noise, cost=0.8))
    page = to_markdown(by_setting(records), records, "Read.", Path("evidence.png"), 12)
    pays = {row[0]: row[-1] for row in table_rows(page)}
    assert pays["blocks16"] == "yes" and pays["single"] == "no" and pays["constant"].endswith("within the noise")
    assert "| blocks16 - single | -0.1527 ± 0.0012 | < 0.0001 |" in page


def test_the_committed_page_agrees_with_the_records(repository: Path) -> None:
    """The page made again from the committed records is equal to the committed one."""
    results = repository / "tools/benchmark/results"
    found = read_records(results / "evidence.jsonl")
    planned = list({run.key: run for run in planned_runs(PLAN)}.values())
    records = [found[run.key] for run in planned if run.key in found]
    reading = (repository / "tools/benchmark/evidence/reading.md").read_text(encoding="utf-8")
    page = to_markdown(by_setting(records), records, reading, Path("evidence.png"), len(planned))
    assert page == (results / "evidence.md").read_text(encoding="utf-8")
