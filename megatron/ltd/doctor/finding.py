"""A result of a check, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"
_NAME_WIDTH = 20


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str
    """``OK``; ``NOTE``: works, but is worth knowing; ``WRONG``: a run would fail or compute something wrong."""
    name: str
    text: str
    advice: str = ""
    """How to fix it; may be empty."""

    @property
    def line(self) -> str:
        return f"{self.state:<7}{self.name:<{_NAME_WIDTH}}{self.text}" + (f": {self.advice}" if self.advice else "")


def report(findings: Iterable[Finding]) -> int:
    """Print each finding as it comes, then a summary. Returns the exit status: 1 if something is wrong."""
    num_wrong = 0
    for finding in findings:
        num_wrong += finding.state == WRONG
        print(finding.line, flush=True)
    print(f"{num_wrong} {'thing is' if num_wrong == 1 else 'things are'} wrong" if num_wrong else "all is well")
    return 1 if num_wrong else 0
