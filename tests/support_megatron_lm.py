"""Checkpoints as Megatron-LM's ``pretrain_gpt.py`` writes them, made with Megatron-Core's own model and its public
``dist_checkpointing.save``: nothing of ``megatron.ltd`` decides what is in them.
"""

from __future__ import annotations

import argparse
import multiprocessing.dummy
import queue
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

ITERATION = 5


def megatron_lm_args(**changes: Any) -> argparse.Namespace:
    """The namespace of a run's flags, as after Megatron-LM's ``validate_args``: plain values and others."""
    args = argparse.Namespace(
        num_layers=3, hidden_size=16, ffn_hidden_size=64, num_attention_heads=2, kv_channels=8,
        group_query_attention=False, num_query_groups=1, normalization="LayerNorm", norm_epsilon=1e-5, swiglu=False,
        squared_relu=False, openai_gelu=False, bias_gelu_fusion=False, add_bias_linear=True, add_qkv_bias=True,
        qk_layernorm=False, apply_layernorm_1p=False, attention_dropout=0.0, hidden_dropout=0.0, init_method_std=0.2,
        seq_length=16, max_position_embeddings=16, position_embedding_type="learned_absolute", rotary_base=10000,
        rotary_percent=1.0, rotary_interleaved=False, use_rope_scaling=False, rope_scaling_factor=8.0,
        untie_embeddings_and_output_weights=False, num_experts=None, multi_latent_attention=False, window_size=None,
        tokenizer_type="NullTokenizer", vocab_size=256, make_vocab_size_divisible_by=128, tensor_model_parallel_size=1,
        padded_vocab_size=384, params_dtype=torch.float32, attention_backend=AttnBackend.auto,
        exit_signal=signal.SIGTERM, data_path=["1.0", "books"], rank=0, iteration=ITERATION,
    )  # fmt: skip
    vars(args).update(changes)
    return args


def core_model(args: argparse.Namespace) -> GPTModel:
    """Megatron-Core's model of ``args`` as Megatron-LM builds it with ``--transformer-impl local``, with random weights
    and biases. Within ``world()``.
    """
    fused_gelu = args.bias_gelu_fusion and not args.swiglu
    config = TransformerConfig(
        num_layers=args.num_layers, hidden_size=args.hidden_size, ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads, kv_channels=args.kv_channels,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        normalization=args.normalization, layernorm_epsilon=args.norm_epsilon, add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias, qk_layernorm=args.qk_layernorm, gated_linear_unit=args.swiglu,
        activation_func=F.silu if args.swiglu else F.gelu, bias_activation_fusion=fused_gelu,
        attention_dropout=0.0, hidden_dropout=0.0, init_method_std=args.init_method_std, use_cpu_initialization=True,
        masked_softmax_fusion=False,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization=args.normalization)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):  # which earlier models may have set
            patch.delenv(name, raising=False)
        model = GPTModel(
            config, spec, args.padded_vocab_size, args.max_position_embeddings,
            share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
            position_embedding_type=args.position_embedding_type, rotary_percent=args.rotary_percent,
            rotary_base=args.rotary_base, rope_scaling=args.use_rope_scaling,
        )  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw) * 0.2
            parameter.copy_(noise + 1 if name.endswith("norm.weight") else noise)
    model.eval()
    model_parallel_cuda_manual_seed(1)  # attention asks for a state of dropout, also without any
    return model


def core_logits(model: GPTModel, tokens_BS: Tensor) -> Tensor:
    """The logits of a model of Megatron-Core, [B, S, V]."""
    length = tokens_BS.shape[1]
    hidden_BS = torch.arange(length).expand_as(tokens_BS)
    masked = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    with torch.no_grad():
        return model(tokens_BS, hidden_BS, masked)


def save_megatron_lm(folder: Path, model: GPTModel, args: argparse.Namespace, **more: Any) -> Path:
    """Save ``model`` as iteration 5 of a run of Megatron-LM in ``folder``; ``more`` replaces parts of the state."""
    checkpoint = folder / f"iter_{ITERATION:07d}"
    checkpoint.mkdir(parents=True)
    weights = model.sharded_state_dict(metadata={"singleton_local_shards": False})
    first = torch.ones(7)
    random_state = {"random_rng_state": random.getstate(), "torch_rng_state": torch.get_rng_state()}
    state: dict[str, Any] = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "model": weights,
        "optimizer": {
            "optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1]}]},
            "state": {0: ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.decoder.a", first)},
            "grad_scaler": {"scale": torch.ones(1)},
        },
        "opt_param_scheduler": {"max_lr": 1e-3, "num_steps": 20, "lr_decay_style": "cosine"},
        "rng_state": ShardedObject("rng_state", [random_state], (1, 1), (0, 0), replica_id=0),
        "num_floating_point_operations_so_far": 10**20,
        **more,
    }
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # Threads write the files in place of processes that Megatron-Core forks from this one, with all its threads.
        patch.setattr(filesystem_async.mp, "get_context", lambda method: multiprocessing.dummy)
        patch.setattr(filesystem_async, "_results_queue", queue.SimpleQueue())
        dist_checkpointing.save(
            state, str(checkpoint), content_metadata={"distrib_optim_sharding_type": "dp_reshardable"}
        )
    (folder / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    return checkpoint
