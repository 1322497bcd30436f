"""Books become a corpus: frames are removed, and the end is held out."""

from __future__ import annotations

from common import corpus

from tests.support_errors import refused
from tests.unit.tools.common.made_up import book


def test_frames_of_both_spellings_are_removed() -> None:
    assert corpus.strip_frame(book("One.\r\nTwo.").replace("\r\n", "\n"), "a.txt") == "One.\nTwo."
    with refused("--data", "a.txt", "START OF THIS PROJECT GUTENBERG EBOOK"):
        corpus.strip_frame("One.\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***\n", "a.txt")
    with refused("--data", "a.txt", "END OF THIS PROJECT GUTENBERG EBOOK"):
        corpus.strip_frame("*** START OF THIS PROJECT GUTENBERG EBOOK A ***\nOne.", "a.txt")


def test_a_split_loses_nothing_and_holds_out_the_end() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    train, held_out = corpus.split_book(text)
    assert train + held_out == text and train.endswith("\n")
    assert 0.045 < len(held_out) / len(text) <= 0.05
