"""A run of numbers cut into boxes: read back from the tensor, they are that run."""

from __future__ import annotations

import itertools

import pytest
import torch

from megatron.ltd.checkpoint.owned_boxes import boxes


@pytest.mark.parametrize("shape", [(7,), (4, 6), (1, 5), (5, 1), (3, 2, 4), (2, 2, 2, 3)])
def test_the_boxes_of_every_run_are_the_run(shape: tuple[int, ...]) -> None:
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    for start, end in itertools.combinations(range(whole.numel() + 1), 2):
        found = list(boxes(shape, start, end))
        read = [
            whole[tuple(map(slice, offsets, map(sum, zip(offsets, sizes, strict=True))))] for offsets, sizes in found
        ]
        assert [tuple(box.shape) for box in read] == [sizes for _, sizes in found]
        assert torch.equal(torch.cat([box.flatten() for box in read]), torch.arange(start, end))
        assert len(found) <= 2 * len(shape) - 1
