"""A reference GPT in plain PyTorch that drops tokens and layers, one sample at a time.

S sequence, K kept tokens of a layer, T tokens that they attend to, H hidden, N query heads, G key-value heads, D head
size, V vocabulary.

Every step is written out with indices: a layer takes the rows of its kept tokens, rotates queries and keys by the
angles of their positions, masks a full K x T score matrix, and writes its output back. The code is slow, and shares
nothing with the library: no fused kernels, no batch dimension, separate matrices for queries, keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainConfig:
    """The shape of the model. If ``learned_positions`` is 0, it uses RoPE."""

    num_layers: int = 3
    hidden_size: int = 24
    heads: int = 4
    groups: int = 4
    head_size: int = 6
    mlp_size: int = 40
    vocab_size: int = 32
    learned_positions: int = 0
    rotary_base: float = 10000.0
    rms_norm: bool = False
    swiglu: bool = False
    tanh_gelu: bool = False
    bias: bool = True
    tied: bool = True
    epsilon: float = 1e-5


class PlainNorm(nn.Module):
    """LayerNorm, or RMSNorm, which has no bias and does not subtract the mean."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = None if config.rms_norm else nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * self.weight
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * self.weight + self.bias


class PlainLayer(nn.Module):
    """A pre-norm transformer layer that computes on some of the tokens."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        hidden, mlp = config.hidden_size, config.mlp_size
        self.attention_norm = PlainNorm(config)
        self.query = nn.Linear(hidden, config.heads * config.head_size, config.bias)
        self.key = nn.Linear(hidden, config.groups * config.head_size, config.bias)
        self.value = nn.Linear(hidden, config.groups * config.head_size, config.bias)
        self.out = nn.Linear(config.heads * config.head_size, hidden, config.bias)
        self.mlp_norm = PlainNorm(config)
        self.gate = nn.Linear(hidden, mlp, config.bias) if config.swiglu else None
        self.up = nn.Linear(hidden, mlp, config.bias)
        self.down = nn.Linear(mlp, hidden, config.bias)

    def forward(
        self, x_SH: Tensor, queries_K: Tensor, keys_T: Tensor, forbidden_KT: Tensor, scale: float = 1.0
    ) -> Tensor:
        """Return the layer's output at positions ``queries_K``, [K, H], which attend to the positions ``keys_T``."""
        read_TH = self.attention_norm(x_SH[keys_T])
        x_KH = x_SH[queries_K]
        attention_KH = self.attention(self.attention_norm(x_KH), read_TH, queries_K, keys_T, forbidden_KT)
        x_KH = x_KH + scale * attention_KH
        return x_KH + scale * self.mlp(self.mlp_norm(x_KH))

    def attention(
        self, x_KH: Tensor, read_TH: Tensor, queries_K: Tensor, keys_T: Tensor, forbidden_KT: Tensor
    ) -> Tensor:
        size = self.config.head_size
        queries, keys, values = self.query(x_KH), self.key(read_TH), self.value(read_TH)
        outputs = []
        for head in range(self.config.heads):
            group = head // (self.config.heads // self.config.groups)
            query_KD = queries[:, head * size : (head + 1) * size]
            key_TD = keys[:, group * size : (group + 1) * size]
            if not self.config.learned_positions:
                query_KD, key_TD = self.turn(query_KD, queries_K), self.turn(key_TD, keys_T)
            scores_KT = (query_KD @ key_TD.T / math.sqrt(size)).masked_fill(forbidden_KT, -math.inf)
            weights_KT = scores_KT.exp() / scores_KT.exp().sum(-1, keepdim=True)
            outputs.append(weights_KT @ values[:, group * size : (group + 1) * size])
        return self.out(torch.cat(outputs, dim=-1))

    def turn(self, x_KD: Tensor, positions_K: Tensor) -> Tensor:
        """Apply RoPE: rotate channel pair (i, i + D/2) by position * base^(-2i/D)."""
        half = self.config.head_size // 2
        turned = torch.empty_like(x_KD)
        for i in range(half):
            angle_K = positions_K * self.config.rotary_base ** (-2.0 * i / self.config.head_size)
            cosine, sine = angle_K.cos(), angle_K.sin()
            turned[:, i] = x_KD[:, i] * cosine - x_KD[:, i + half] * sine
            turned[:, i + half] = x_KD[:, i + half] * cosine + x_KD[:, i] * sine
        return turned

    def mlp(self, x_KH: Tensor) -> Tensor:
        up = self.up(x_KH)
        if self.gate is not None:
            gate = self.gate(x_KH)
            return self.down(gate / (1 + (-gate).exp()) * up)
        if self.config.tanh_gelu:
            return self.down(0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))))
        return self.down(0.5 * up * (1 + torch.erf(up / math.sqrt(2))))


