"""Hugging Face's GPT-2: its config.json as our flags, and its tensors as Megatron-Core's. No torch.

    theirs (l = h.0, h.1, ...)        ours (l = decoder.layers.0, ...)
    wte [V, H]                        embedding.word_embeddings [V padded, H]
    wpe [positions, H]                embedding.position_embeddings
    l.ln_1, l.ln_2 [H]                l.self_attention.linear_qkv.layer_norm_..., l.mlp.linear_fc1.layer_norm_...
    l.attn.c_attn [H, 3H]             l.self_attention.linear_qkv [3H, H]
    l.attn.c_proj [H, H]              l.self_attention.linear_proj [H, H]
    l.mlp.c_fc [H, 4H]                l.mlp.linear_fc1 [4H, H]
    l.mlp.c_proj [4H, H]              l.mlp.linear_fc2 [H, 4H]
    ln_f [H]                          decoder.final_layernorm

Two things differ but the names. Theirs are ``Conv1D``, which stores [in, out]. And c_attn holds all queries, then all
keys, then all values; linear_qkv holds a head's query, key and value together, head after head.

Our names are those of a checkpoint with a layer's number in it: the same with and without Transformer Engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "gpt2"
PREFIX = "transformer."
"""What a language model's names begin with, and a bare model's do not."""

_TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
_BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which older files hold


@dataclass(frozen=True)
class Counterpart:
    """The tensor of theirs behind one of ours."""

    name: str
    """Without ``PREFIX``."""
    shape: tuple[int, ...]
    """Theirs."""
    to_ours: Callable[[Tensor], Tensor]
    is_vocabulary: bool = False
    """A row for each token id: ours may have more rows, which pad it."""


def model_flags(file: ConfigFile) -> dict[str, Any]:
    """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` for one that is no such GPT-2."""
    for name, value in _FIXED.items():
        if file.switch(name, value) is not value:
            raise file.refusal(name, f"only models with {str(value).lower()} there can be loaded; take another model")
    activation = file.entries.get("activation_function", _TANH_GELUS[0])
    if activation not in (*_TANH_GELUS, "gelu"):
        raise file.refusal("activation_function", f"only gelu and {', '.join(_TANH_GELUS)} can be loaded")
    hidden_size, positions = file.size("n_embd"), file.size("n_positions")
    return {
        "num_layers": file.size("n_layer"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": file.size("n_inner", 4 * hidden_size),
        "num_attention_heads": file.size("n_head"),
        "seq_length": positions,
        "max_position_embeddings": positions,
        "norm_epsilon": file.number("layer_norm_epsilon", 1e-5),
        "openai_gelu": activation in _TANH_GELUS,
        "tied_embeddings": file.switch("tie_word_embeddings", True),
        "attention_dropout": file.number("attn_pdrop", 0.1),
        "hidden_dropout": file.number("resid_pdrop", 0.1),
    }


def counterparts(model: ModelConfig, vocab_size: int) -> dict[str, Counterpart]:
    """Of every tensor of ours, the one of theirs. ``vocab_size`` is theirs, not padded."""
    hidden, mlp = model.hidden_size, model.mlp_size
    ours = {
        "embedding.word_embeddings.weight": Counterpart("wte.weight", (vocab_size, hidden), _same, is_vocabulary=True),
        "embedding.position_embeddings.weight": Counterpart("wpe.weight", (model.learned_positions, hidden), _same),
        "decoder.final_layernorm.weight": Counterpart("ln_f.weight", (hidden,), _same),
        "decoder.final_layernorm.bias": Counterpart("ln_f.bias", (hidden,), _same),
    }
    if not model.tied_embeddings:
        head = Counterpart("lm_head.weight", (vocab_size, hidden), _same, is_vocabulary=True)
        ours["output_layer.weight"] = head
    interleaved = partial(_heads_together, num_heads=model.num_attention_heads)
    for number in range(model.num_layers):
        to, of = f"decoder.layers.{number}.", f"h.{number}."
        ours |= _norm(f"{to}self_attention.linear_qkv.layer_norm_", f"{of}ln_1.", hidden)
        ours |= _linear(f"{to}self_attention.linear_qkv.", f"{of}attn.c_attn.", hidden, 3 * hidden, interleaved)
        ours |= _linear(f"{to}self_attention.linear_proj.", f"{of}attn.c_proj.", hidden, hidden)
        ours |= _norm(f"{to}mlp.linear_fc1.layer_norm_", f"{of}ln_2.", hidden)
        ours |= _linear(f"{to}mlp.linear_fc1.", f"{of}mlp.c_fc.", hidden, mlp)
        ours |= _linear(f"{to}mlp.linear_fc2.", f"{of}mlp.c_proj.", mlp, hidden)
    return ours


def is_left_out(name: str, model: ModelConfig) -> bool:
    """Whether a tensor of theirs has no counterpart and needs none: a buffer, or a copy of the tied embedding."""
    return _BUFFERS.fullmatch(name) is not None or (model.tied_embeddings and name == "lm_head.weight")


def _norm(ours: str, theirs: str, size: int) -> dict[str, Counterpart]:
    return {f"{ours}{kind}": Counterpart(f"{theirs}{kind}", (size,), _same) for kind in ("weight", "bias")}


def _linear(
    ours: str, theirs: str, inputs: int, outputs: int, arrange: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Counterpart]:
    """Weight and bias of a linear layer; ``arrange`` puts the rows [outputs, ...] of either in our order."""
    arrange = arrange or _same
    return {
        f"{ours}weight": Counterpart(f"{theirs}weight", (inputs, outputs), lambda weight: arrange(weight.T)),
        f"{ours}bias": Counterpart(f"{theirs}bias", (outputs,), arrange),
    }


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _heads_together(rows: Tensor, num_heads: int) -> Tensor:
    """[3, heads, head size] rows -> [heads, 3, head size] rows, flat before and after."""
    return rows.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)
