"""Pairs of our model and Hugging Face's with the same random weights, and random texts to evaluate them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.reference.gpt2_folder import gpt2_config
from tests.reference.names import gpt2_tensors, llama_tensors, megatron_tensors
from tests.reference.plain_gpt import PlainConfig, PlainGPT
from tests.support import VOCAB_SIZE, build_core_model, load_weights, small_model

LENGTH = 24
"""Sequence length of the models, in tokens."""
_SEED = 4
"""Seed of weights with which greedy decoding does not repeat one token forever."""


@dataclass(frozen=True)
class Pair:
    """The same model in our implementation and in Hugging Face's."""

    ours: CausalLM
    theirs: Any
    config: ModelConfig

    def log_softmax(self, tokens: Any) -> Tensor:
        """Log-probabilities of Hugging Face's model for one text, [S, V]."""
        with torch.no_grad():
            return self.theirs(torch.tensor([list(tokens)])).logits[0].log_softmax(-1)

    def greedy(self, prompt: Any, new_tokens: int) -> list[int]:
        """The greedy continuation of one prompt by Hugging Face's model; no token ends it early."""
        tokens = torch.tensor([list(prompt)])
        found = self.theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return found[0, len(prompt) :].tolist()


def gpt2_pair(mesh: Mesh) -> Pair:
    """A GPT-2: learned positions, LayerNorm, GELU, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    plain = PlainConfig(learned_positions=LENGTH, tanh_gelu=True)
    config = small_model(seq_length=LENGTH, openai_gelu=True)
    theirs = GPT2LMHeadModel(GPT2Config(**gpt2_config(plain)))
    return _pair(mesh, config, plain, theirs, gpt2_tensors)


def llama_pair(mesh: Mesh) -> Pair:
    """A Llama: RoPE, RMSNorm, SwiGLU, two key-value heads for four query heads, untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    plain = PlainConfig(groups=2, rms_norm=True, swiglu=True, bias=False, tied=False)
    config = small_model(
        seq_length=LENGTH, position_embedding_type="rope", normalization="RMSNorm", swiglu=True,
        add_bias_linear=False, group_query_attention=True, num_query_groups=2, tied_embeddings=False,
    )  # fmt: skip
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
    )
    return _pair(mesh, config, plain, theirs, llama_tensors)


def _pair(mesh: Mesh, config: ModelConfig, plain: PlainConfig, theirs: Any, names: Any) -> Pair:
    weights = PlainGPT(plain, _SEED).state_dict()
    core_model = build_core_model(config, mesh)
    load_weights(core_model, megatron_tensors(weights, plain))
    missing, unexpected = theirs.load_state_dict(names(weights, plain), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    theirs.tie_weights()
    return Pair(CausalLM(core_model, config, VOCAB_SIZE, mesh), theirs.eval(), config)


def random_texts(lengths: list[int], seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist()) for length in lengths]
