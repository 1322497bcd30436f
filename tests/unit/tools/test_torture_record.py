"""What ``tools/torture.py`` keeps: the journal, the trials that a further start makes, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.end_to_end.tools import tool_status
from tests.support_errors import assert_refused, refused
from tests.unit.tools.test_torture import TRIAL
from tools.torture.campaigns.corruption import TARGETS, target_of
from tools.torture.config import CAMPAIGNS, TortureConfig
from tools.torture.drive import check_targets, is_chosen, remove_all_of
from tools.torture.report import to_json, to_markdown
from tools.torture.trials import Journal, Trial


def test_a_second_start_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.start(1, "torture")
    journal.start(1, "torture")
    journal.add(1, TRIAL)
    journal.add(2, TRIAL)
    journal.add(1, replace(TRIAL, number=1, problem="wrong"))
    journal.add(1, replace(TRIAL, number=1))
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"seed": 1, "campai')
    assert Journal(tmp_path / "j.jsonl").read(1) == [replace(TRIAL, number=1), TRIAL]
    assert (Journal(tmp_path / "j.jsonl").mended(1), Journal(tmp_path / "j.jsonl").mended(2)) == (["wrong"], [])
    assert (Journal(tmp_path / "j.jsonl").starts(1), Journal(tmp_path / "j.jsonl").starts(2)) == (["torture"], [])


def test_only_some_targets() -> None:
    config = TortureConfig(campaign=("corruption",), target=("a published", "settings"))
    kinds = sorted(target_of(number) for number in range(len(TARGETS)) if is_chosen(config, number))
    assert kinds == ["a published task, prepared", "settings"]
    assert all(is_chosen(TortureConfig(), number) for number in range(len(TARGETS)))
    with refused("--target nothing"):
        check_targets(TortureConfig(campaign=("corruption",), target=("nothing",)))


def test_the_files_of_another_trial_stay(tmp_path: Path) -> None:
    """Trial 4 ends while another worker makes trial 43."""
    kept = [tmp_path / name for name in ("disks-43.said", "disks-40-outer.out", "disks-5")]
    gone = [tmp_path / name for name in ("disks-4.said", "disks-4-outer.out", "disks-4.answer")]
    for path in (*kept, *gone):
        path.touch()
    (tmp_path / "disks-4" / "inside").mkdir(parents=True)
    remove_all_of(tmp_path / "disks-4")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_the_page(tmp_path: Path) -> None:
    kills = Trial("kills", 0, "two ranks", "x", "", "", 60.0, {"moments": ["kill -9 inside a save"] * 2})
    trials = [
        TRIAL,
        replace(TRIAL, number=4, problem="a | b"),
        kills,
        replace(TRIAL, number=5, problem="skipped: root"),
    ]
    one = to_json(trials, 9, ["python tools/torture.py"], ["a NaN"])
    text = to_markdown([one, to_json([replace(kills, number=1)], 10, [])])
    assert f"| disks | {CAMPAIGNS['disks']} | 2 | 1 | 1 | 1 | 0.1 |" in text
    assert f"| kills | {CAMPAIGNS['kills']} | 2 | 2 | 0 | 0 | 2.0 |" in text
    assert "- right since a mend: 1 trial (a NaN)" in text
    assert (
        "- 4 kills and signals in 2 chains of runs: 4 kill -9 inside a save" in text and "- skipped: full: root" in text
    )
    assert "| `python tools/torture.py --campaign disks --seed 9 --trial 4` | a \\| b | `training` |" in text


@pytest.mark.parametrize("content", ["{", '{"rows": []}', '[{"seed": 1}]', "[1]"])
def test_a_page_of_something_else_is_not_added_to(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    monkeypatch.syspath_prepend(str(repository / "tools"))
    status, said = tool_status("torture.py", "--campaign", "disks", "--output", tmp_path / "x")
    assert_refused(status, said, f"--output {tmp_path / 'x'}")
    assert (tmp_path / "x.json").read_text() == content


def test_the_committed_page_agrees_with_its_figures(repository: Path) -> None:
    prefix = repository / "tools" / "benchmark" / "results" / "torture"
    assert prefix.with_suffix(".md").read_text() == to_markdown(json.loads(prefix.with_suffix(".json").read_text()))
