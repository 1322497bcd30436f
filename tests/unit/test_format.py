"""Numbers formatted for readers."""

from __future__ import annotations

import pytest

from megatron.ltd.format import format_bytes, format_count, format_flops, format_ranges, format_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (512, "512"), (999, "999"), (1000, "1.000 K"), (8192, "8.192 K"), (99_999, "100.0 K"),
        (999_949, "999.9 K"), (999_951, "1.000 M"), (390.9e9, "390.9 B"), (7_200_000_000_000, "7.200 T"),
        (9e18, "9000.0 Q"), (-12_345, "-12.35 K"),
    ],
)  # fmt: skip
def test_counts(count: float, text: str) -> None:
    assert format_count(count) == text


def test_bytes() -> None:
    assert [format_bytes(size) for size in (0, 512, 45_973_825, 2.6e12)] == ["0 B", "512 B", "45.97 MB", "2.600 TB"]


def test_flops() -> None:
    assert format_flops(1.2344e12) == "1.234 TFLOP"
    assert format_flops(2.577e21) == "2.577 ZFLOP"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (7.4, "0:00:07"),
        (59.6, "0:01:00"),
        (3725, "1:02:05"),
        (86_399, "23:59:59"),
        (90_125, "1d 01:02:05"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([1, 3, 5], "1,3,5"), ([2, 3, 4, 8, 10, 11], "2-4,8,10-11")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert format_ranges(numbers) == text
