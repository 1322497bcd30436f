"""splitmix64 on Python integers, and its constants for the kernels that compute the same.

Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: a state's stream is
``finalise(state + i * STEP)``. All numbers are modulo 2^64. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

STEP = 0x9E3779B97F4A7C15
SHIFTS = (30, 27, 31)
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1


def finalise(value: int) -> int:
    """The mixing function: xor-shifts and odd factors."""
    value &= _MASK_64
    value = ((value ^ (value >> SHIFTS[0])) * FACTORS[0]) & _MASK_64
    value = ((value ^ (value >> SHIFTS[1])) * FACTORS[1]) & _MASK_64
    return value ^ (value >> SHIFTS[2])


def signed(value: int) -> int:
    """The int64 with the bit pattern of ``value``: what torch takes as a scalar."""
    value &= _MASK_64
    return value - (1 << 64) if value >> 63 else value


def position_mask(length: int) -> int:
    """The low bits that hold a position in a key."""
    return (1 << (length - 1).bit_length()) - 1


def runs(numbers: Sequence[int]) -> list[range]:
    """``numbers`` as runs of neighbours, in order: 2 3 4 7 is 2-4 and 7."""
    groups = groupby(enumerate(numbers), key=lambda placed: placed[1] - placed[0])
    found = [[number for _, number in group] for _, group in groups]
    return [range(run[0], run[-1] + 1) for run in found]
