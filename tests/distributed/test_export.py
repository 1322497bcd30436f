"""Checkpoints written by several ranks: export to Hugging Face's format in one process, and import for finetuning.

Exported models are loaded with Hugging Face's library and must compute the logits of our model in one process. Imported
models must load unchanged under any layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron.ltd.evaluation.load import load_model
from megatron.ltd.export.config import ExportConfig, ImportConfig
from megatron.ltd.export.from_hugging_face import import_model
from megatron.ltd.export.to_hugging_face import export_checkpoint
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.distributed.layouts import LAYOUTS, VARIANTS
from tests.distributed.runs import Runs, whole
from tests.support import world

pytestmark = pytest.mark.distributed

LLAMA = VARIANTS["RoPE"]
MODELS: Mapping[str, tuple[str, ...]] = {"GPT-2": (), "Llama": LLAMA}
CASES = [("tp2 pp2", "Llama"), ("tp2 pp2", "GPT-2"), ("pp2 interleaved dp2 sharded overlaps", "Llama")]


def exported(checkpoints: Path, folder: Path) -> Path:
    export_checkpoint(ExportConfig(load=str(checkpoints), output=str(folder), tokenizer=False), TokenizerFiles())
    return folder


@pytest.mark.parametrize(("layout", "model"), CASES, ids=[" ".join(case) for case in CASES])
def test_exported_model_computes_the_same_logits(runs: Runs, tmp_path: Path, layout: str, model: str) -> None:
    from transformers import AutoModelForCausalLM

    flags = (*MODELS[model], "--train-iters", "3", "--init-method-std", "0.2")
    runs.run(LAYOUTS[layout], *flags, "--save", str(tmp_path / "run"))
    theirs = AutoModelForCausalLM.from_pretrained(exported(tmp_path / "run", tmp_path / "theirs")).eval()
    tokens_BS = torch.randint(0, 257, (2, 32), generator=torch.Generator().manual_seed(0))
    positions_BS = torch.arange(32).expand_as(tokens_BS)
    with world() as mesh, torch.no_grad():
        ours = load_model(tmp_path / "run", TokenizerFiles(), ParallelConfig(device="cpu"), mesh).model
        expected = ours(tokens_BS, positions_BS, None)[..., :257]
        assert expected.std() > 0.3
        torch.testing.assert_close(theirs(tokens_BS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["tp2 sp", "tp2 pp2"])
def test_an_imported_model_is_finetuned_under_any_layout(runs: Runs, tmp_path: Path, layout: str) -> None:
    """Finetune with a negligible learning rate: the saved weights must be the imported ones, padding rows included."""
    files = TokenizerFiles("ByteTokenizer")
    runs.run(LAYOUTS["dp2"], *LLAMA, "--train-iters", "3", "--save", str(tmp_path / "run"))
    first = exported(tmp_path / "run", tmp_path / "first")
    config = ImportConfig(load=str(first), save=str(tmp_path / "imported"), make_vocab_size_divisible_by=8)
    import_model(config, files)
    still = ("--lr", "1e-30", "--weight-decay", "0", "--train-iters", "1", "--lr-warmup-iters", "0")
    more = ("--finetune", "--load", str(tmp_path / "imported"), "--make-vocab-size-divisible-by", "8")
    outcome = runs.run(LAYOUTS[layout], *LLAMA, *still, *more, "--save", str(tmp_path / "tuned"))
    loaded = whole(outcome.initial_weights)["embedding.word_embeddings.weight"]
    assert loaded.shape[0] == 264
    found, expected = (
        load_file(folder / "model.safetensors") for folder in (exported(tmp_path / "tuned", tmp_path / "again"), first)
    )
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
