"""Versions, requirements, and packages that break others by being installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

import megatron.ltd
from megatron.ltd.doctor.finding import NOTE, OK, WRONG, Finding
from megatron.ltd.errors import UserError
from megatron.ltd.versions import package_version, source_fingerprint

_CHECKOUT = Path(__file__).resolve().parents[3]
_IMPORTED_AS = {"megatron-core": "megatron.core", "pyyaml": "yaml"}


def check() -> Iterator[Finding]:
    """Python and megatron-ltd, what it requires, then what is optional."""
    yield Finding(OK, "python", f"{sys.version.split()[0]} at {sys.executable}")
    about = f"{megatron.ltd.__version__}, sources {source_fingerprint()} in {_CHECKOUT / 'megatron' / 'ltd'}"
    yield Finding(OK, "megatron-ltd", about)
    engine = _transformer_engine()
    for requirement in _requirements():
        # A broken Transformer Engine also breaks the import of Megatron-Core; it is reported once, as the engine's.
        importable = engine.state != WRONG or requirement.name != "megatron-core"
        yield _required(requirement, importable)
    yield engine
    triton = package_version("triton")
    yield (
        Finding(OK, "triton", f"{triton}, for --ltd-kernels triton; without that flag torch's kernels route tokens")
        if triton != "none"
        else Finding(NOTE, "triton", "not installed; only --ltd-kernels triton needs it")
    )


def _requirements() -> list[Requirement]:
    """The declared dependencies, from the installed metadata or from the checkout."""
    try:
        lines = importlib.metadata.requires("megatron-ltd") or []
    except importlib.metadata.PackageNotFoundError:
        lines = _declared_in_checkout()
    requirements = [Requirement(line) for line in lines]
    return [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]


def _declared_in_checkout() -> list[str]:
    text = (_CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    return [line.strip().strip('",') for line in listed.splitlines() if line.strip().startswith('"')]


def _required(requirement: Requirement, importable: bool) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier) or "any version"
    found = package_version(name)
    advice = "run tools/setup_env.sh, or pip install -e . in the checkout"
    if found == "none":
        return Finding(WRONG, name, f"is not installed ({wanted} is needed)", advice)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(WRONG, name, f"is {found}, and {wanted} is needed", advice)
    if importable:
        try:
            importlib.import_module(_IMPORTED_AS.get(name, name.replace("-", "_")))
        except Exception as error:  # whatever a broken package raises
            what = next(iter(str(error).splitlines()), "")
            return Finding(WRONG, name, f"{found} cannot be imported ({type(error).__name__}: {what})", advice)
    return Finding(OK, name, found)


def _transformer_engine() -> Finding:
    try:
        from megatron.ltd.parallel.mesh import quiet_core_imports, refuse_broken_transformer_engine
    except ImportError:  # torch is missing or broken; its own line reports that
        return Finding(NOTE, "transformer-engine", package_version("transformer-engine"))
    quiet_core_imports()
    if importlib.util.find_spec("transformer_engine") is None:
        return Finding(NOTE, "transformer-engine", "not installed; PyTorch's own kernels are used")
    try:
        refuse_broken_transformer_engine()
    except UserError as error:
        text, _, advice = str(error).partition(": uninstall")
        return Finding(WRONG, "transformer-engine", text, f"uninstall{advice}")
    return Finding(OK, "transformer-engine", package_version("transformer-engine"))
