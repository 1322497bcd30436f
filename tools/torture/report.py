"""The table of series of trials, one for each seed: tried, right, wrong, and how to repeat each that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.ltd.format import count_of, markdown_table
from megatron.ltd.versions import circumstances

from .config import CAMPAIGNS
from .trials import Trial

_HEADER = ("campaign", "what", "tried", "right", "wrong", "skipped", "minutes")
_TITLE = """# Torture: what was tried to break the commands

Right is a command that works, or that ends with one line and exit status 2, in bounded time and memory, without a
traceback; and for what is loaded or resumed, a result equal to the undisturbed one. What each campaign tries:
"""


def to_json(trials: Sequence[Trial], seed: int, commands: Sequence[str], mended: Sequence[str] = ()) -> dict[str, Any]:
    """One series: counts by campaign and kind, and each wrong trial. ``mended``: problems from before a mend."""
    kinds = sorted({(trial.campaign, trial.kind) for trial in trials})
    return {
        "commands": list(commands),
        "seed": seed,
        **circumstances("torch", "megatron-core"),
        "rows": [
            _row(name, kind, [trial for trial in trials if (trial.campaign, trial.kind) == (name, kind)])
            for name, kind in kinds
        ],
        "kills": _kills(trials),
        "mended": list(mended),
        "wrong": [
            {
                "campaign": trial.campaign,
                "number": trial.number,
                "seed": seed,
                "problem": trial.problem,
                "what": trial.what,
            }
            for trial in trials
            if trial.is_wrong
        ],
    }


def _row(name: str, kind: str, trials: Sequence[Trial]) -> dict[str, Any]:
    skipped = [trial.problem for trial in trials if trial.is_skipped]
    right = sum(trial.is_right for trial in trials)
    return {
        "campaign": name,
        "kind": kind,
        "tried": len(trials) - len(skipped),
        "right": right,
        "wrong": len(trials) - len(skipped) - right,
        "skipped": len(skipped),
        "why skipped": skipped[0].removeprefix("skipped: ") if skipped else "",
        "seconds": round(sum(trial.seconds for trial in trials), 1),
    }


def _kills(trials: Sequence[Trial]) -> dict[str, Any]:
    """The moments of all kills and signals, and what they cost."""
    facts = [trial.facts for trial in trials if trial.campaign == "kills"]
    moments = [moment for fact in facts for moment in fact.get("moments", ())]
    return {
        "chains": len(facts),
        **{moment: moments.count(moment) for moment in sorted(set(moments))},
        "seconds lost": round(sum(fact.get("seconds lost", 0.0) for fact in facts), 1),
    }


def table_rows(reports: Sequence[Mapping[str, Any]], *, by_kind: bool) -> list[list[str]]:
    """Rows of the table over all series: one for each campaign, or for each kind within it."""
    rows = []
    for name in CAMPAIGNS:
        found = [row for row in _all(reports, "rows") if row["campaign"] == name]
        kinds = sorted({row["kind"] for row in found})
        by = [[row for row in found if row["kind"] == kind] for kind in kinds]
        groups = by if by_kind else [found] if found else []
        for group in groups:
            figures = [f"{sum(row[column] for row in group):,}" for column in ("tried", "right", "wrong", "skipped")]
            what = group[0]["kind"] if by_kind else CAMPAIGNS[name]
            rows.append([name, what, *figures, f"{sum(row['seconds'] for row in group) / 60:.1f}"])
    return rows


def to_markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """The page: totals, kinds, kills, what is wrong, and the circumstances of each series."""
    mended = [" ".join(problem.split())[:100] for problem in _all(reports, "mended")]
    skipped = sorted({(row["kind"], row["why skipped"]) for row in _all(reports, "rows") if row["skipped"]})
    wrong = [[f"`{_repeat(trial)}`", trial["problem"], f"`{trial['what'][:200]}`"] for trial in _all(reports, "wrong")]
    kills: Counter[str] = Counter()
    for report in reports:
        kills.update(report["kills"])
    chains = kills.pop("chains", 0)
    kills.pop("seconds lost", None)
    moments = [f"{count} {name}" for name, count in sorted(kills.items())]
    parts = [
        _TITLE,
        markdown_table(table_rows(reports, by_kind=False), _HEADER, num_labels=2),
        "",
        *(line for report in reports for line in _circumstances(report)),
        f"- {kills.total()} kills and signals in {chains} chains of runs: {', '.join(moments) or 'none'}",
        *([f"- right since a mend: {count_of(len(mended), 'trial')} ({'; '.join(mended)})"] if mended else []),
        *(f"- skipped: {kind}: {why}" for kind, why in skipped),
        "",
        "## By kind",
        "",
        markdown_table(table_rows(reports, by_kind=True), _HEADER, num_labels=2),
        "",
        "## Wrong",
        "",
        markdown_table(wrong, ("repeat with", "what is wrong", "what was done"), num_labels=3) if wrong else "None.",
    ]
    return "\n".join(parts) + "\n"


def _all(reports: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return [entry for report in reports for entry in report[key]]


def _circumstances(report: Mapping[str, Any]) -> list[str]:
    return [
        *(f"- command: `{command}`" for command in report["commands"]),
        f"- {report['date']}; {report['machine']}; {report['versions']}; load average {report['load average']}",
    ]


def _repeat(trial: Mapping[str, Any]) -> str:
    return f"python tools/torture.py --campaign {trial['campaign']} --seed {trial['seed']} --trial {trial['number']}"
