"""Seeds of the random streams. All random numbers are a pure function of the run's seed and of what they are drawn for.

    initial weights   (seed, layer number)      the same under every pipeline layout, and on a CPU under every layout
    dropout           (seed, step, place)       ranks with other samples, layers or tokens draw other numbers

A checkpoint therefore stores no random state, and a resumed run draws what an uninterrupted one draws. Kept tokens are
not drawn from streams at all (``routing.sampling``).
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.random import initialize_rng_tracker

from megatron.ltd.parallel.mesh import Mesh

_SEEDS = 2**31 - 2**16  # seeds stay below this, so that Megatron-Core's offsets by rank keep them in 31 bits
_SEED, _STEP, _PLACE, _LAYER = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F  # large odd factors


def seed_weights(seed: int, layer_number: int = 0) -> None:
    """Seed the streams for the initial weights of a layer, or with 0 of what comes before the first layer."""
    _start_streams(seed * _SEED + layer_number * _LAYER)


def seed_step(seed: int, step: int, mesh: Mesh) -> None:
    """Seed the streams of the 0-based ``step``. Tensor-parallel ranks share one, and each has another of its own."""
    _start_streams(seed * _SEED + (step + 1) * _STEP + mesh.place * _PLACE)


def use_graphable_streams() -> None:
    """Hold the streams of dropout as generators, which CUDA graphs can register, in place of their states."""
    initialize_rng_tracker(use_cudagraphable_rng=True, force_reset=True)


def _start_streams(mixed: int) -> None:
    registered = get_cuda_rng_tracker().get_states()
    torch.default_generator.manual_seed(mixed % _SEEDS)
    model_parallel_cuda_manual_seed(mixed % _SEEDS)  # those of the GPU, and of dropout on any device
    states = get_cuda_rng_tracker().get_states()
    for name, generator in registered.items():
        if isinstance(generator, torch.Generator):  # graphs draw from this one
            generator.manual_seed(states[name].initial_seed())
            states[name] = generator
    get_cuda_rng_tracker().set_states(states)
