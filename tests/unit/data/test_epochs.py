"""Order of labelled data: every epoch is a different permutation, and an evaluation reads each row once."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.data.epochs import (
    LabelledBatch,
    ShuffledEpochs,
    SinglePass,
    permutation,
    stacked_labels,
    whole_batches,
)

ROWS = [{"label": row * 10} for row in range(7)]
PINNED = [[3, 8, 6, 4, 9, 1, 5, 2, 0, 7], [3, 9, 7, 6, 4, 1, 8, 2, 5, 0]]


def labels(source: object, start: int = 0) -> list[int]:
    return [source[index]["label"] for index in range(start, len(source))]  # type: ignore[arg-type, index]


def test_every_epoch_holds_every_row_in_a_different_order() -> None:
    found = labels(ShuffledEpochs(ROWS, seed=3, num_samples=21))
    epochs = [found[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == [row["label"] for row in ROWS] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert labels(ShuffledEpochs(ROWS, seed=4, num_samples=21)) != found


def test_a_longer_run_and_one_read_backwards_hold_the_same_samples() -> None:
    short, long = ShuffledEpochs(ROWS, 3, 10), ShuffledEpochs(ROWS, 3, 40)
    assert [long[index]["label"] for index in reversed(range(10))][::-1] == labels(short)
    assert {short[index]["weight"] for index in range(10)} == {1.0}


def test_the_order_never_changes() -> None:
    """The order is fixed and must not change with the version of numpy, because resumed runs depend on it."""
    assert permutation(1234, 0, 10).tolist() == PINNED[0]
    assert permutation(1234, 1, 10).tolist() == PINNED[1]


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 20])
def test_an_evaluation_counts_every_row_once(batch: int) -> None:
    size = whole_batches(len(ROWS), batch)
    source = SinglePass(ROWS, size)
    assert size % batch == 0 and 0 <= size - len(ROWS) < batch
    samples = [source[index] for index in range(len(source))]
    assert [sample["label"] for sample in samples if sample["weight"]] == [row["label"] for row in ROWS]
    assert sum(sample["weight"] for sample in samples) == 7.0


def test_a_batch_of_labels_moves_and_keeps_its_types() -> None:
    samples = [ShuffledEpochs(ROWS, 3, 7)[0], SinglePass(ROWS, 8)[7]]
    batch = LabelledBatch(sample_ids_B=torch.tensor([0, 7]), **stacked_labels(samples)).to("cpu")
    assert batch.labels_B.dtype == torch.int64 and batch.weights_B.tolist() == [1.0, 0.0]
    assert batch.whole_tokens_BS is None
