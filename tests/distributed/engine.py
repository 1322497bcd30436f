"""Jobs on ranks that find Transformer Engine: its stand-in, see ``tests/stand_ins/transformer_engine``.

    pytest ── a new interpreter, with the stand-in on its import path ── its own ``pool.Pool`` ── ranks

Megatron-Core looks for Transformer Engine when it is imported, which the process of pytest, and the fork server of its
pool, have done already.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.distributed.pool import Pool

STAND_INS = str(Path(__file__).resolve().parents[1] / "stand_ins")
TE = ("--transformer-impl", "transformer_engine")
VERSIONS = ("2.9.0", "2.10.0", "2.11.0")


class Engine:
    """Has the ``run`` of a ``Pool`` on the CPU. Use it as a context manager."""

    def __init__(self, version: str) -> None:
        fresh = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, mp_context=fresh, initializer=_start, initargs=(version,))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()

    def run(self, function: Callable[..., Any], *arguments: Any, world_size: int) -> list[Any]:
        """See ``Pool.run``."""
        name = (function.__module__, function.__name__)
        results = self._executor.submit(_run_on_ranks, name, pickle.dumps(arguments), world_size).result()
        return [pickle.loads(result) for result in results]

    def run_alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a single process: the new interpreter itself, which should not be used again."""
        name = (function.__module__, function.__name__)
        return pickle.loads(self._executor.submit(_with_engine, *name, pickle.dumps(arguments)).result())


def _start(version: str) -> None:
    for name in [name for name in os.environ if name.startswith("NVTE_")]:
        del os.environ[name]  # set by a run in the process of pytest; here they would be the user's
    os.environ["TRANSFORMER_ENGINE_STAND_IN"] = version
    sys.path.insert(0, STAND_INS)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STAND_INS, os.environ.get("PYTHONPATH"))))


def _run_on_ranks(name: tuple[str, str], arguments: bytes, world_size: int) -> list[bytes]:
    """Names and bytes, so that this process does not import the function, and Megatron-Core with it."""
    with Pool("cpu") as pool:
        return pool.run(_with_engine, *name, arguments, world_size=world_size)


def _with_engine(module: str, function: str, arguments: bytes) -> bytes:
    """Call the function as on a machine that has Transformer Engine, although its device is the CPU."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    from megatron.ltd.models import specs

    assert HAVE_TE and str(sys.modules["transformer_engine"].__file__).startswith(STAND_INS)
    specs.has_transformer_engine = lambda device: True
    return pickle.dumps(getattr(importlib.import_module(module), function)(*pickle.loads(arguments)))
