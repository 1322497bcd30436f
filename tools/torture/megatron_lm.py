"""A checkpoint as Megatron-LM's ``pretrain_gpt.py`` saves it, made with Megatron-Core's own model and ``save``.

iter_0000005/: .metadata, common.pt with the flags as a pickled namespace, metadata.json, __0_*.distcp
latest_checkpointed_iteration.txt

The model is a small GPT-3 with ``--openai-gelu`` and random weights. Not here: other models, which the tests of such
checkpoints make.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

_ITERATION = 5
FLAGS: dict[str, Any] = {
    "num_layers": 3, "hidden_size": 16, "ffn_hidden_size": 64, "num_attention_heads": 2, "kv_channels": 8,
    "group_query_attention": False, "num_query_groups": 1, "normalization": "LayerNorm", "norm_epsilon": 1e-5,
    "swiglu": False, "squared_relu": False, "openai_gelu": False, "bias_gelu_fusion": True, "add_bias_linear": True,
    "add_qkv_bias": True, "qk_layernorm": False, "apply_layernorm_1p": False, "attention_dropout": 0.0,
    "hidden_dropout": 0.0, "init_method_std": 0.2, "seq_length": 16, "max_position_embeddings": 16,
    "position_embedding_type": "learned_absolute", "rotary_base": 10000, "rotary_percent": 1.0,
    "rotary_interleaved": False, "use_rope_scaling": False, "untie_embeddings_and_output_weights": False,
    "num_experts": None, "multi_latent_attention": False, "window_size": None, "tokenizer_type": "NullTokenizer",
    "vocab_size": 256, "make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 1, "padded_vocab_size": 384,
    "data_path": ["1.0", "books"], "iteration": _ITERATION,
}  # fmt: skip
"""The flags that decide about the model, and some of others."""


def save_as_megatron_lm(folder: Path) -> None:
    """Save iteration 5 of a run of Megatron-LM in ``folder``. In a process of its own: it starts others."""
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from megatron.ltd.parallel.config import ParallelConfig
    from megatron.ltd.parallel.mesh import initialize

    checkpoint = folder / f"iter_{_ITERATION:07d}"
    checkpoint.mkdir(parents=True)
    with initialize(ParallelConfig(device="cpu")), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moments = ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.decoder.a", torch.ones(7))
        state = {
            "args": argparse.Namespace(**FLAGS),
            "checkpoint_version": 3.0,
            "iteration": _ITERATION,
            "model": _model().sharded_state_dict(metadata={"singleton_local_shards": False}),
            "optimizer": {"state": {0: moments}, "optimizer": {"param_groups": [{"lr": 1e-3, "params": [0]}]}},
            "opt_param_scheduler": {"max_lr": 1e-3, "num_steps": 20, "lr_decay_style": "cosine"},
            "num_floating_point_operations_so_far": 10**20,
        }
        sharing = {"distrib_optim_sharding_type": "dp_reshardable"}
        dist_checkpointing.save(state, str(checkpoint), content_metadata=sharing)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(_ITERATION))


def _model() -> Any:
    """Megatron-Core's model of ``FLAGS`` with random weights."""
    import torch
    import torch.nn.functional as F
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "init_method_std")
    config = TransformerConfig(
        **{name: FLAGS[name] for name in names}, activation_func=F.gelu, bias_activation_fusion=True,
        attention_dropout=0.0, hidden_dropout=0.0, use_cpu_initialization=True, masked_softmax_fusion=False,
    )  # fmt: skip
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(),
        FLAGS["padded_vocab_size"],
        FLAGS["max_position_embeddings"],
        share_embeddings_and_output_weights=True,
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw) * 0.2
            parameter.copy_(noise + 1 if name.endswith("norm.weight") else noise)
    return model
