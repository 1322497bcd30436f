"""The parser with which other tests read pages."""

from __future__ import annotations

import pytest

from tests.unit.reports.page.pages import Page


@pytest.mark.parametrize("broken", ["<p><b></p></b>", "<p>", "</p>", '<p id="a"></p><p id="a"></p>'])
def test_the_parser_rejects_broken_pages(broken: str) -> None:
    with pytest.raises(AssertionError):
        Page(broken)
    assert Page('<img src="http://a/b.png" onclick="x()"><p style="background: url(//a)"></p>').loads == [
        "img src=http://a/b.png",
        "//a",
    ]
