"""A small byte-level BPE vocabulary that needs no downloaded files."""

from __future__ import annotations

import json

import pytest

from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

_MERGES = ["Ġ t", "h e", "Ġt he", "i n", "r e", "o n", "Ġ a", "e r", "Ġ Ġ", "ĠĠ ĠĠ", "in g"]


@pytest.fixture(scope="session")
def small_bpe(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    """A GPT-2 tokenizer's vocabulary file and merge file with only a few merges."""
    folder = tmp_path_factory.mktemp("bpe")
    pieces = [*byte_alphabet(), *(merge.replace(" ", "") for merge in _MERGES), END_OF_TEXT]
    (folder / "encoder.json").write_text(json.dumps({piece: token for token, piece in enumerate(pieces)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *_MERGES, ""]), encoding="utf-8")
    return TokenizerFiles("GPT2BPETokenizer", str(folder / "encoder.json"), str(folder / "vocab.bpe"))
