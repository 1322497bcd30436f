"""Text cannot become HTML, and a page is whole."""

from __future__ import annotations

import pytest

from megatron.ltd.reports.page.markup import figures, folded, page, section, table, text
from tests.unit.reports.page.pages import Page

HOSTILE = "<script>alert(1)</script> \"'&amp; </style></title> $title"


def test_text_stays_text_wherever_it_stands() -> None:
    parts = [
        text(HOSTILE), section(HOSTILE), table([HOSTILE], [[HOSTILE]]), table([HOSTILE], [[HOSTILE]], words=True),
        figures([(HOSTILE, HOSTILE)]), folded(HOSTILE, text(HOSTILE)),
    ]  # fmt: skip
    seen = Page(page(HOSTILE, parts))
    assert "script" not in seen.elements and seen.loads == [] and seen.handlers == []
    assert seen.text.count(HOSTILE) == 11


def test_the_page_forbids_scripts_and_everything_from_outside() -> None:
    whole = page("a", [])
    assert whole.startswith("<!DOCTYPE html>\n<html lang=") and "default-src 'none'; style-src 'unsafe-inline'" in whole
    assert "prefers-color-scheme: dark" in whole and "@media print" in whole and "$" not in whole


@pytest.mark.parametrize("broken", ["<p><b></p></b>", "<p>", "</p>", '<p id="a"></p><p id="a"></p>'])
def test_the_test_sees_broken_pages(broken: str) -> None:
    with pytest.raises(AssertionError):
        Page(broken)
    assert Page('<img src="http://a/b.png" onclick="x()"><p style="background: url(//a)"></p>').loads == [
        "img src=http://a/b.png",
        "//a",
    ]
