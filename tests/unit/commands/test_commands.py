"""``megatron-ltd``: its list, its errors, and the wheel that brings it to a machine without the checkout."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from megatron.ltd.commands import COMMANDS, main, run_script
from megatron.ltd.errors import UserError

OF_THE_CHECKOUT = {
    "docs_site.py", "megatron_lm_flags.py", "methods_table.py", "torture.py", "transformer_engine_signatures.py",
}  # fmt: skip
"""Tools that are of no use without the sources."""


def call(*words: str) -> int:
    """The exit status of the command line ``megatron-ltd words``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/usr/bin/megatron-ltd", *words])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_every_script_is_a_command(repository: Path) -> None:
    scripts = {path.name for path in repository.glob("*_ltd.py")}
    scripts |= {f"tools/{path.name}" for path in (repository / "tools").glob("*.py")} - {
        f"tools/{name}" for name in OF_THE_CHECKOUT
    }
    found = [command.script for command in COMMANDS.values() if command.script is not None]
    assert sorted(found) == sorted(scripts)
    for name, command in COMMANDS.items():
        if command.script is not None:
            text = (repository / command.script).read_text()
            assert f'run_script("{name}")' in text
            modules = {node.module for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)}
            # Ctrl-C during another import would end in a traceback.
            assert "megatron.ltd.commands" in modules <= {"__future__", "pathlib", "megatron.ltd.commands"}


def test_the_list_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "megatron-ltd: error: no command is given; --help lists them"),
        (("preproces",), "megatron-ltd: error: preproces: there is no such command; use preprocess or prepare-tasks"),
        (("export_hf.py",), "megatron-ltd: error: export_hf.py: there is no such command; use export"),
        (("xyz",), "megatron-ltd: error: xyz: there is no such command; --help lists them"),
        (("pretrain-gpt", "--num-layer", "2"), "megatron-ltd pretrain-gpt: error: --num-layer: there is no such flag; "
                                               "use --num-layers"),
        (("export", "--load", "x"), "megatron-ltd export: error: --output: required; give the folder to write"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (call(*words), capsys.readouterr().err) == (2, line + "\n")


def test_errors_name_commands_instead_of_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise UserError("--load x: has no tasks; tools/prepare_tasks.py writes them, pretrain_gpt_ltd.py does not")

    monkeypatch.setattr("megatron.ltd.commands.train.pretrain_bert", fail)
    assert call("pretrain-bert") == 2
    assert capsys.readouterr().err == (
        "megatron-ltd pretrain-bert: error: --load x: has no tasks; megatron-ltd prepare-tasks writes them, "
        "megatron-ltd pretrain-gpt does not\n"
    )


def test_plan_is_pretrain_gpt_with_plan(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--train-iters", "3", "--lr", "1e-3", "--num-layers", "2", "--hidden-size", "64", "--seq-length", "32"]
    flags += ["--num-attention-heads", "4", "--vocab-size", "100", "--micro-batch-size", "1", "--device", "cpu"]
    assert call("plan", *flags) == 0
    planned = capsys.readouterr().out
    assert call("pretrain-gpt", *flags, "--plan") == 0
    assert capsys.readouterr().out == planned and "total: 3 steps" in planned


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(repository / "megatron", source / "megatron", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(source / built.stdout.split()[-1]) as wheel:
        wheel.extractall(target)
    return target


EVERY_HELP = """
import contextlib, io, sys, time
sys.path[:] = [path for path in sys.path if path != sys.argv[1]]
from importlib.metadata import entry_points
begun = time.process_time()
(entry,) = [found for found in entry_points(group="console_scripts") if found.name == "megatron-ltd"]
main = entry.load()
def said(*words):
    sys.argv = ["/usr/bin/megatron-ltd", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    return out.getvalue()
listed = [line.split()[0] for line in said("--help").splitlines() if line.startswith("  ")]
assert time.process_time() - begun < 1
assert not {"torch", "argparse", "numpy"} & sys.modules.keys()
for name in listed:
    assert said(name, "--help").startswith(f"usage: megatron-ltd {name} ["), name
ours = [found.__file__ for name, found in sys.modules.items() if name.startswith("megatron.ltd") and found.__file__]
assert "torch" not in sys.modules
print(len(listed), *{file.partition("/megatron/ltd/")[0] for file in ours})
"""


def test_the_wheel_brings_every_command(installed: Path, repository: Path, tmp_path: Path) -> None:
    """Commands run in a new process in another folder, without the checkout on the module search path."""
    ended = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, str(repository)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(len(COMMANDS)), str(installed)]


def test_the_wheel_is_the_library(installed: Path, repository: Path) -> None:
    """All modules and the files beside them but the methods' cards, and nothing else."""
    files = {path.relative_to(repository) for path in (repository / "megatron").rglob("*") if path.is_file()}
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    brought = {path for path in found if not path.parts[0].endswith(".dist-info")}
    assert brought == {path for path in files if path.suffix not in (".pyc", ".md")}


def test_a_script_can_be_interrupted_while_it_imports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("megatron.ltd.commands.import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["tools/export_hf.py"])
    with pytest.raises(SystemExit) as ended:
        run_script("export")
    assert ended.value.code == 130 and capsys.readouterr().err == "export_hf.py: interrupted\n"
