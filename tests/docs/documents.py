"""Helpers for tests of the documentation: pages, code blocks, tables, and the flags of this project's commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron.ltd.flags import flag_fields, flag_name
from megatron.ltd.methods import METHODS
from tools.docs_site import nav_pages

FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def code_blocks(text: str, language: str) -> list[str]:
    """The content of fenced code blocks of ``language``."""
    fenced = text.split("```")[1::2]
    return [block.partition("\n")[2] for block in fenced if block.partition("\n")[0] == language]


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row, without headings and delimiter rows."""
    lines = text.splitlines()
    followed = zip(lines, [*lines[1:], ""], strict=True)
    rows = [line for line, below in followed if line.startswith("|") and "|---" not in f"{line}{below}"]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def section(text: str, title: str) -> str:
    """The text under the heading ``## title``."""
    _, found, after = text.partition(f"\n## {title}\n")
    assert found, f"no section {title}"
    return after.partition("\n## ")[0]


def listed_pages(repository: Path) -> list[str]:
    """The pages that mkdocs.yml lists, by path in the checkout."""
    config = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    return nav_pages(config["nav"])


def known_flags(repository: Path) -> set[str]:
    """Every flag of this project's commands: from ``flag``, argparse, the methods, and the shell scripts of the
    examples.
    """
    paths = [*(repository / "megatron" / "ltd").rglob("*.py"), *(repository / "tools").rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    written = {flag for tree in trees for node in ast.walk(tree) for flag in _flags_of(node)}
    of_methods = {
        flag_name(entry.config_class, field.name)
        for entry in METHODS.values()
        for field in flag_fields(entry.config_class)
    }
    scripts = "".join(path.read_text(encoding="utf-8") for path in (repository / "examples").glob("*/*.sh"))
    of_scripts = set(re.findall(r'"\$\{1:-\}" [!=]= (--[a-z-]+)', scripts))
    return {"--help"} | written | of_methods | of_scripts


def _flags_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _calls(node.value, "flag"):
        call: Any = node.value
        named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
        default = call.args[0] if call.args else None
        is_on = isinstance(default, ast.Constant) and default.value is True
        dashed = node.target.id.replace("_", "-")
        yield "--" + (ast.literal_eval(named[0]) if named else f"no-{dashed}" if is_on else dashed)
        if ast.unparse(node.annotation) == "bool | None":
            yield f"--no-{dashed}"
    elif isinstance(node, ast.Call) and _calls(node, "add_argument"):
        yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and str(arg.value).startswith("--"))


def _calls(node: ast.AST | None, name: str) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return name in (getattr(function, "id", None), getattr(function, "attr", None))
