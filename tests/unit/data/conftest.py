"""Small indexed datasets, written with the same code as users' data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.tokenizers.config import TokenizerFiles


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., str]:
    """``write_dataset(texts, name="d")`` writes byte-level tokens with end-of-document ids and returns the prefix."""

    def write(texts: Sequence[str], name: str = "d") -> str:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        config = PreprocessConfig(
            input=(str(source),), output_prefix=str(tmp_path / name), append_eod=True, overwrite=True
        )
        return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))

    return write
