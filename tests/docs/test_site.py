"""All pages together: the site builds, which fails for broken links and unlisted pages, and lists every page once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import listed_pages

pytest.importorskip("material")


def build(folder: Path, target: Path) -> tuple[int, str]:
    """The exit status of the strict build of the checkout in ``folder``, and what it printed."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=folder, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return built.returncode, built.stdout + built.stderr


def test_the_site_builds_strictly(repository: Path, tmp_path: Path) -> None:
    listed = listed_pages(repository)
    status, said = build(repository, tmp_path)
    assert status == 0, said
    for page in listed:
        html = page.removesuffix("README.md") + "index.html" if page.endswith("README.md") else page[:-3] + ".html"
        assert (tmp_path / html).is_file(), page
    assert len(listed) == len(set(listed))
    examples = {path.relative_to(repository).as_posix() for path in repository.glob("examples/*/README.md")}
    assert examples <= set(listed)


def test_linked_headings_have_the_same_anchor_on_a_code_host(repository: Path) -> None:
    """The build checks the anchors of the site, which has one dash where a code host has one for every space."""
    text = "\n".join((repository / page).read_text(encoding="utf-8") for page in listed_pages(repository))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    linked = set(re.findall(r"\]\((?!https?:)[^)\s]*#([^)\s]+)", text))
    assert linked and linked <= {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


FAULTS = {
    "[a](docs/b.md)": "'docs/b.md'",
    "[a](docs/a.md#second)": "'#second'",
    "![a](b.png)": "'b.png'",
    "[a](#none)": "'#none'",
    "[a](docs/a.py)": "'docs/a.py'",
    "[a](nowhere)": "'nowhere'",
}
"""Links that lead nowhere, and what the build says of each."""


def test_the_strict_build_finds_every_fault(repository: Path, tmp_path: Path) -> None:
    """A small checkout with a front page, a page in docs/, a folder with a README and one without."""
    for folder in ("tools", "docs", "with", "without"):
        (tmp_path / folder).mkdir()
    shutil.copy(repository / "tools" / "docs_site.py", tmp_path / "tools")
    (tmp_path / "README.md").write_text("[a](docs/a.md#first-one) [w](with) [o](without)\n\n```\n[x](nowhere)\n```\n")
    (tmp_path / "with" / "README.md").write_text("# With\n")
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## First one\n\n[back](../README.md) [here](#first-one)\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\ndocs_dir: docs\nuse_directory_urls: false\nhooks: [tools/docs_site.py]\n"
        "nav: [README.md, docs/a.md, with/README.md]\n"
        "validation: {nav: {omitted_files: warn}, links: {unrecognized_links: warn, anchors: warn}}\n"
    )
    status, said = build(tmp_path, tmp_path / "site")
    assert status == 0, said
    (tmp_path / "docs" / "a.md").write_text("# A\n\n[c](../without/c.md)\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# B\n")
    (tmp_path / "without" / "c.md").write_text("# C\n")
    (tmp_path / "README.md").write_text(" ".join(FAULTS))
    status, said = build(tmp_path, tmp_path / "site")
    assert status == 1 and all(named in said for named in (*FAULTS.values(), "docs/unlisted.md", "without/c.md")), said
