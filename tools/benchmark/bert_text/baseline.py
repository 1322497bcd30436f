"""Baselines: token frequencies, and logistic regression on word counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data.labelled_text import Columns, read_labelled
from megatron.ltd.errors import UserError

from .recipe import Data


def token_frequencies(data: Data, vocab_size: int) -> float:
    """Mean loss of held-out tokens if they are predicted by their counts in the training text plus one."""

    def counts(prefix: Path) -> np.ndarray:
        sentences = IndexedDataset(str(prefix))
        return sum(np.bincount(sentence, minlength=vocab_size) for sentence in sentences)

    trained, held_out = counts(data.train_prefix) + 1, counts(data.valid_prefix)
    return float(-(held_out * np.log(trained / trained.sum())).sum() / held_out.sum())


def bag_of_words(data: Data) -> dict[str, float]:
    """Accuracy and F1 of scikit-learn's logistic regression on single words, with default settings."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, f1_score
    except ImportError:
        raise UserError("the package scikit-learn is not installed: run pip install scikit-learn") from None

    train = read_labelled(str(data.labelled_train), Columns(), flag="--labelled")
    valid = read_labelled(str(data.labelled_valid), Columns(), flag="--labelled", classes=train.classes)
    words = CountVectorizer()
    model = LogisticRegression(max_iter=1000)
    model.fit(words.fit_transform(text for (text,) in train.sentences), train.labels)
    given = model.predict(words.transform(text for (text,) in valid.sentences))
    return {"accuracy": float(accuracy_score(valid.labels, given)), "f1": float(f1_score(valid.labels, given))}
