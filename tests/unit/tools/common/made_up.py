"""A made-up book in the frame of Project Gutenberg."""

from __future__ import annotations


def book(text: str) -> str:
    """``text`` between the lines with which Project Gutenberg's old and new files begin and end."""
    return (
        f"\r\nA note.\r\n*** START OF THIS PROJECT GUTENBERG EBOOK A ***\r\n\r\n{text}\r\n\r\n"
        "***END OF THE PROJECT GUTENBERG EBOOK A***\r\nMore.\r\n*** START: FULL LICENSE ***\r\nFee.\r\n"
    )
