"""Fixtures of unit tests: Megatron-Core on this process, and a vocabulary that needs no downloaded files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

if TYPE_CHECKING:
    from megatron.ltd.parallel.mesh import Mesh

_MERGES = ["Ġ t", "h e", "Ġt he", "i n", "r e", "o n", "Ġ a", "e r", "Ġ Ġ", "ĠĠ ĠĠ", "in g"]


@pytest.fixture(scope="session")
def small_bpe(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    """A GPT-2 tokenizer's vocabulary file and merge file with only a few merges."""
    folder = tmp_path_factory.mktemp("bpe")
    pieces = [*byte_alphabet(), *(merge.replace(" ", "") for merge in _MERGES), END_OF_TEXT]
    (folder / "encoder.json").write_text(json.dumps({piece: token for token, piece in enumerate(pieces)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *_MERGES, ""]), encoding="utf-8")
    return TokenizerFiles("GPT2BPETokenizer", str(folder / "encoder.json"), str(folder / "vocab.bpe"))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Megatron-Core's process groups over this process alone, on the CPU."""
    from tests.support import world  # imports torch, which most unit tests do not need

    with world() as mesh:
        yield mesh
