"""Whether the end of a command is right: done, or one line that says why not, in bounded time and memory."""

from __future__ import annotations

import re

from .child import Ending

MOST_GROWN_BYTES = 1 << 30


def problem_of(ending: Ending, *, may_stop: bool = False, may_need_memory: bool = False, may_log: bool = False) -> str:
    """What is wrong about the end of a command; empty if nothing is.

    Right are exit status 0, and 2 with one line. ``may_stop``: also 1 with the one line of a run that stopped itself.
    ``may_need_memory``: it was asked for something large, so that "out of memory" is an answer.
    ``may_log``: ``--verbose`` asked for the log of a library before that line.
    """
    lines = [line for line in ending.said.splitlines() if line.strip()]
    answers = [line for line in lines if re.match(r"[\w.-]+: (error|stopped): ", line)]
    if ending.was_killed:
        return f"no end within {ending.seconds:.0f} s"
    if "Traceback (most recent call last)" in ending.said + ending.out:
        return f"a traceback: {ending.last_line[:200]}"
    if ending.left:
        return "processes are left behind"
    if ending.status < 0:
        return f"ended by signal {-ending.status}" + (f" after {ending.seconds:.0f} s" if ending.was_asked else "")
    if not may_need_memory and ending.grown_bytes > MOST_GROWN_BYTES:
        return f"{ending.grown_bytes / 1e9:.1f} GB of memory"
    if ending.status == 0:
        return ""
    if ending.status == 1 and may_stop:
        return "" if len(answers) == 1 else f"status 1 and {len(answers)} lines that say why"
    if ending.status != 2:
        return f"exit status {ending.status}"
    if len(answers) != 1 or lines[-1] != answers[0] or (len(lines) > 1 and not may_log):
        return f"exit status 2 and {len(lines)} lines"
    if not may_need_memory and "out of memory" in answers[0]:
        return "out of memory"
    return ""
