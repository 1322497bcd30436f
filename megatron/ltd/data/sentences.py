"""Splits text into sentences by punctuation, for BERT's samples. No model, no download, no torch.

    paragraphs   are separated by empty lines; inside a paragraph a line end is a space
    sentences    end after . ! ? or … and closing quotes or brackets, before a space and a capital, a digit, or an
                 opening quote or bracket; a full stop after an abbreviation or an initial does not end one

For languages with capitals and spaces. A wrong split joins two sentences or splits one; no text is lost.
"""

from __future__ import annotations

import re

_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n\s*")
_ENDS = re.compile(r"(?P<mark>[.!?…]+)[\"'”’»)\]]*\s+(?=[\"'“‘«(\[¿¡]*[^\W_a-zß-öø-ÿ])|(?<=[。！？])\s*(?=\S)")
_LAST_WORD = re.compile(r"([^\W\d_][\w.]*)\.$")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr gen col capt lt sgt gov sen rep pres messrs mme mlle esq "
    "vs etc al cf e.g i.e viz no nos vol vols pp p fig figs ch sec ed eds op approx dept est inc ltd co corp "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun u.s u.k a.m p.m".split()
)


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, none empty; their words are the words of the text."""
    sentences = []
    for paragraph in _PARAGRAPHS.split(text):
        start = 0
        for end in _ENDS.finditer(paragraph):
            if end["mark"] == "." and _is_abbreviation(paragraph[start : end.end("mark")]):
                continue
            sentences.append(paragraph[start : end.end()])
            start = end.end()
        sentences.append(paragraph[start:])
    return [joined for sentence in sentences if (joined := " ".join(sentence.split()))]


def _is_abbreviation(upto_stop: str) -> bool:
    """Whether the text up to a full stop ends in an abbreviation, or in an initial as in J. S. Bach."""
    last = _LAST_WORD.search(upto_stop)
    if last is None:
        return False
    word = last[1]
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")
