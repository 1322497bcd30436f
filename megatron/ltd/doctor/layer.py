"""A small model of the product on the device that a run would take: does dropping tokens compute what it should?

At K = S the model equals the dense one, gradients included. At K = S / 2 a layer's kept tokens equal the same layer run
on them alone, and the others come out as they went in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.doctor.finding import NOTE, OK, WRONG, Finding
from megatron.ltd.errors import RunStopped, UserError, first_line
from megatron.ltd.layers import route
from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh, initialize

_SEQ_LENGTH, _LAYERS, _VOCABULARY, _SEED = 64, 3, 128, 1
_TOLERANCE = 1e-4  # fp32 on a GPU; on a CPU both ways give the same bits


def check() -> Iterator[Finding]:
    """What was compared, or where it differs; then a note about kernels that are slow on this device."""
    started = time.monotonic()
    try:
        with initialize(ParallelConfig()) as mesh:
            complaint, kernels, slow = _complaint(mesh)
            device = mesh.device.type
    except (UserError, RunStopped, RuntimeError, ImportError) as error:
        yield Finding(
            WRONG, "layer", f"a small model does not run ({first_line(error)})", "install the pinned versions"
        )
        return
    if complaint is not None:
        yield Finding(WRONG, "layer", f"on {device} {complaint}", "install the pinned versions (tools/setup_env.sh)")
        return
    seconds = time.monotonic() - started
    text = f"on {device} kept tokens compute as the dense layer does, {kernels}, {seconds:.1f} s"
    yield Finding(OK, "layer", text)
    yield from (Finding(NOTE, "kernels", line.removeprefix("warning: ")) for line in slow)


def _complaint(mesh: Mesh) -> tuple[str | None, str, list[str]]:
    """What is wrong with a small model, the kernels that it runs on, and a line for each that is slow in bfloat16."""
    from megatron.ltd.models.gpt import build_chunks
    from megatron.ltd.models.kernels import kernels_text, slow_kernels
    from megatron.ltd.models.transformer import transformer_config

    route.install()
    model = ModelConfig(
        num_layers=_LAYERS, hidden_size=64, num_attention_heads=4, seq_length=_SEQ_LENGTH,
        attention_dropout=0.0, hidden_dropout=0.0,
    )  # fmt: skip
    core_config = transformer_config(model, ParallelConfig(), PrecisionConfig(), RecomputeConfig(), mesh)
    (gpt,) = build_chunks(model, core_config, _VOCABULARY, mesh, seed=_SEED)
    flags: dict[str, Any] = {"ltd_min_kept_tokens": _SEQ_LENGTH // 2, "ltd_growth_steps": 1, "ltd_granularity": 1}
    method = RandomLTD.build(RandomLTDConfig(random_ltd=True, **flags), ModelFacts(_LAYERS, _SEQ_LENGTH, _SEED))
    samples = Samples(torch.arange(2, device=mesh.device))
    half, full = (Route(method.plan(step), method, samples) for step in (0, 1))

    kernels = kernels_text([gpt], mesh.device)
    at_full, at_dense = (_gradients(gpt, chosen, mesh) for chosen in (full, None))
    if not all(map(torch.equal, at_full, at_dense)):
        return "the loss or a gradient at full length is not the dense model's", kernels, []
    complaint = _layer_complaint(gpt.decoder.layers[1], half, mesh)
    return complaint, kernels, slow_kernels([gpt.bfloat16()], mesh.device)


def _gradients(gpt: torch.nn.Module, chosen: Route | None, mesh: Mesh) -> list[Tensor]:
    """The loss of a fixed batch under a route, or of the dense model, and every parameter's gradient."""
    tokens_BS = (torch.arange(2 * _SEQ_LENGTH, device=mesh.device) * 7 % _VOCABULARY).view(2, _SEQ_LENGTH)
    positions_BS = torch.arange(_SEQ_LENGTH, device=mesh.device).expand(2, -1)
    gpt.zero_grad()
    with use_route(chosen):
        loss = gpt(tokens_BS, positions_BS, None, labels=tokens_BS).mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in gpt.parameters() if p.grad is not None)]


def _layer_complaint(layer: torch.nn.Module, chosen: Route, mesh: Mesh) -> str | None:
    """How ``layer`` under a route differs from the same layer on the kept tokens alone, or None."""
    hidden_SBH = torch.linspace(-1, 1, _SEQ_LENGTH * 2 * 64, device=mesh.device).sin().view(_SEQ_LENGTH, 2, 64)
    kept = chosen.kept_tokens(layer.layer_number)  # type: ignore[arg-type]
    assert kept is not None
    index_KBH = kept.kept_BK.t()[:, :, None].expand(-1, -1, hidden_SBH.shape[2])
    with torch.no_grad():
        with use_route(chosen):
            routed_SBH, _ = layer(hidden_SBH.clone(), attention_mask=None)
        with use_route(None):
            alone_KBH, _ = layer(hidden_SBH.gather(0, index_KBH), attention_mask=None)
    expected_SBH = hidden_SBH.scatter(0, index_KBH, alone_KBH)
    difference = float((routed_SBH - expected_SBH).detach().abs().max())
    return f"a layer on half of its tokens is off by {difference:.1e}" if not difference <= _TOLERANCE else None
