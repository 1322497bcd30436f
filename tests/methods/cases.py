"""How the tests switch each method on. A method in the registry gets the whole matrix by a line or two in ``CASES``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

on_every_model = pytest.mark.parametrize("flags", ["GPT", "BERT"], indirect=True)
"""For a test whose ``flags`` are then those of each model in turn."""


@dataclass(frozen=True)
class MethodCase:
    """Flags for runs of 4 layers and 32 tokens."""

    method: str
    """Its name in the registry."""
    dropping: tuple[str, ...]
    """On: drops from step 0, less and less, and reaches the dense model at step 10."""
    full: tuple[str, ...]
    """On, but everything is kept from step 0."""
    off: tuple[str, ...]
    """Everything but the switch."""
    changes: tuple[int, ...]
    """The 0-based steps whose plan differs from the one before."""
    per_microbatch: bool = False
    """What is dropped depends on which samples share a microbatch."""


def _random_ltd(kept_tokens: int, growth_steps: int) -> tuple[str, ...]:
    return tuple(f"--ltd-min-kept-tokens {kept_tokens} --ltd-growth-steps {growth_steps} --ltd-granularity 8".split())


def _layer_drop(theta: float) -> tuple[str, ...]:
    """theta rises to 1, to a thousandth from step 10 on."""
    return tuple(f"--layer-drop-theta {theta} --layer-drop-gamma 0.73 --layer-drop-direction rising".split())


def _token_bypass(kept_tokens: int, selector: str) -> tuple[str, ...]:
    flags = (
        f"--token-bypass-kept-tokens {kept_tokens} --token-bypass-growth-steps 10 --token-bypass-granularity 8 "
        f"--token-bypass-selector {selector} --token-bypass-layers 2-3"
    )
    return tuple(flags.split())


_BLOCKS = ("--ltd-block-size", "4")
_BYPASS_BLOCKS = ("--token-bypass-block-size", "4")

CASES = {
    "random_ltd": MethodCase(
        method="random_ltd",
        dropping=("--random-ltd", *_random_ltd(8, 10)),
        full=("--random-ltd", *_random_ltd(32, 10)),
        off=_random_ltd(8, 10),
        changes=(4, 7, 10),
    ),
    "random_ltd, blocks": MethodCase(
        method="random_ltd",
        dropping=("--random-ltd", *_random_ltd(8, 10), *_BLOCKS),
        full=("--random-ltd", *_random_ltd(32, 10), *_BLOCKS),
        off=(*_random_ltd(8, 10), *_BLOCKS),
        changes=(4, 7, 10),
    ),
    "token_bypass, random blocks": MethodCase(
        method="token_bypass",
        dropping=("--token-bypass", *_token_bypass(8, "random"), *_BYPASS_BLOCKS),
        full=("--token-bypass", *_token_bypass(32, "random"), *_BYPASS_BLOCKS),
        off=(*_token_bypass(8, "random"), *_BYPASS_BLOCKS),
        changes=(4, 7, 10),
    ),
    "token_bypass, random": MethodCase(
        method="token_bypass",
        dropping=("--token-bypass", *_token_bypass(8, "random")),
        full=("--token-bypass", *_token_bypass(32, "random")),
        off=_token_bypass(8, "random"),
        changes=(4, 7, 10),
    ),
    "token_bypass, importance": MethodCase(
        method="token_bypass",
        dropping=("--token-bypass", *_token_bypass(8, "importance")),
        full=("--token-bypass", *_token_bypass(32, "importance")),
        off=_token_bypass(8, "importance"),
        changes=(4, 7, 10),
    ),
    "layer_drop": MethodCase(
        method="layer_drop",
        dropping=("--layer-drop", *_layer_drop(0.3)),
        full=("--layer-drop", *_layer_drop(1.0)),
        off=_layer_drop(0.3),
        changes=tuple(range(1, 11)),
        per_microbatch=True,
    ),
}
