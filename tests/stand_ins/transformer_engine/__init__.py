"""A stand-in for Transformer Engine, for tests on machines without CUDA.

Put ``tests/stand_ins`` on the import path before Megatron-Core is imported. Calls are checked against the signatures of
a real version (``signatures``), and computed with plain PyTorch, also in states that Transformer Engine does not
support, such as fp32 on a CPU. What our code does not reach has a name only, and an error if it is called.

It shows that calls, numbers, parameters and states fit. It does not show which kernels run. In fp8 it keeps scales as
Transformer Engine does, and rounds nothing.
"""

from . import common, pytorch
from .signatures import VERSION

__version__ = VERSION

__all__ = ["__version__", "common", "pytorch"]
