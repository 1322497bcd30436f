"""Small indexed datasets, written the way users write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.tokenizers.config import TokenizerFiles


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., str]:
    """``write_dataset(texts, name="d")``: byte-level, documents ended; returns the prefix for ``--data-path``."""

    def write(texts: Sequence[str], name: str = "d") -> str:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        config = PreprocessConfig(
            input=(str(source),), output_prefix=str(tmp_path / name), append_eod=True, overwrite=True
        )
        return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))

    return write
