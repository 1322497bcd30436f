"""Reports that another process died: one line instead of a communication library's traceback.

    a process is killed, fails or hangs  ->  a collective of the others fails  ->  LostContact on each of them

gloo notices a closed connection at once. NCCL's collectives wait for ``--distributed-timeout-minutes`` or for the
launcher, whichever comes first; so do gloo's if a process hangs.

Not here: processes that were started differently, or not at all (``agreement``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from megatron.ltd.errors import LostContact
from megatron.ltd.parallel.mesh import Mesh

_GLOO = re.compile(r"gloo/|Connection (closed|reset) by peer|Broken pipe|Timed out waiting")
_NCCL = re.compile(r"ncclRemoteError|remote process exited|was aborted|[Tt]imeout|[Tt]imed out|[Cc]onnection")


def lost_contact(error: BaseException) -> str | None:
    """Why a collective failed, if another process is the cause; None for any other error."""
    text = str(error)
    if isinstance(error, dist.DistBackendError):
        is_lost = _NCCL.search(text) is not None
    else:
        is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_GLOO.search(text)))
    if not is_lost:
        return None
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^\[[^]]*\] *", "", first.strip()).split(". ")[0]


@contextmanager
def keeping_contact(mesh: Mesh, how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Raise ``LostContact`` if the block fails because another process died."""
    try:
        yield
    except RuntimeError as error:
        reason = None if mesh.world_size == 1 else lost_contact(error)
        if reason is None:
            raise
        raise LostContact(
            f"rank {mesh.rank} lost contact with another process ({reason}): see the message of that process; "
            f"{how_to_continue()}"
        ) from None
