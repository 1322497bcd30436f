"""Encoding in worker processes that die. What workers return is tested in ``test_preprocess``."""

from __future__ import annotations

from megatron.ltd.data.encode import EncodeOptions, encode_all
from megatron.ltd.data.inputs.documents import RawChunk
from megatron.ltd.data.inputs.files import InputFile
from megatron.ltd.tokenizers.byte import ByteTokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused


def test_a_worker_that_dies_ends_the_work() -> None:
    # A tokenizer that cannot be built ends a worker just as the system's out-of-memory killer does.
    options = EncodeOptions(TokenizerFiles("SentencePieceTokenizer"), ("text",), append_eod=True, skip_bad_lines=False)
    chunks = [RawChunk(InputFile("f.jsonl", 1, is_json=True), (b'{"text": "a"}\n',))] * 3
    with refused("--workers 2"):
        list(encode_all(chunks, options, ByteTokenizer(), workers=2))
