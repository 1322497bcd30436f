"""Starting from a checkpoint of Megatron-LM on several ranks: each loads its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.jobs import pieces
from tests.distributed.layouts import LAYOUTS
from tests.distributed.runs import Runs, whole
from tests.support import world
from tests.support_megatron_lm import core_model, megatron_lm_args, save_megatron_lm

pytestmark = pytest.mark.distributed


def test_all_ranks_together_load_every_weight(runs: Runs, tmp_path: Path) -> None:
    args = megatron_lm_args(
        num_layers=6, hidden_size=32, ffn_hidden_size=128, num_attention_heads=4, max_position_embeddings=32,
        make_vocab_size_divisible_by=8, padded_vocab_size=264,
    )  # fmt: skip
    with world():
        model = core_model(args)
        save_megatron_lm(tmp_path, model, args)
        saved = whole([pieces(model.sharded_state_dict())])
    layout = LAYOUTS["pp2 interleaved dp2 sharded overlaps"]
    loaded = whole(runs.run(layout, "--finetune", "--load", str(tmp_path)).initial_weights)
    assert loaded.keys() == saved.keys()
    assert not [name for name in saved if not np.array_equal(loaded[name], saved[name])]
