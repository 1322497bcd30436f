"""MkDocs hooks that build the site from pages at their paths in the checkout: README.md, docs/, cards, examples,
results.

    nav in mkdocs.yml                 contains paths from the root of the checkout
    a page that another links to      is a page of the site, and must be in the nav
    another file that a page links to is copied to the site, at its own path
    a link to a folder                leads to its README.md; the link is removed if there is none

Relative links thus work in the checkout, on a code host and in the site. MkDocs reports broken links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os.path import normpath
from pathlib import Path
from typing import Any

LINK = re.compile(
    r"(?<!\\)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|mailto:)([^)#\s]+)(#[^)\s]*)?((?:\s+\"[^\"]*\")?)\)"
)
"""A relative link or image: its text, path, fragment and title."""
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(markdown: str) -> Iterator[re.Match[str]]:
    """The relative links of a page, except those in fenced code."""
    fenced = [match.span() for match in _FENCED.finditer(markdown)]
    for match in LINK.finditer(markdown):
        if not any(start <= match.start() < end for start, end in fenced):
            yield match


def nav_pages(nav: Any) -> list[str]:
    """The paths in the nav of mkdocs.yml, in order."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [path for child in children for path in nav_pages(child)]


def linked_path(root: Path, page: str, link: str) -> str:
    """The path from ``root`` that ``link`` in ``page`` leads to; for a folder with a README.md, that file."""
    path = normpath(Path(page).parent / link)
    return f"{path}/README.md" if (root / path / "README.md").is_file() else path


def site_files(root: Path, pages: list[str]) -> list[str]:
    """The existing files of the site: ``pages``, and all pages and files that they link to, even indirectly."""
    found, waiting = dict.fromkeys(path for path in pages if (root / path).is_file()), list(pages)
    while waiting:
        page = waiting.pop()
        if not page.endswith(".md") or not (root / page).is_file():
            continue
        for match in links((root / page).read_text(encoding="utf-8")):
            path = linked_path(root, page, match[2])
            if path not in found and (root / path).is_file():
                found[path] = None
                waiting.append(path)
    return list(found)


def on_files(files: Any, config: Any) -> Any:
    """Replace the pages of docs_dir by those of the nav and all that they link to, at their paths in the checkout."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir and file.is_documentation_page():
            files.remove(file)
    pages = sorted(path.relative_to(root).as_posix() for path in Path(config.docs_dir).glob("*.md"))
    for path in site_files(root, nav_pages(config.nav) + pages):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace links to folders by links to their README.md, or by their text if there is none."""
    root, here = Path(config.config_file_path).parent, page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        if not (root / normpath(Path(here).parent / match[2])).is_dir():
            return match[0]
        if not linked_path(root, here, match[2]).endswith("/README.md"):
            return match[1]
        return f"[{match[1]}]({match[2].rstrip('/')}/README.md{match[3] or ''}{match[4]})"

    for match in reversed(list(links(markdown))):
        markdown = markdown[: match.start()] + rewritten(match) + markdown[match.end() :]
    return markdown
