"""Importing everything once, and running a command as its own program in this process.

A child forked from here starts a command in milliseconds instead of seconds. What is not tried this way is the import
itself; the campaign of kills starts real processes.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_LIBRARIES = ("matplotlib.pyplot", "PIL.Image", "pyarrow.parquet", "sklearn.datasets", "torch.utils.tensorboard")


def import_everything() -> None:
    """Import the library and what commands import late. Call it before anything has started threads."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from megatron.ltd.parallel.mesh import quiet_core_imports

    quiet_core_imports()
    import megatron.ltd

    names = [module.name for module in pkgutil.walk_packages(megatron.ltd.__path__, "megatron.ltd.")]
    for name in (*(name for name in names if not name.endswith("__main__")), *_LIBRARIES):
        try:
            importlib.import_module(name)
        except ImportError:  # a package of an extra that is not installed
            continue
    gc.collect()
    gc.freeze()  # children that collect garbage then neither walk nor copy what is imported


def run_program(program: Path, words: Sequence[str]) -> None:
    """Run a script with these words, as ``python PROGRAM WORDS`` would."""
    sys.argv = [str(program), *words]
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
