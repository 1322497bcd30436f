"""Whether the indices of so many samples can be built: Megatron-Core builds them in memory, epoch after epoch."""

from __future__ import annotations

from megatron.ltd.errors import UserError
from megatron.ltd.format import count_of
from megatron.ltd.machine import memory_bytes

_BYTES_A_SAMPLE, _BYTES_A_DOCUMENT = 12, 4
_MOST_EPOCHS = 10_000_000
_LENGTH = {True: "--train-iters, --train-samples or --train-tokens", False: "--eval-iters"}


def check_size(samples: int, *, samples_of_epoch: float, documents: int, is_training: bool) -> None:
    """Raise ``UserError`` for more samples than memory has room for, or more epochs than anybody wants.

    ``documents`` of an epoch that are in the index, 0 if it has samples only. To find the number of epochs,
    Megatron-Core counts them one by one.
    """
    epochs = samples / samples_of_epoch
    if epochs > _MOST_EPOCHS:
        raise UserError(
            f"{_LENGTH[is_training]}: {count_of(samples, 'sample')} are {epochs:.3g} epochs of the data, and the most "
            f"is {_MOST_EPOCHS:,}; use fewer, or more data"
        )
    wanted = samples * _BYTES_A_SAMPLE + epochs * documents * _BYTES_A_DOCUMENT
    if wanted > memory_bytes():
        raise UserError(
            f"{_LENGTH[is_training]}: the indices of {count_of(samples, 'sample')} take {wanted / 1e9:.3g} GB of "
            f"memory, and this machine has {memory_bytes() / 1e9:.3g} GB; use fewer, or longer samples"
        )
