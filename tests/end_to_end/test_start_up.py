"""What a start imports: other packages cost more of its time than all of our own code.

Modules are counted, and not seconds, which depend on what else the machine does: ``tools/benchmark/start.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import tiny_flags, write_data
from tests.support_processes import PATIENCE_SECONDS

TO_PLAN = {"megatron", "tabulate", "yaml"}
"""The packages that reading flags, planning and refusing need"""
COMPILERS = {"torch._dynamo", "torch._inductor"}
AT_THE_END = """
import atexit, runpy, sys
at_start = set(sys.modules)
atexit.register(lambda: print("IMPORTED", *(set(sys.modules) - at_start)))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def imported_by(repository: Path, folder: Path, *flags: object) -> tuple[int, set[str]]:
    """The exit status of ``pretrain_gpt_ltd.py`` with these flags, and the modules that it has imported."""
    command = [sys.executable, "-c", AT_THE_END, str(repository / "pretrain_gpt_ltd.py"), *map(str, flags)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("IMPORTED "))
    return ended.returncode, set(line.split()[1:])


def third_party(modules: set[str]) -> set[str]:
    """The packages of ``modules``, without the standard library's and their private parts in C."""
    packages = {name.partition(".")[0] for name in modules}
    return {name for name in packages if name not in sys.stdlib_module_names and not name.startswith("_")}


@pytest.mark.parametrize(
    ("more", "status"), [(("--plan",), 0), (("--lr", "-1"), 2), (("--no-such-flag",), 2), (("--plan", "--hepl"), 2)]
)
def test_a_plan_and_a_refusal_import_little(
    repository: Path, tmp_path: Path, more: tuple[str, ...], status: int
) -> None:
    recipe = repository / "examples" / "quickstart" / "recipe.yaml"
    flags = ("--config", recipe, "--random-ltd", "--global-batch-size", 4, "--vocab-size", 1000)
    ended, modules = imported_by(repository, tmp_path, *flags, *more)
    assert ended == status
    assert third_party(modules) - {"cython_runtime"} <= TO_PLAN
    assert "megatron.core" not in modules and "megatron.ltd.config" in modules


def test_the_first_step_imports_no_compiler(repository: Path, tmp_path: Path) -> None:
    """torch's is imported where an optimizer is made, unless that is prevented."""
    flags = tiny_flags(write_data(tmp_path), "--log-dir", tmp_path / "log", "--exit-interval", 1, "--eval-iters", 0)
    ended, modules = imported_by(repository, tmp_path, *flags)
    assert ended == 0 and "megatron.ltd.training.loop" in modules
    assert not modules & COMPILERS
