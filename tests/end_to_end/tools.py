"""Runs a tool of ``tools/`` in this process like its command line, with the exit status and error line that a user
sees.
"""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stderr

import pytest

from tests.support import REPOSITORY


def tool_status(tool: str, *flags: object) -> tuple[int, str]:
    """Run ``tools/<tool>``; return its exit status and standard error."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [tool, *map(str, flags)])
            runpy.run_path(str(REPOSITORY / "tools" / tool), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def tool_refusal(tool: str, *flags: object) -> str:
    """The single error line of a tool that fails with exit status 2."""
    status, said = tool_status(tool, *flags)
    lines = said.splitlines()
    assert status == 2 and len(lines) == 1, (status, said)
    return lines[0].removeprefix(f"{tool}: error: ")
