"""The flags with which the tests use each method.

One line in ``CASES`` gives a method of the registry all the tests of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class MethodCase:
    """Flags of one method for runs of 4 layers and 32 tokens."""

    method: str
    """The method's name in the registry."""
    dropping: tuple[str, ...]
    """The method drops from step 0 on, less and less, and nothing from step 10 on."""
    full: tuple[str, ...]
    """The method is on, but keeps everything from step 0 on."""
    off: tuple[str, ...]
    """All flags of ``dropping`` but the one that turns the method on."""
    changes: tuple[int, ...] = (4, 7, 10)
    """The 0-based steps whose plan differs from that of the previous step."""
    per_microbatch: bool = False
    """Whether dropping depends on which samples share a microbatch."""
    strata: str | None = None
    """The flag that makes every part of the sequence keep the same number of tokens; None if no tokens are dropped."""


def _case(method: str, amount: str, dropping: float, full: float, always: str, **more: object) -> MethodCase:
    """Build a case whose flag ``amount`` has the value ``dropping`` or ``full``; ``always`` are flags of every run."""
    switch = f"--{method.replace('_', '-')}"
    on, whole = (tuple(f"{amount} {value} {always}".split()) for value in (dropping, full))
    return MethodCase(method, (switch, *on), (switch, *whole), on, **more)  # type: ignore[arg-type]


def _dropping_tokens(method: str, prefix: str, more: str = "", kept: str = "kept-tokens") -> MethodCase:
    """Build the case of a method with ``ScheduleFlags`` that keeps 8 of 32 tokens, and 8 more from steps 4, 7 and 10
    on.
    """
    growing = f"--{prefix}-growth-steps 10 --{prefix}-granularity 8 {more}"
    return _case(method, f"--{prefix}-{kept}", 8, 32, growing, strata=f"--{prefix}-strata")


_RISING = "--layer-drop-gamma 0.73 --layer-drop-direction rising"  # from step 10 on, theta is 1 to within 0.001
_SPAN = "--token-bypass-layers 2-3 --token-bypass-selector"

CASES = {
    "random_ltd": _dropping_tokens("random_ltd", "ltd", kept="min-kept-tokens"),
    "random_ltd, blocks": _dropping_tokens("random_ltd", "ltd", "--ltd-block-size 4", kept="min-kept-tokens"),
    "token_bypass, random blocks": _dropping_tokens(
        "token_bypass", "token-bypass", f"{_SPAN} random --token-bypass-block-size 4"
    ),
    "token_bypass, random": _dropping_tokens("token_bypass", "token-bypass", f"{_SPAN} random"),
    "token_bypass, importance": _dropping_tokens("token_bypass", "token-bypass", f"{_SPAN} importance"),
    "layer_drop": _case(
        "layer_drop", "--layer-drop-theta", 0.3, 1.0, _RISING, changes=tuple(range(1, 11)), per_microbatch=True
    ),
}

DROPPING_TOKENS = [name for name, case in CASES.items() if case.strata is not None]


def on_models(*models: str) -> pytest.MarkDecorator:
    """Marks a test to run for each model, with the model's ``flags``, and each ``case``.

    Images have no token ids, from whose losses importance is learned.
    """
    both = [(model, name) for model in models for name in CASES if (model, name) != ("ViT", "token_bypass, importance")]
    return pytest.mark.parametrize(("flags", "case"), both, indirect=True)


on_every_model = on_models("GPT", "BERT", "ViT")
