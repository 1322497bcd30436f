"""Training runs over the pool's ranks, and their comparison.

An ``Outcome`` combines the records of all ranks of a run; ``assert_same`` compares two outcomes and describes the
differences. Sums of floats are computed in another order under another layout, so losses and gradients are compared up
to rounding. Initial weights, samples, kept tokens and learning rates must be bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.distributed.jobs import Piece, Record, train_and_record
from tests.distributed.layouts import Layout, one_process
from tests.distributed.pool import Pool


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences. For gradients and weights: norm of the difference over the norm, per tensor."""

    loss: float = 1e-6
    gradient: float = 1e-5
    replica: float = 0.0
    """Tolerance between two ranks that hold the same part of a tensor."""


EXACT = Tolerance(gradient=0.0)
ON_GPUS = Tolerance(loss=1e-5, gradient=1e-4, replica=1e-4)
"""On GPUs, sums of atomic additions have no fixed order, even on two ranks that compute the same thing."""


Pieces = list[list[Piece]]
"""The pieces of each rank."""


@dataclass(frozen=True)
class Outcome:
    """A run, combined from the records of all its ranks."""

    initial_weights: Pieces
    loss: list[float]
    grad_norm: list[float]
    lr: list[float]
    gradients: list[Pieces]
    kept: dict[tuple[int, int, int], tuple[int, ...]]
    """See ``Record.kept``."""
    samples: dict[int, int]
    validation_loss: float | None
    final_weights: Pieces
    learned: list[float] | None

    @classmethod
    def of(cls, ranks: Sequence[Record]) -> Outcome:
        """Combine the ranks' records, and check that they agree."""
        steps = list(zip(*(record.steps for record in ranks), strict=True))
        return cls(
            initial_weights=[record.initial_weights for record in ranks],
            loss=[_agreed([part.loss for part in step]) for step in steps],
            grad_norm=[_agreed([part.grad_norm for part in step]) for step in steps],
            lr=[_agreed([part.lr for part in step]) for step in steps],
            gradients=[[part.gradients for part in step] for step in steps],
            kept=_union([record.kept for record in ranks]),
            samples=_union([record.samples for record in ranks]),
            validation_loss=_agreed([record.validation_loss for record in ranks]),
            final_weights=[record.final_weights for record in ranks],
            learned=_agreed([record.learned for record in ranks]),
        )

    def then(self, rest: Outcome) -> Outcome:
        """This run and the one that resumed from its checkpoint, as one; checks that weights are equal and samples are
        new.
        """
        assert not self.samples.keys() & rest.samples.keys(), "samples are read twice"
        unlike = list(_different_tensors("loaded weights", rest.initial_weights, self.final_weights, EXACT))
        assert not unlike, unlike
        return Outcome(
            initial_weights=self.initial_weights,
            loss=self.loss + rest.loss,
            grad_norm=self.grad_norm + rest.grad_norm,
            lr=self.lr + rest.lr,
            gradients=self.gradients + rest.gradients,
            kept=self.kept | rest.kept,
            samples=self.samples | rest.samples,
            validation_loss=rest.validation_loss,
            final_weights=rest.final_weights,
            learned=rest.learned,
        )


def _agreed(reports: Sequence[Any]) -> Any:
    """The value that all ranks report."""
    assert all(report == reports[0] for report in reports), f"ranks report different values: {reports}"
    return reports[0]


