"""Notes on what is unusual about a run, which the reader should know before the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from megatron.ltd.format import format_ranges
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.settings import settings

_MOST_LISTED = 8


def notes(history: RunHistory) -> Iterator[str]:
    """One or two sentences per note; none if nothing is unusual."""
    last, num_steps = history.steps[-1], history.about.get("num_steps")
    if num_steps is None:
        yield "The log has no run line, so the flags, versions and length of the run are not known."
    elif last["iteration"] < num_steps:
        yield f"Not finished: the log ends at step {last['iteration']:,} of {num_steps:,}."
    elif last.get("kept_tokens", 0) < last.get("seq_length", 0):
        kept = f"it kept {last['kept_tokens']} of {last['seq_length']}"
        yield f"The last step still dropped tokens ({kept}): the run did not end on the dense model."
    yield from _resumes(history)
    yield from _not_finite("The loss was", history.steps, "loss")
    finite = [step for step in history.steps if step["loss"] is not None]
    yield from _not_finite("The gradient norm was", finite, "grad_norm")
    yield from _not_finite("The loss on held-out data was", history.validations, "loss")
    first = history.iterations[0]
    if first > 1:
        yield f"The log starts at step {first:,}: FLOPs, seconds and savings are those of the steps from there on."
    missing = last["iteration"] - first + 1 - len(history.steps)
    if missing:
        yield f"{missing:,} steps are missing between the first and the last step of the log."


def _resumes(history: RunHistory) -> Iterator[str]:
    """When the run was resumed, and what changed; a finished run that was only started again is left out."""
    starts = history.starts
    resumes = [line for line in starts[1:] if line["resumed_at"] < (line.get("num_steps") or float("inf"))]
    if not resumes:
        return
    listed = [f"at step {line['resumed_at']:,} ({line.get('time', 'time unknown')})" for line in resumes]
    yield f"Resumed {_times(resumes)}: {_listed(listed)}."
    for before, after in pairwise([starts[0], *resumes]):
        old, new = _named(before), _named(after)
        changes = [f"{name} {old[name]}, then {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
        if changes:
            yield f"Resumed at step {after['resumed_at']:,} with other settings: {_listed(changes)}."


def _named(start: Mapping[str, Any]) -> dict[str, Any]:
    """Flags and versions of a start by name; flags that affect only one start may change without a note."""
    found = (setting for setting in settings(start.get("config", {})) if setting.affects not in ("start", "nothing"))
    return {setting.flag: setting.spelled(setting.value) for setting in found} | start.get("versions", {})


def _not_finite(what: str, lines: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    found = [line["iteration"] for line in lines if line.get(name, 0.0) is None]
    if found:
        yield f"{what} not finite {_times(found)}: at step {_listed(format_ranges(found).split(','))}."


def _listed(things: Sequence[str]) -> str:
    more = len(things) - _MOST_LISTED
    return ", ".join(things[:_MOST_LISTED]) + (f", and {more:,} more" if more > 0 else "")


def _times(things: Sequence[Any]) -> str:
    return "once" if len(things) == 1 else f"{len(things):,} times"
