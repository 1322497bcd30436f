"""Notes on what is unusual about a run, which the reader should know before the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron.ltd.format import format_ranges
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.settings import settings

_NAMED = 8
_OF_ONE_START = ("start", "nothing")
"""Flags that affect only these may change on resume without a note."""


def notes(history: RunHistory) -> list[str]:
    """One or two sentences per note; empty if nothing is unusual."""
    return [*_ending(history), *_starts(history), *_not_finite(history), *_missing(history)]


def _ending(history: RunHistory) -> list[str]:
    last, num_steps = history.steps[-1], history.about.get("num_steps")
    if num_steps is None:
        return ["The log has no run line, so the flags, versions and length of the run are not known."]
    if last["iteration"] < num_steps:
        return [f"Not finished: the log ends at step {last['iteration']:,} of {num_steps:,}."]
    if last.get("kept_tokens", 0) < last.get("seq_length", 0):
        return [
            f"The last step still dropped tokens (it kept {last['kept_tokens']} of {last['seq_length']}): the run did "
            "not end on the dense model."
        ]
    return []


def _starts(history: RunHistory) -> list[str]:
    resumes = [start for start in history.starts[1:] if not _is_over(start)]
    if not resumes:
        return []
    listed = [f"at step {start['resumed_at']:,} ({start.get('time', 'time unknown')})" for start in resumes]
    found = [f"Resumed {_times(len(resumes))}: {_listed(listed)}."]
    for before, after in zip([history.starts[0], *resumes], resumes, strict=False):
        changes = [*_changed_flags(before, after), *_changed_versions(before, after)]
        if changes:
            found.append(f"Resumed at step {after['resumed_at']:,} with other settings: {_listed(changes)}.")
    return found


def _is_over(start: Mapping[str, Any]) -> bool:
    """Whether a finished run was only started again."""
    return start.get("num_steps") is not None and start["resumed_at"] >= start["num_steps"]


def _changed_flags(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old = {
        setting.flag: setting.value
        for setting in settings(before.get("config", {}))
        if setting.affects not in _OF_ONE_START
    }
    return [
        f"{setting.flag} {setting.spelled(old[setting.flag])}, then {setting.spelled(setting.value)}"
        for setting in settings(after.get("config", {}))
        if setting.flag in old and old[setting.flag] != setting.value
    ]


def _changed_versions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = before.get("versions", {}), after.get("versions", {})
    return [f"{name} {old[name]}, then {value}" for name, value in new.items() if name in old and old[name] != value]


def _not_finite(history: RunHistory) -> list[str]:
    losses = [step["iteration"] for step in history.steps if step["loss"] is None]
    norms = [step["iteration"] for step in history.steps if "grad_norm" in step and step["grad_norm"] is None]
    evaluations = [line["iteration"] for line in history.validations if line["loss"] is None]
    return [
        f"{what} {_not_finite_at(iterations)}."
        for what, iterations in (
            ("The loss was", losses),
            ("The gradient norm was", [step for step in norms if step not in set(losses)]),
            ("The loss on held-out data was", evaluations),
        )
        if iterations
    ]


def _not_finite_at(iterations: Sequence[int]) -> str:
    ranges = format_ranges(iterations).split(",")
    return f"not finite {_times(len(iterations))}: at step {_listed(ranges)}"


def _missing(history: RunHistory) -> list[str]:
    first, last = history.iterations[0], history.iterations[-1]
    found = []
    if first > 1:
        found.append(
            f"The log starts at step {first:,}: FLOPs, seconds and savings are those of the steps from there on."
        )
    missing = last - first + 1 - len(history.iterations)
    if missing:
        found.append(f"{missing:,} steps are missing between the first and the last step of the log.")
    return found


def _listed(things: Sequence[str]) -> str:
    more = len(things) - _NAMED
    return ", ".join(things[:_NAMED]) + (f", and {more:,} more" if more > 0 else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
