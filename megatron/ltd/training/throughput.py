"""Useful FLOPs a second of each device, and their share of its peak, the MFU.

    TFLOP/s per device = FLOPs of a step / (its seconds x devices x 10^12)        MFU = TFLOP/s per device / peak

FLOPs are those of ``plan.accounting``: what recompute repeats does not count. A step that keeps fewer tokens has fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.forecast.config import PEAK_TFLOPS, published_tflops
from megatron.ltd.format import format_flops


@dataclass(frozen=True)
class Throughput:
    """How fast ``num_devices`` devices compute together, and could at most."""

    num_devices: int = 1
    peak_tflops: float | None = None
    """Of one device, 10^12 FLOPs a second; None if it is not known."""

    def measures(self, flops: int, seconds: float) -> dict[str, float]:
        """What is logged of ``flops`` in ``seconds``, by id: ``mfu`` only where the peak is known."""
        tflops = flops / seconds / self.num_devices / 1e12
        return {"tflops_per_device": tflops} | ({} if self.peak_tflops is None else {"mfu": tflops / self.peak_tflops})

    def shown(self, flops: int, seconds: float) -> list[str]:
        """The same as parts of a console line."""
        found = self.measures(flops, seconds)
        speed = f"{format_flops(found['tflops_per_device'] * 1e12)}/s per device"
        return [speed, *([f"MFU {100.0 * found['mfu']:.1f} %"] if "mfu" in found else [])]


def published_peak(device: str, dtype: str) -> float | None:
    """The published peak of a GPU by its name, in 10^12 FLOPs a second; None for others. See ``published_tflops``.

    The table holds the SXM modules: an H100 or H200 on a PCIe card is slower, and its peak is not known here.
    """
    words = device.lower()
    name = next((name for name in PEAK_TFLOPS if name in words), None)
    if name is not None and name.startswith("h") and ("pcie" in words or "nvl" in words):
        return None
    return None if name is None else published_tflops(name, dtype)
