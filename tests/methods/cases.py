"""How the tests switch each method on. A method in the registry gets the whole matrix by a line in ``CASES``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodCase:
    """Flags for runs of 4 layers and 32 tokens."""

    dropping: tuple[str, ...]
    """On: drops from step 0, changes at steps 4 and 7, and reaches the dense model at step 10."""
    full: tuple[str, ...]
    """On, but everything is kept from step 0."""
    off: tuple[str, ...]
    """Everything but the switch."""


def _random_ltd(kept_tokens: int, growth_steps: int) -> tuple[str, ...]:
    return tuple(f"--ltd-min-kept-tokens {kept_tokens} --ltd-growth-steps {growth_steps} --ltd-granularity 8".split())


CASES = {
    "random_ltd": MethodCase(
        dropping=("--random-ltd", *_random_ltd(8, 10)),
        full=("--random-ltd", *_random_ltd(32, 10)),
        off=_random_ltd(8, 10),
    ),
}
