"""docs/megatron-core.md lists every private name of another library that we use, and every global that we replace."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import table_rows

PAGE = Path("docs/megatron-core.md")
PRIVATE = re.compile(r"_[A-Za-z]\w*")  # neither _ nor __name__
OWN = {"megatron.ltd", "tools", "tests"}
OF_PYTHON = {"os._exit"}
"""Names that are private by convention, but documented"""
OF_EVERY_CLASS = {"_abc_impl", "_backward_cls", "_is_protocol", "_is_runtime_protocol"}
"""Private names that Python and torch set on classes"""


def is_foreign(module: str) -> bool:
    return not any(module == own or module.startswith(f"{own}.") for own in OWN)


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Names in a module that refer to other libraries, with the imported module or object."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and "import_module(" in ast.unparse(node.value or node):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[ast.unparse(target)] = "importlib." + ast.unparse(target)
    return {name: source for name, source in found.items() if is_foreign(source)}


def own_private_names(trees: dict[Path, ast.Module]) -> set[str]:
    """Private names that our code defines: functions, classes, variables and attributes of self."""
    names: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and root(node) == "self":
                names.add(node.attr)
    return {name for name in names if PRIVATE.fullmatch(name)}


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return ast.unparse(node)


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names of other libraries that a module imports, reads, calls or overrides."""
    foreign = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_foreign(str(node.module)):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if PRIVATE.fullmatch(part))
        elif isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            of_library = root(node) in foreign or root(node) == "super()"
            if (of_library or node.attr not in own) and ast.unparse(node) not in OF_PYTHON:
                yield node.attr


def replaced_names(tree: ast.Module) -> Iterator[str]:
    """Globals of other libraries to which a module assigns."""
    foreign = imported_names(tree)
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in (part for whole in targets for part in (whole.elts if isinstance(whole, ast.Tuple) else [whole])):
            if isinstance(target, ast.Attribute) and root(target) in foreign:
                yield target.attr
            elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == "sys.modules":
                yield "sys.modules"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" and root(node.args[0]) in foreign:
            yield ast.unparse(node.args[0])


@pytest.fixture(scope="module")
def used(repository: Path) -> dict[str, set[str]]:
    """Private and replaced names of other libraries, with the files that use them."""
    paths = [*(repository / "megatron" / "ltd").rglob("*.py"), *(repository / "tools").rglob("*.py")]
    trees = {path.relative_to(repository): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    own = own_private_names(trees)
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        for name in {*private_names(tree, own), *replaced_names(tree)}:
            found.setdefault(name, set()).add(str(path))
    return found


def test_every_private_method_that_we_override_is_on_the_page(repository: Path) -> None:
    """The page lists each private method of another library's class that a subclass of ours defines."""
    text, found = (repository / PAGE).read_text(encoding="utf-8"), set()
    for path in (repository / "megatron" / "ltd").rglob("*.py"):
        if path.stem.startswith("__") or "(" not in path.read_text(encoding="utf-8"):
            continue
        try:
            module = importlib.import_module(".".join(path.relative_to(repository).with_suffix("").parts))
        except ModuleNotFoundError as error:
            if error.name != "triton":  # which only torch for CUDA brings
                raise
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                bases = [base for base in cls.__mro__[1:] if is_foreign(base.__module__)]
                found |= {name for name in vars(cls) if PRIVATE.fullmatch(name) and any(name in vars(b) for b in bases)}
    found -= OF_EVERY_CLASS
    assert "_build_indices" in found
    assert not {name for name in found if f"`{name}`" not in text}


def test_every_private_name_and_every_replaced_global_is_on_the_page(
    repository: Path, used: dict[str, set[str]]
) -> None:
    assert {"_fused_adamw_", "_results_queue", "checkpoint", "load", "sys.modules"} <= used.keys()
    rows = table_rows((repository / PAGE).read_text(encoding="utf-8"))
    missing = {
        (name, file)
        for name, files in used.items()
        for file in files
        if not any(
            re.search(rf"(?<!\w){re.escape(name)}(?!\w)", row[0]) and file.rpartition("/")[2] in row[1] for row in rows
        )
    }
    assert not missing


def test_every_name_on_the_page_is_still_in_the_code(repository: Path) -> None:
    for row in table_rows((repository / PAGE).read_text(encoding="utf-8")):
        files = re.findall(r"\]\(\.\./(\S+?\.py)\)", row[1])
        assert files, row
        text = "".join((repository / file).read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`([^`]+)`", row[0]):
            assert name.rpartition(".")[2] in text, (name, files)


def test_every_test_on_the_page_exists(repository: Path) -> None:
    rows = table_rows((repository / PAGE).read_text(encoding="utf-8"))
    assert len(rows) > 10
    for row in rows:
        file, name = re.fullmatch(r"\[(?:\w+)\]\(\.\./(tests/\S+\.py)\) `(test_\w+)`", row[-1]).groups()  # type: ignore[union-attr]
        assert f"def {name}(" in (repository / file).read_text(encoding="utf-8"), row


def test_the_versions_on_the_page_are_the_pinned_ones(repository: Path) -> None:
    text = (repository / PAGE).read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (repository / "constraints.txt").read_text(), re.MULTILINE))
    for package in ("megatron-core", "torch", "lm-eval", "transformers"):
        (version,) = re.findall(rf"{package} (\d[\d.]*\d)", text)
        assert version == pins[package] or package == "transformers", package
    assert sys.version_info >= (3, 10)
