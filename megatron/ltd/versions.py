"""The versions, processor and sources of a run. Imports neither torch nor Megatron-Core."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import megatron.ltd

_PACKAGES = ("megatron-core", "torch", "transformer-engine")


def package_version(name: str) -> str:
    """The installed version of the distribution ``name``, or ``none``."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def installed_versions() -> dict[str, str]:
    """The versions of megatron-ltd, python, and the packages that change what a run computes or stores."""
    own = {"megatron-ltd": megatron.ltd.__version__, "python": platform.python_version()}
    return own | {name: package_version(name) for name in _PACKAGES}


def cpu_model() -> str:
    """The name of the processor from Linux, or from the platform."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def source_fingerprint() -> str:
    """12 hexadecimal digits of a hash over this package's Python files: checkouts of one version may differ."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def circumstances(*packages: str) -> dict[str, str]:
    """What a measurement depends on, for its report: machine, versions of ``packages``, date and load."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {package_version(name)}" for name in packages)]
    return {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "versions": ", ".join(versions),
        "date": datetime.date.today().isoformat(),
        "load average": f"{os.getloadavg()[0]:.1f} over the last minute, this measurement included",
    }
