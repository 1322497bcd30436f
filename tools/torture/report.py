"""The table of a series of trials: tried, right, wrong, and how to repeat each that is wrong."""

from __future__ import annotations

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
    """Counts by campaign and kind, and each wrong trial. ``mended``: problems that trials had before a mend."""
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
            {"campaign": trial.campaign, "number": trial.number, "problem": trial.problem, "what": trial.what}
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


def table_rows(report: Mapping[str, Any], *, by_kind: bool) -> list[list[str]]:
    """Rows of the table: one for each campaign, or for each kind within it."""
    rows = []
    for name in CAMPAIGNS:
        found = [row for row in report["rows"] if row["campaign"] == name]
        groups = [[row] for row in found] if by_kind else [found] if found else []
        for group in groups:
            figures = [f"{sum(row[column] for row in group):,}" for column in ("tried", "right", "wrong", "skipped")]
            what = group[0]["kind"] if by_kind else CAMPAIGNS[name]
            rows.append([name, what, *figures, f"{sum(row['seconds'] for row in group) / 60:.1f}"])
    return rows


def to_markdown(report: Mapping[str, Any]) -> str:
    """The page: totals, kinds, kills, what is wrong, and the circumstances."""
    mended = [" ".join(problem.split())[:100] for problem in report["mended"]]
    skipped = sorted({(row["kind"], row["why skipped"]) for row in report["rows"] if row["skipped"]})
    wrong = [[f"`{_repeat(report, trial)}`", trial["problem"], f"`{trial['what'][:200]}`"] for trial in report["wrong"]]
    moments = [f"{count} {name}" for name, count in report["kills"].items() if name not in ("chains", "seconds lost")]
    parts = [
        _TITLE,
        markdown_table(table_rows(report, by_kind=False), _HEADER, num_labels=2),
        "",
        *(f"- command: `{command}`" for command in report["commands"]),
        f"- {report['date']}; {report['machine']}; {report['versions']}; load average {report['load average']}",
        f"- kills and signals in {report['kills']['chains']} chains of runs: {', '.join(moments) or 'none'}",
        *([f"- right since a mend: {count_of(len(mended), 'trial')} ({'; '.join(mended)})"] if mended else []),
        *(f"- skipped: {kind}: {why}" for kind, why in skipped),
        "",
        "## By kind",
        "",
        markdown_table(table_rows(report, by_kind=True), _HEADER, num_labels=2),
        "",
        "## Wrong",
        "",
        markdown_table(wrong, ("repeat with", "what is wrong", "what was done"), num_labels=3) if wrong else "None.",
    ]
    return "\n".join(parts) + "\n"


def _repeat(report: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    return f"python tools/torture.py --campaign {trial['campaign']} --seed {report['seed']} --trial {trial['number']}"
