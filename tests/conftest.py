"""Settings and fixtures that all tests share.

Warnings that third-party packages emit on import are filtered by message in pyproject.toml, not here. The number of
threads is set before torch creates its thread pool, because the tests run many small operations in several processes.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hugging Face's libraries may use local files only: a test that needs a download is an error.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On a busy machine one example may take arbitrarily long; speed is measured elsewhere.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# A shell starts background jobs with SIGINT ignored, which processes that tests start and interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Have Triton run kernels on CPU tensors, unless tests on a GPU are asked for. It decides when it is imported."""
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter, which rounds as compiled kernels do. Skips the test without Triton."""
    pytest.importorskip("triton", reason="Triton is not installed: .venv/bin/pip install triton")
    from tests.support_triton import round_to_nearest

    round_to_nearest(monkeypatch)


def pytest_collection_finish() -> None:
    """Leave out what is imported by now from later collections of garbage, which would walk half a million objects."""
    gc.collect()
    gc.freeze()


_THREADS_TO_COLLECT = 60
_OWN_TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def _end_threads_of_past_runs() -> Iterator[None]:
    """Collect garbage when many threads are left: the process groups of a finished run are in reference cycles, and
    their threads keep polling until they are collected.
    """
    yield
    if _OWN_TASKS.is_dir() and len(list(_OWN_TASKS.iterdir())) > _THREADS_TO_COLLECT:
        gc.collect()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of small committed input files, ``tests/fixtures``."""
    return REPOSITORY / "tests" / "fixtures"


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Public texts, vocabularies and task files, which are stored beside the checkout and are not part of it."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds GPT-2's vocabulary, public-domain books and published task files")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none begins when all others have ended. Skip GPU tests on a machine
    without a GPU; torch is imported only if such a test was collected.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