def _union(parts: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """The union of several mappings, which must not contradict each other."""
    union: dict[Any, Any] = {}
    for part in parts:
        for key, value in part.items():
            assert union.setdefault(key, value) == value, f"ranks disagree on {key}: {union[key]} and {value}"
    return union


class Runs:
    """Runs one command on a pool; reference runs are cached."""

    def __init__(self, pool: Pool, device: str, command: Sequence[str], folder: Path, *flags: str) -> None:
        self._pool = pool
        self.command = [*command, "--device", device, "--log-dir", str(folder), *flags]
        self._references: dict[tuple[Any, ...], Outcome] = {}

    def run(self, layout: Layout, *more: str, job: Callable[[Sequence[str]], Record] = train_and_record) -> Outcome:
        """Train under ``layout``. If a flag is given twice, the later one counts."""
        flags = [*self.command, *layout.flags, *more]
        return Outcome.of(self._pool.run(job, flags, world_size=layout.world_size))

    def reference(self, strata: int, *more: str) -> Outcome:
        """The same run in one process without a restart."""
        key = (strata, *more)
        if key not in self._references:
            self._references[key] = self.run(one_process(strata), *more)
        return self._references[key]


def assert_same(found: Outcome, expected: Outcome, tolerance: Tolerance | None = None) -> None:
    """Fail with a list of all differences between ``found`` and ``expected``."""
    differences = list(_differences(found, expected, tolerance or Tolerance()))
    assert not differences, "\n".join(["not the same run:", *differences])


def _differences(found: Outcome, expected: Outcome, tolerance: Tolerance) -> Iterator[str]:
    yield from _different_tensors("initial weights", found.initial_weights, expected.initial_weights, EXACT)
    for name in ("samples", "kept", "lr"):
        if getattr(found, name) != getattr(expected, name):
            yield f"other {name}"
    for name in ("loss", "grad_norm", "validation_loss"):
        values, wanted = getattr(found, name), getattr(expected, name)
        if not np.allclose(values, wanted, rtol=tolerance.loss, atol=0.0):
            yield f"{name} {values} instead of {wanted}"
    if not np.allclose(found.learned or 0.0, expected.learned or 0.0, rtol=tolerance.loss, atol=0.0):
        yield "the method has learned something else"
    for number, (pieces, reference) in enumerate(zip(found.gradients, expected.gradients, strict=True)):
        yield from _different_tensors(f"gradient of step {number + 1}", pieces, reference, tolerance)
    yield from _different_tensors("weights at the end", found.final_weights, expected.final_weights, tolerance)


def _different_tensors(name: str, pieces: Pieces, reference: Pieces, tolerance: Tolerance) -> Iterator[str]:
    """Messages about tensors that the pieces do not cover, or whose values differ from the reference's."""
    try:
        found, expected = whole(pieces, tolerance.replica), whole(reference, tolerance.replica)
    except AssertionError as error:
        yield f"{name}: {error}"
        return
    if found.keys() != expected.keys():
        yield f"{name}: {sorted(found.keys() ^ expected.keys())} are in one of the two only"
        return
    errors = {key: _relative_error(found[key], expected[key]) for key in expected}
    wrong = {key: error for key, error in errors.items() if not error <= tolerance.gradient}
    if wrong:
        worst = max(wrong, key=lambda key: wrong[key])
        yield f"{name}: {len(wrong)} of {len(errors)} tensors are wrong, most of all {worst}, by {wrong[worst]:.1e}"


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm; a zero tensor must be exactly zero. No gradient here is mere rounding
    error.
    """
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    norm = np.linalg.norm(expected.astype(np.float64))
    return float(difference / norm) if norm else (0.0 if difference == 0.0 else math.inf)


def whole(ranks: Pieces, replica_tolerance: float = 0.0) -> dict[str, np.ndarray]:
    """Assemble whole tensors from the pieces of all ranks, which must cover them and agree where they overlap."""
    tensors: dict[str, np.ndarray] = {}
    for piece in (piece for pieces in ranks for piece in pieces):
        tensor = tensors.setdefault(piece.name, np.full(piece.shape, np.nan, dtype=piece.values.dtype))
        assert tensor.shape == piece.shape, f"{piece.name} has shape {tensor.shape} on one rank, {piece.shape} on other"
        before = np.where(np.isnan(tensor[piece.place]), piece.values, tensor[piece.place])
        apart = np.linalg.norm(before - piece.values)
        assert apart <= replica_tolerance * np.linalg.norm(piece.values), f"ranks disagree on {piece.name} by {apart}"
        tensor[piece.place] = piece.values
    uncovered = [name for name, tensor in tensors.items() if np.isnan(tensor).any()]
    assert not uncovered, f"no rank holds all of {uncovered}"
    return tensors
