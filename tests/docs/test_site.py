"""All pages together: links work, every page is listed, and the site builds if MkDocs is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import listed_pages
from tools.docs_site import linked_path, links, site_files


def fragments(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(root: Path, pages: list[str]) -> list[str]:
    """Broken relative links, as "page: link"."""
    broken = []
    for page in pages:
        for match in links((root / page).read_text(encoding="utf-8")):
            target = root / linked_path(root, page, match[2])
            heading = (match[3] or "#")[1:]
            if not target.exists() or (heading and target.suffix == ".md" and heading not in fragments(target)):
                broken.append(f"{page}: {match[2]}{match[3] or ''}")
        for heading in re.findall(r"\]\(#([^)]+)\)", (root / page).read_text(encoding="utf-8")):
            if heading not in fragments(root / page):
                broken.append(f"{page}: #{heading}")
    return broken


def unlisted_pages(root: Path, listed: list[str]) -> set[str]:
    """Unlisted pages in docs/, and unlisted pages that a listed page links to."""
    own = [path.relative_to(root).as_posix() for path in (root / "docs").glob("*.md")]
    return {path for path in site_files(root, listed + own) if path.endswith(".md")} - set(listed)


def test_no_link_is_broken(repository: Path) -> None:
    assert not broken_links(repository, listed_pages(repository))


def test_every_page_is_listed_once_and_every_listed_page_exists(repository: Path) -> None:
    listed = listed_pages(repository)
    assert not unlisted_pages(repository, listed)
    assert len(listed) == len(set(listed)) and all((repository / page).is_file() for page in listed)
    examples = {path.relative_to(repository).as_posix() for path in repository.glob("examples/*/README.md")}
    assert examples <= set(listed)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A small checkout with a front page, a page in docs/, a folder with a README and one without."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/a.md#first-one) [w](with) [o](without)\n\n```\n[x](nowhere)\n```\n")
    (tmp_path / "with" / "README.md").write_text("# With\n")
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## First one\n\n[back](../README.md) [here](#first-one)\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\ndocs_dir: docs\nuse_directory_urls: false\nhooks: [tools/docs_site.py]\n"
        "nav: [README.md, docs/a.md, with/README.md]\n"
        "validation: {nav: {omitted_files: warn}, links: {unrecognized_links: warn, anchors: warn}}\n"
    )
    return tmp_path


LISTED = ["README.md", "docs/a.md", "with/README.md"]
FAULTS = {
    "a file": "[a](docs/b.md)",
    "a heading": "[a](docs/a.md#second)",
    "an image": "![a](b.png)",
    "a heading of its own": "[a](#none)",
}


def test_the_small_checkout_is_sound(site: Path) -> None:
    assert broken_links(site, LISTED) == [] and unlisted_pages(site, LISTED) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_link_is_found(site: Path, fault: str) -> None:
    (site / "README.md").write_text(FAULTS[fault])
    assert len(broken_links(site, LISTED)) == 1


def test_an_unlisted_page_is_found(site: Path) -> None:
    (site / "docs" / "b.md").write_text("# B\n\n[c](../without/c.md)\n")
    (site / "without" / "c.md").write_text("# C\n")
    assert unlisted_pages(site, LISTED) == {"docs/b.md", "without/c.md"}


def build(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_builds_strictly(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("material")
    built = build(repository, tmp_path / "site")
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    for page in listed_pages(repository):
        html = page.removesuffix("README.md") + "index.html" if page.endswith("README.md") else page[:-3] + ".html"
        assert (tmp_path / "site" / html).is_file(), page


@pytest.mark.parametrize("fault", [None, *FAULTS, "an unlisted page"])
def test_the_strict_build_finds_what_the_tests_find(
    repository: Path, site: Path, tmp_path: Path, fault: str | None
) -> None:
    pytest.importorskip("mkdocs")
    (site / "tools").mkdir()
    (site / "tools" / "docs_site.py").write_text((repository / "tools" / "docs_site.py").read_text())
    if fault == "an unlisted page":
        (site / "docs" / "b.md").write_text("# B\n")
    elif fault is not None:
        (site / "README.md").write_text(FAULTS[fault])
    built = build(site, tmp_path / "site")
    assert (built.returncode == 0) == (fault is None), built.stdout + built.stderr
