"""Reasons for which we use internals of other libraries: a test that fails here means that an entry of
``docs/megatron-core.md``, and the code that it describes, is no longer needed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import megatron.core
import pytest
import torch
import torch.nn.functional as F
from megatron.core import jit
from megatron.core.datasets import bert_dataset, blended_dataset, gpt_dataset, masked_dataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.distributed import DistributedDataParallel, param_and_grad_buffer
from megatron.core.extensions import transformer_engine
from megatron.core.fusions import fused_bias_geglu
from megatron.core.models.bert import bert_lm_head
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.optimizer import muon
from megatron.core.tensor_parallel import random
from megatron.core.transformer import transformer_block, transformer_layer
from torch.distributed.checkpoint import filesystem

from megatron.ltd.megatron_lm.refused import MUON
from megatron.ltd.parallel.cpu_backend import _LITERAL_CUDA_MODULES


def source(of: ModuleType | type | Callable[..., Any]) -> str:
    return inspect.getsource(of)


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_recompute_carries_no_context() -> None:
    """Recompute has neither a context variable nor a hook around the recomputed function; so has that for fp8."""
    text = source(random.CheckpointFunction)
    assert "contextvars" not in text and parameters(random.checkpoint) == {
        "function", "distribute_saved_activations", "args",
    }  # fmt: skip
    assert "contextvars" not in source(transformer_engine.te_checkpoint)
    assert "te_checkpoint" in source(transformer_block) and "import te_checkpoint" in source(transformer_layer)


@pytest.mark.parametrize("name", _LITERAL_CUDA_MODULES)
def test_core_names_cuda(name: str) -> None:
    text = source(importlib.import_module(name))
    assert "cuda" in text and ("device=" in text or ".type()" in text)
    assert "torch.cuda.get_rng_state" in source(random) or "default_generators" in source(random)


def test_core_compiles_when_imported() -> None:
    """``torch.compile`` is chosen on import, and applied as a decorator; a switch before the import does not exist."""
    assert "jit_fuser = torch.compile" in source(jit) and source(jit).rstrip().endswith("enable_jit_fuser()")
    assert "@jit_fuser" in source(fused_bias_geglu) and "tensor_parallel" in source(megatron.core)


def test_core_has_several_collectives_in_flight() -> None:
    """A bucket's collective is launched by a private function of torch, without a setting to wait for it at once."""
    text = source(param_and_grad_buffer)
    assert "_coalescing_manager(communication_group, async_ops=async_op)" in text


def test_torch_adamw_keeps_its_step_in_a_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    assert isinstance(optimizer.state[weight]["step"], torch.Tensor) and "step" not in optimizer.param_groups[0]


def test_berts_head_has_a_global_norm() -> None:
    assert parameters(bert_lm_head.BertLMHead) == {"hidden_size", "config"}
    assert "self.layer_norm = LNImpl(" in source(bert_lm_head)


def test_berts_mask_has_no_public_setting() -> None:
    assert "self.attn_mask_dimensions = self._sanity_check" in source(BertModel)


@pytest.mark.parametrize("module", [gpt_dataset, masked_dataset, blended_dataset])
def test_core_reads_indices_with_pickles_allowed(module: ModuleType) -> None:
    loads = source(module).split("numpy.load(")[1:]
    assert loads and any("allow_pickle=True" in load.partition(")")[0] for load in loads)


def test_an_index_is_not_named_by_the_content_of_its_data() -> None:
    names = [*gpt_dataset.GPTDataset._key_config_attributes()]
    names += bert_dataset.BERTMaskedWordPieceDataset._key_config_attributes()
    assert "sequence_length" in names and not any("content" in name or "fingerprint" in name for name in names)


def test_core_builds_indices_on_rank_0_only() -> None:
    for module in (gpt_dataset, masked_dataset, blended_dataset):
        assert "torch.distributed.get_rank() == 0" in source(module)
    assert "torch.distributed.barrier()" in source(BlendedMegatronDatasetBuilder)


def test_the_builder_has_no_argument_for_the_blend() -> None:
    assert parameters(BlendedMegatronDatasetBuilder) == {"cls", "sizes", "is_built_on_rank", "config"}
    assert "BlendedDataset" in source(BlendedMegatronDatasetBuilder)


def test_torch_unpickles_the_metadata() -> None:
    assert "pickle.load(" in source(filesystem.FileSystemReader.read_metadata)


def test_places_of_tensors_have_a_private_class() -> None:
    assert not hasattr(filesystem, "StorageInfo") and "_StorageInfo(" in source(filesystem)


def test_core_starts_a_process_for_results() -> None:
    assert "Manager()" in source(filesystem_async._get_write_results_queue)


def test_the_writer_and_the_plan_meet_in_a_private_method() -> None:
    assert "self._get_save_and_finalize_callbacks(writer" in source(TorchDistSaveShardedStrategy.async_save)
    assert not {"writer", "storage_writer"} & parameters(TorchDistSaveShardedStrategy.async_save)


def test_causal_attention_has_no_public_backward() -> None:
    assert not [name for module in (torch, F) for name in dir(module) if "attention" in name and "backward" in name]


def test_core_calls_another_muon_than_is_released() -> None:
    """emerging-optimizers 0.3.0 takes ``nesterov`` and no ``use_nesterov``; then ``MUON`` is what a run answers."""
    assert "use_nesterov=use_nesterov" in source(muon.TensorParallelMuon)
    assert f"Megatron-Core {importlib.metadata.version('megatron-core')} " in MUON


def test_weights_are_gathered_by_hooks() -> None:
    assert "module.register_forward_pre_hook(" in source(DistributedDataParallel)


def test_the_profiler_has_no_public_allocations() -> None:
    assert not hasattr(torch.profiler, "EventType")


def test_argparse_has_no_list_of_spellings() -> None:
    assert not [name for name in dir(argparse.ArgumentParser) if "option" in name and not name.startswith("_")]


def test_lm_eval_models_score_in_a_private_method() -> None:
    assert "_loglikelihood_tokens" in pytest.importorskip("lm_eval.api.model").TemplateLM.__abstractmethods__


def test_lm_eval_asks_git() -> None:
    utils = pytest.importorskip("lm_eval.loggers.utils")
    assert '"git"' in source(utils.get_git_commit_hash) and "stderr" not in source(utils.get_git_commit_hash)


def test_transformers_has_no_squad_metrics() -> None:
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers 4 has them")
    assert not (Path(transformers.__path__[0]) / "data" / "metrics" / "squad_metrics.py").exists()
