"""Splitting text into sentences: where they end, where they do not, and that no word is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.data.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rains. We stay.", ["It rains.", "We stay."]),
        ("Who? Me! Yes… Well.", ["Who?", "Me!", "Yes…", "Well."]),
        ("A line\nends here. Another\nline.", ["A line ends here.", "Another line."]),
        ("A heading\n\nThen text", ["A heading", "Then text"]),
        ("Mr. Darcy met J. S. Bach. He bowed.", ["Mr. Darcy met J. S. Bach.", "He bowed."]),
        ("It was I. He left.", ["It was I.", "He left."]),
        ("She paid $3.50 for v1.2 today. Fine.", ["She paid $3.50 for v1.2 today.", "Fine."]),
        (
            '"Come!" he said. "Why?" (He came.) “Good.” So.',
            ['"Come!" he said.', '"Why?"', "(He came.)", "“Good.”", "So."],
        ),
        ("See e.g. the U.S. Senate. Élan. 12 men.", ["See e.g. the U.S. Senate.", "Élan.", "12 men."]),
        ("今天好。明天也好。", ["今天好。", "明天也好。"]),
        (" \n\n \t", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet=st.sampled_from("aB1.!? \n\"')(Mr。é"), max_size=60))
def test_no_word_is_lost_and_no_sentence_is_empty(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence.strip() == sentence != "" for sentence in sentences)
