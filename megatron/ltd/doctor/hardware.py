"""The devices that torch sees, and what around them decides whether a run starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megatron.ltd.doctor.finding import NOTE, OK, WRONG, Finding

_GIB = 1 << 30
_SHARED_MEMORY = Path("/dev/shm")


def check() -> Iterator[Finding]:
    """CPU, GPUs, communication libraries, shared memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(OK, "CPU", f"{cores} cores, {torch.get_num_threads()} threads a process")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            memory = f"{about.total_memory / _GIB:.0f} GiB"
            yield Finding(OK, f"GPU {index}", f"{about.name}, {memory}, compute capability {about.major}.{about.minor}")
    else:
        yield _no_gpu()
    backends = [name for name in ("gloo", "nccl") if getattr(dist, f"is_{name}_available")()]
    if torch.cuda.is_available() and "nccl" not in backends:
        yield Finding(WRONG, "backends", " ".join(backends), "this torch has no NCCL: install a CUDA build of it")
    else:
        nccl = f" {'.'.join(map(str, torch.cuda.nccl.version()))}" if "nccl" in backends else ""
        yield Finding(OK, "backends", ", ".join(backends) + nccl)
    if _SHARED_MEMORY.exists() and (total := shutil.disk_usage(_SHARED_MEMORY).total) < _GIB:
        text = f"{_SHARED_MEMORY} has {total >> 20} MiB, which processes that read data may fill"
        yield Finding(NOTE, "shared memory", text, "in a container give --shm-size 8g or more, or use --num-workers 0")


def _no_gpu() -> Finding:
    if not Path("/dev/nvidiactl").exists():
        return Finding(NOTE, "GPU", "none: runs compute on the CPU")
    if torch.version.cuda is None:
        text = f"this machine has an NVIDIA driver, but torch {torch.__version__} is built without CUDA"
        return Finding(WRONG, "GPU", text, "install a CUDA build (TORCH_INDEX_URL of tools/setup_env.sh)")
    text = f"this machine has an NVIDIA driver, but torch (CUDA {torch.version.cuda}) sees no device"
    return Finding(WRONG, "GPU", text, "see that nvidia-smi works and that CUDA_VISIBLE_DEVICES is not empty")
