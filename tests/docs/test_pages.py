"""Statements of pages about the code: scripts and flags exist, and the file tree and table of extras are complete."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration

from tests.docs.documents import FLAG, code_blocks, known_flags, listed_pages

FOREIGN_FLAGS = {
    *"--nproc-per-node --max-restarts".split(),  # torchrun
    *"--parsable --array --nodes --gpus-per-node --dependency --time --requeue --signal".split(),  # Slurm
    *"--ntasks-per-node --gpus-per-task".split(),  # Slurm
    *"--file --tag --rm --gpus --ipc --volume".split(),  # docker; --output is enroot's too
    *"--output_path --model --batch_size --num_fewshot --limit".split(),  # lm-eval
}
HISTORY = {"CHANGELOG.md"}
"""Pages that also mention former flags"""
OTHER_PROGRAMS = {
    "docs/coming-from-megatron-lm.md", "docs/megatron-lm-flags.md", "docs/coming-from-deepspeed.md",
}  # fmt: skip
"""Pages that contain other programs' flags; see test_coming_from"""


def scripts_called(text: str) -> list[str]:
    return [
        path for block in code_blocks(text, "bash") for path in re.findall(r"\b(?:bash|python) (\S+\.(?:sh|py))", block)
    ]


def test_every_called_script_exists(repository: Path) -> None:
    called = {
        page: scripts_called((repository / page).read_text(encoding="utf-8")) for page in listed_pages(repository)
    }
    assert called["README.md"] and called["CONTRIBUTING.md"] and called["docs/evaluation.md"]
    missing = {(page, path) for page, paths in called.items() for path in paths if not (repository / path).is_file()}
    assert not missing


def test_every_flag_on_a_page_exists(repository: Path) -> None:
    known = known_flags(repository) | FOREIGN_FLAGS
    assert {"--ltd-block-size", "--disable-bias-linear", "--no-tokenizer", "--plan-mfu", "--minutes"} <= known
    unknown = {
        (page, flag)
        for page in set(listed_pages(repository)) - HISTORY - OTHER_PROGRAMS
        for flag in FLAG.findall((repository / page).read_text(encoding="utf-8"))
        if flag not in known and not (flag.endswith("-") and any(name.startswith(flag) for name in known))
    }
    assert not unknown


def test_the_file_tree_names_every_module_at_the_top_and_every_package(repository: Path) -> None:
    (tree,) = code_blocks((repository / "docs" / "architecture.md").read_text(encoding="utf-8"), "")
    package = repository / "megatron" / "ltd"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {path.name + "/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = set(re.findall(r"^  (\S+)", tree, flags=re.MULTILINE))
    assert modules | folders <= named


def test_the_path_of_a_batch_and_the_tree_name_existing_files(repository: Path) -> None:
    """The path of a batch names each of its files once, and at most 20."""
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    road = re.findall(r"`([\w/]+\.py)`", text.partition("## Rules")[0])
    roots = (repository, repository / "megatron" / "ltd")
    assert len(road) == len(set(road)) <= 20
    assert not [path for path in road if not any((root / path).is_file() for root in roots)]
    (tree,) = code_blocks(text, "")
    named = re.findall(r"\b[\w*]+\.(?:py|sh|txt)\b", tree)
    folders = ("megatron", "tools", "examples", "tests")
    files = [path.name for folder in folders for path in (repository / folder).rglob("*") if path.is_file()]
    files += [path.name for path in repository.iterdir()]
    patterns = {name: re.compile(re.escape(name).replace(r"\*", r"\w*")) for name in named}
    assert not [name for name, pattern in patterns.items() if not any(pattern.fullmatch(file) for file in files)]


def test_the_table_of_extras_is_that_of_the_package(repository: Path) -> None:
    text = (repository / "docs" / "install.md").read_text(encoding="utf-8")
    declared = read_configuration(repository / "pyproject.toml", expand=False)["project"]["optional-dependencies"]
    assert re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE) == list(declared)
