"""Recipes of fp8: their settings, of which those that a version does not have are left out, as there."""

from __future__ import annotations

import enum
from typing import Any

from ..signatures import signature
from ..unreached import unreached

NVFP4BlockScaling = unreached("NVFP4BlockScaling")


class Format(enum.Enum):
    """The largest values of the forward and of the backward pass."""

    E4M3 = (448.0, 448.0)
    HYBRID = (448.0, 57344.0)


class _Recipe:
    unit = 16
    """Of what the sizes of a product are multiples."""

    def __init__(self, **settings: Any) -> None:
        known = signature(f"common.recipe.__init__.{self.kind()}").parameters
        vars(self).update({name: settings.get(name, found.default) for name, found in known.items()})

    @classmethod
    def kind(cls) -> str:
        """The name of the recipe, of which a class may be derived."""
        return next(base.__name__ for base in cls.__mro__ if _Recipe in base.__bases__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.kind()}({vars(self)})"

    def delayed(self) -> bool:
        return self.kind() == "DelayedScaling"


class DelayedScaling(_Recipe):
    pass


class Float8CurrentScaling(_Recipe):
    pass


class Float8BlockScaling(_Recipe):
    pass


class MXFP8BlockScaling(_Recipe):
    unit = 32
