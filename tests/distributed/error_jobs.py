"""Jobs for tests of errors that all ranks report: each runs the command on one rank and returns how it ended.

The ranks differ as nodes of a cluster may: in their flags, in the folder they see, or in the tokens they keep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from megatron.core.datasets import gpt_dataset
from torch import Tensor

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.errors import RunStopped, UserError
from megatron.ltd.launch import launch
from megatron.ltd.methods.base import Samples
from megatron.ltd.methods.random_ltd.method import RandomLTD
from megatron.ltd.parallel import agreement


def end_of(flags: Sequence[Sequence[str]], folders: Sequence[str] | None = None) -> tuple[str, str]:
    """Run with this rank's flags in this rank's folder; return "done" or the name of the error, and its line."""
    rank = int(os.environ["RANK"])
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "_FOLDER_SECONDS", 1.0)
        try:
            os.chdir(folders[rank] if folders else before)
            launch(parse_run_config(list(flags[rank])))
        except (UserError, RunStopped) as error:
            return type(error).__name__, str(error)
        finally:
            os.chdir(before)
    return "done", ""


def end_with_other_tokens(flags: Sequence[Sequence[str]], from_step: int) -> tuple[str, str]:
    """Like ``end_of``, but rank 1 keeps different tokens in layer 3 from step ``from_step`` on."""
    select = RandomLTD.select

    def other_select(self: RandomLTD, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> Tensor:
        kept_LBK = select(self, samples, layer_numbers, kept_tokens)
        if 3 in layer_numbers and kept_tokens >= self.schedule.at(from_step):
            kept_LBK[layer_numbers.index(3)] = select(self, Samples(samples.sample_ids_B + 1), [3], kept_tokens)[0]
        return kept_LBK

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(RandomLTD, "select", other_select)
        return end_of(flags)


def end_with_another_shuffle(flags: Sequence[Sequence[str]], folders: Sequence[str]) -> tuple[str, str]:
    """Like ``end_of``, but rank 1 shuffles its samples in reverse."""
    shuffle = gpt_dataset._build_shuffle_index
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(gpt_dataset, "_build_shuffle_index", lambda *arguments: shuffle(*arguments)[::-1].copy())
        return end_of(flags, folders)
