"""Rules of the source: order of imports, no import cycles, no method named outside its folder, and sizes."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from megatron.ltd.flags import flag_name
from megatron.ltd.methods import METHODS

ROOMS = (
    "machine", "errors", "versions", "json_text", "small_files", "flags", "megatron_lm", "format", "schedules",
    "parallel", "routing", "methods", "plan",
    "layers", "models", "tokenizers", "data", "hugging_face", "checkpoint", "forecast", "training", "config",
    "workloads", "words", "arguments", "evaluation", "reports", "export", "doctor", "launch",
    "commands", "__main__",
)  # fmt: skip
"""The folders and modules of ``megatron/ltd`` from bottom to top: each imports only from those before it."""
REACHED_FROM_BELOW = {"words": "it says what messages call a setting, and knows the flags of every workload for that"}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_FILES_OF_A_FOLDER = 300, 60, 24

NAMES_A_METHOD = {
    "megatron.ltd.doctor.layer": "it checks one real layer, with one method",
    "megatron.ltd.checkpoint.run_format": "it reads files of an earlier version, which hold these words",
}
"""The modules outside ``methods`` that may name a method's flag or class, and why."""


@pytest.fixture(scope="module")
def modules(repository: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module of the library, by dotted name."""
    trees = {}
    for path in (repository / "megatron" / "ltd").rglob("*.py"):
        name = ".".join(path.relative_to(repository).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports(node: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """Our modules that code below ``node`` imports, inside functions too, except imports for type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("megatron.ltd"):
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in known else str(child.module) for name in names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.startswith("megatron.ltd."))
        yield from imports(child, known)


def test_there_are_no_import_cycles(modules: dict[str, ast.Module]) -> None:
    graph = {name: set(imports(tree, modules)) - {name} for name, tree in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_folders_import_only_from_those_below_them(modules: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in modules.items():
        room = name.split(".")[2] if name.count(".") >= 2 else None
        for imported in imports(tree, modules):
            below = imported.split(".")[2] if imported.count(".") >= 2 else None
            if below in REACHED_FROM_BELOW:
                continue
            if room is not None and below is not None and ROOMS.index(below) > ROOMS.index(room):
                wrong.append(f"{name} imports {imported}")
    assert not wrong, "\n".join(wrong)


def words_in(tree: ast.Module) -> Iterator[str]:
    """Identifiers, and the words of all strings that are not docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # a docstring, of an attribute too
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.replace(":", " ").replace(",", " ").split()
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias | ast.keyword):
            yield str(node.name if isinstance(node, ast.alias) else node.arg)


def test_no_module_outside_its_folder_names_a_method(modules: dict[str, ast.Module]) -> None:
    """Names are classes, flags and fields of flags; training, data and workloads must work with every method."""
    own = {name for entry in METHODS.values() for name in (entry.config_class.__name__, entry.build.__self__.__name__)}  # type: ignore[attr-defined]
    for entry in METHODS.values():
        for field in dataclasses.fields(entry.config_class):
            own |= {field.name, flag_name(entry.config_class, field.name)} - METHODS.keys()
    found = {
        name: words & own
        for name, tree in modules.items()
        if not name.startswith("megatron.ltd.methods") and (words := set(words_in(tree))) & own
    }
    assert found.keys() == NAMES_A_METHOD.keys(), found


def test_every_folder_is_in_the_order(repository: Path) -> None:
    found = {
        path.stem
        for path in (repository / "megatron" / "ltd").iterdir()
        if path.stem not in ("__init__", "__pycache__")
    }
    assert found == set(ROOMS)


def test_files_functions_and_folders_stay_small(repository: Path, modules: dict[str, ast.Module]) -> None:
    library = repository / "megatron" / "ltd"
    long_files = [
        f"{path}: {lines} lines"
        for path in library.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES_OF_A_FILE
    ]
    long_functions = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION
    ]
    folders = [library, *(path for path in library.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    full_folders = [str(folder) for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES_OF_A_FOLDER]
    assert not long_files + long_functions + full_folders
