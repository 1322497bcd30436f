"""fp8 that is never on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..signatures import recorded


class FP8GlobalStateManager:
    """Whether fp8 is on."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


@recorded("pytorch.quantization.fp8_autocast", ignores=("fp8_recipe", "fp8_group"))
@contextlib.contextmanager
def fp8_autocast(enabled: bool) -> Iterator[None]:
    """A block without fp8."""
    if enabled:
        raise NotImplementedError("the stand-in of Transformer Engine has no fp8")
    yield
