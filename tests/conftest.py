"""What every test shares: few threads, and the paths of the checkout.

Warnings that third parties emit on import are filtered in pyproject.toml, each by its message; here is nothing to add
them to. Threads are set before torch starts its pool: the tests are many small operations, and several processes.
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
# Hugging Face's libraries are used with local files only: a test that would download is a mistake.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On a busy machine one example may take any time; what must be fast is measured elsewhere.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# A shell starts background jobs with Ctrl-C ignored; the processes that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


_THREADS_TO_COLLECT = 60
_OWN_TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def _end_threads_of_past_runs() -> Iterator[None]:
    """Process groups of a run are garbage in cycles after it, and their threads poll until they are collected."""
    yield
    if _OWN_TASKS.is_dir() and len(list(_OWN_TASKS.iterdir())) > _THREADS_TO_COLLECT:
        gc.collect()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of small committed inputs, ``tests/fixtures``."""
    return REPOSITORY / "tests" / "fixtures"


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Public texts, vocabularies and task files, kept beside the checkout and not in it."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds GPT-2's vocabulary, public-domain books and published task files")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none. torch is asked only when such a test was collected."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
