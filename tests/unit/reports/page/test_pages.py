"""The parser that other tests look at pages with."""

from __future__ import annotations

import pytest

from tests.unit.reports.page.pages import Page


@pytest.mark.parametrize("broken", ["<p><b></p></b>", "<p>", "</p>", '<p id="a"></p><p id="a"></p>'])
def test_the_test_sees_broken_pages(broken: str) -> None:
    with pytest.raises(AssertionError):
        Page(broken)
    assert Page('<img src="http://a/b.png" onclick="x()"><p style="background: url(//a)"></p>').loads == [
        "img src=http://a/b.png",
        "//a",
    ]