def run_layers(
    layers: Iterable[nn.Module],
    x_SH: Tensor,
    kept: Mapping[int, Tensor] | None,
    entry_layers: Collection[int],
    scale: Mapping[int, float] | None,
    forbidden: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The output of the layers, [S, H]; see ``PlainGPT.forward``.

    ``forbidden`` makes the mask of positions [K] that may not attend to positions [T]; by default there is none.
    """
    everything_S = torch.arange(len(x_SH))
    for layer_number, layer in enumerate(layers, start=1):
        positions_K = everything_S if kept is None else kept.get(layer_number, everything_S)
        keys_T = everything_S if layer_number in entry_layers else positions_K
        factor = 1.0 if scale is None else scale.get(layer_number, 1.0)
        if factor == 0.0 or not len(positions_K):
            continue
        free_KT = torch.zeros(len(positions_K), len(keys_T), dtype=torch.bool)
        forbidden_KT = free_KT if forbidden is None else forbidden(positions_K, keys_T)
        x_SH = x_SH.index_put((positions_K,), layer(x_SH, positions_K, keys_T, forbidden_KT, factor))
    return x_SH


def draw_parameters(module: nn.Module, seed: int) -> None:
    """Draw every parameter at random, including biases and norms, so that each influences the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


class PlainGPT(nn.Module):
    """Embeddings, layers, final norm and LM head, with all parameters random, including biases and norms."""

    def __init__(self, config: PlainConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        rows = config.learned_positions
        self.positions = nn.Embedding(rows, config.hidden_size) if rows else None
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_layers))
        self.norm = PlainNorm(config)
        self.head = None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        draw_parameters(self, seed)

    def forward(
        self,
        tokens_S: Tensor,
        *,
        position_ids_S: Tensor | None = None,
        document_S: Tensor | None = None,
        kept: Mapping[int, Tensor] | None = None,
        entry_layers: Collection[int] = (),
        scale: Mapping[int, float] | None = None,
    ) -> Tensor:
        """Return the logits [S, V].

        ``kept[layer_number]`` lists the positions that a layer computes on; by default all. They attend to each other,
        and in ``entry_layers`` to all positions, kept or not. ``scale[layer_number]`` multiplies the output of each
        sublayer; the default is 1, and 0 skips the layer. ``document_S`` numbers the document of each token, if
        documents must not attend to each other.
        """
        everything_S = torch.arange(len(tokens_S))
        x_SH = self.tokens(tokens_S)
        if self.positions is not None:
            x_SH = x_SH + self.positions(everything_S if position_ids_S is None else position_ids_S)

        def forbidden(positions_K: Tensor, keys_T: Tensor) -> Tensor:
            later_KT = keys_T[None, :] > positions_K[:, None]
            if document_S is None:
                return later_KT
            return later_KT | (document_S[keys_T][None, :] != document_S[positions_K][:, None])

        x_SH = run_layers(self.layers, x_SH, kept, entry_layers, scale, forbidden)
        head = self.tokens.weight if self.head is None else self.head.weight
        return self.norm(x_SH) @ head.T

    def token_losses(self, labels_S: Tensor, logits_SV: Tensor) -> Tensor:
        """Cross-entropy of each token, [S]."""
        return logits_SV.logsumexp(-1) - logits_SV[torch.arange(len(labels_S)), labels_S]
