"""Notes on what is unusual about a run, which the reader should know before the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from megatron.ltd.format import format_ranges
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.settings import settings

_MOST_LISTED = 8


def notes(history: RunHistory) -> list[str]:
    """One or two sentences per note; empty if nothing is unusual."""
    return [*_ending(history), *_resumes(history), *_not_finite(history), *_missing(history)]


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


def _resumes(history: RunHistory) -> list[str]:
    """When the run was resumed, and what changed; a finished run that was only started again is left out."""
    starts = history.starts
    resumes = [line for line in starts[1:] if line["resumed_at"] < (line.get("num_steps") or float("inf"))]
    if not resumes:
        return []
    listed = [f"at step {line['resumed_at']:,} ({line.get('time', 'time unknown')})" for line in resumes]
    found = [f"Resumed {_times(len(resumes))}: {_listed(listed)}."]
    for before, after in pairwise([starts[0], *resumes]):
        old, new = _named(before), _named(after)
        changes = [f"{name} {old[name]}, then {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
        if changes:
            found.append(f"Resumed at step {after['resumed_at']:,} with other settings: {_listed(changes)}.")
    return found


def _named(start: Mapping[str, Any]) -> dict[str, Any]:
    """Flags and versions of a start by name; flags that affect only one start may change without a note."""
    found = (setting for setting in settings(start.get("config", {})) if setting.affects not in ("start", "nothing"))
    return {setting.flag: setting.spelled(setting.value) for setting in found} | start.get("versions", {})


def _not_finite(history: RunHistory) -> list[str]:
    finite = [step for step in history.steps if step["loss"] is not None]
    found = {
        "The loss was": [step for step in history.steps if step["loss"] is None],
        "The gradient norm was": [step for step in finite if step.get("grad_norm", 0.0) is None],
        "The loss on held-out data was": [line for line in history.validations if line["loss"] is None],
    }
    return [
        f"{what} not finite {_times(len(lines))}: at step "
        f"{_listed(format_ranges(line['iteration'] for line in lines).split(','))}."
        for what, lines in found.items()
        if lines
    ]


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
    more = len(things) - _MOST_LISTED
    return ", ".join(things[:_MOST_LISTED]) + (f", and {more:,} more" if more > 0 else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
