"""A book as Project Gutenberg frames it."""

from __future__ import annotations


def book(text: str) -> str:
    """``text`` between the lines that the frame has in old and new files."""
    return (
        f"\r\nA note.\r\n*** START OF THIS PROJECT GUTENBERG EBOOK A ***\r\n\r\n{text}\r\n\r\n"
        "***END OF THE PROJECT GUTENBERG EBOOK A***\r\nMore.\r\n*** START: FULL LICENSE ***\r\nFee.\r\n"
    )
