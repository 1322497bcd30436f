"""The two SQuAD metrics that lm-eval's ReCoRD imports from a module that transformers 5 no longer has.

    exact = 1 if both texts are equal after normalisation           normalised: lower case, no punctuation, no articles
    F1    = 2 * common / (words of one + words of the other)        common: words in both, counted with repetition

Definitions: Rajpurkar et al., 2016 (arXiv:1606.05250), section 6.1.
"""

from __future__ import annotations

import importlib
import re
import string
import sys
import types
from collections import Counter

from megatron.ltd.errors import UserError

_MODULE = "transformers.data.metrics.squad_metrics"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def compute_exact(gold: str, predicted: str) -> int:
    """1 or 0."""
    return int(_words(gold) == _words(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """Between 0 and 1; if a text has no words, 1 if both have none, else 0."""
    gold_words, predicted_words = _words(gold), _words(predicted)
    if not gold_words or not predicted_words:
        return float(gold_words == predicted_words)
    common = sum((Counter(gold_words) & Counter(predicted_words)).values())
    return 2.0 * common / (len(gold_words) + len(predicted_words))


def stand_in_for_squad_metrics() -> None:
    """Make ``import transformers.data.metrics.squad_metrics`` find this module if transformers does not have its own.

    Otherwise lm-eval 0.4.13 can load neither ``record`` nor a group with it. A module of transformers is kept.
    Raises ``UserError`` without transformers, which these tasks import.
    """
    try:
        data = importlib.import_module("transformers.data")
    except ModuleNotFoundError:
        raise UserError(
            'the package transformers, which record needs, is not installed: run pip install "megatron-ltd[hf]"'
        ) from None
    package, _, name = _MODULE.rpartition(".")
    try:
        importlib.import_module(_MODULE)
    except ModuleNotFoundError:
        metrics = types.ModuleType(package)
        this = sys.modules[__name__]
        setattr(metrics, name, this)
        sys.modules[package], sys.modules[_MODULE] = metrics, this
        data.metrics = metrics  # type: ignore[attr-defined]


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()
