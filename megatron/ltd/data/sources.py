"""The indexed datasets that a run reads, checked.

Every rank reads headers and sizes; the first one reads all indices and a sample of the token ids. A blend may have
thousands of datasets. Imports torch only to know the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron.ltd.data.config import IndexedDataConfig
from megatron.ltd.data.core_builder import is_first_rank
from megatron.ltd.data.indexed import SAMPLE_BYTES, IndexedInfo, check_content, describe
from megatron.ltd.errors import UserError
from megatron.ltd.parallel.agreement import together
from megatron.ltd.tokenizers.base import Tokenizer

Sources = Mapping[str, tuple[IndexedInfo, ...]]
"""The content of the datasets of each blend of ``IndexedDataConfig.blends``, in the given order."""


def check_sources(config: IndexedDataConfig, tokenizer: Tokenizer) -> Sources:
    """What all datasets of the flags hold, see ``describe``; nothing for mock data.

    Raises ``UserError`` if no data are given, or a dataset is missing, truncated or made with another tokenizer.
    """
    blends = config.blends()
    if not blends and not getattr(config, "mock_data", False):
        raise UserError("--data-path: required; give the prefix that preprocess_data.py wrote")
    return {
        key: tuple(
            describe(prefix, tokenizer.vocab_size, tokenizer.fingerprint, flag_spelling=blend.flag)
            for prefix in blend.prefixes
        )
        for key, blend in blends.items()
    }


def check_contents(config: IndexedDataConfig, sources: Sources, tokenizer: Tokenizer) -> None:
    """Read all indices, and a sample of the token ids, on the first rank; every rank calls this.

    Raises ``UserError`` for a damaged dataset.
    """
    with together():
        if not is_first_rank():
            return
        share = SAMPLE_BYTES // max(1, sum(map(len, sources.values())))
        for key, blend in config.blends().items():
            for info in sources[key]:
                check_content(info, tokenizer.vocab_size, flag_spelling=blend.flag, sample_bytes=share)
