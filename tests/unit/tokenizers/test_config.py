"""The vocabulary size that a model is built for, and values that are refused."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.tokenizers.config import TokenizerConfig, model_vocab_size, padded_vocab_size
from tests.support_errors import refused


def test_padding_is_megatron_lms_of_one_rank_on_every_layout() -> None:
    # GPT-2's 50257 ids are padded to 50304 on one rank; Megatron-LM pads to 51200 under tensor parallelism 8.
    assert {padded_vocab_size(50257, 128, tensor_parallel) for tensor_parallel in (1, 2, 4, 8)} == {50304}
    assert padded_vocab_size(50257, 128 * 8, 8) == 51200


@given(vocab=st.integers(1, 300_000), divisor=st.integers(1, 512), ranks=st.integers(1, 16))
def test_padding_is_the_smallest_multiple(vocab: int, divisor: int, ranks: int) -> None:
    padded = padded_vocab_size(vocab, divisor, ranks)
    assert padded % divisor == padded % ranks == 0
    smaller = range(padded - 1, vocab - 1, -1)
    assert padded >= vocab and not any(size % divisor == size % ranks == 0 for size in smaller)


def test_vocab_size_enlarges_the_model_and_never_cuts_the_tokenizer() -> None:
    assert model_vocab_size(TokenizerConfig(vocab_size=1001, make_vocab_size_divisible_by=8), 257, 2) == 1008
    assert model_vocab_size(TokenizerConfig(make_vocab_size_divisible_by=8), 257, 1) == 264
    with refused("--vocab-size 256", 256, 257):
        model_vocab_size(TokenizerConfig(vocab_size=256), 257, 1)


def test_an_unknown_type_is_refused() -> None:
    with refused("--tokenizer-type Words"):
        TokenizerConfig(tokenizer_type="Words")


def test_tokenizers_and_preprocessing_start_without_torch() -> None:
    names = [
        "tokenizers.build",
        "data.train_tokenizer",
        "data.builtin.corpus",
        "data.preprocess",
        "data.train_wordpiece",
    ]
    code = f"import sys\nfor name in {names!r}: __import__('megatron.ltd.' + name)\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'megatron.core')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
