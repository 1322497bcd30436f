"""A rival of all methods: dense training whose samples grow to their full length (sequence-length warm-up).

    python tools/benchmark/evidence/length_warmup.py --length-warmup-from 64 --length-warmup-steps 600 ...

takes the flags of ``pretrain_gpt_ltd.py``. A step trains on the first n tokens of its samples, in every layer and in
the loss; n grows linearly from ``--length-warmup-from`` to ``--seq-length``. The learning rate follows layer tokens, as
for random-LTD. Source: Li et al., "The Stability-Efficiency Dilemma" (2022), which truncates samples in the same way.

It shortens the data instead of skipping work on it, so that it is not a method of the product: it is registered as one
for this script only, by ``installed``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from megatron.ltd.commands import run_script
from megatron.ltd.flags import Settings, flag
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import METHOD, Entry, Method, ModelFacts
from megatron.ltd.schedules.kept_tokens import KeptTokensSchedule
from megatron.ltd.schedules.step_plan import StepPlan

FLAG = "--length-warmup-from"
SCRIPT = "tools/benchmark/evidence/length_warmup.py"


@dataclass(frozen=True)
class LengthWarmupConfig(Settings):
    """sequence-length warm-up"""

    length_warmup_from: int | None = flag(None, affects="schedule", metavar="N", help="tokens of a sample at step 0")
    length_warmup_steps: int = flag(1, affects="schedule", metavar="N", help="step from which samples are whole")
    length_warmup_granularity: int = flag(16, affects="schedule", metavar="N", help="lengths are multiples of this")

    @property
    def enabled(self) -> bool:
        return self.length_warmup_from is not None


@dataclass(frozen=True)
class LengthWarmup(Method):
    """Every layer computes all tokens of samples that are shorter at first."""

    facts: ModelFacts
    schedule: KeptTokensSchedule
    name: str = "sequence-length warm-up"

    @classmethod
    def build(cls, config: LengthWarmupConfig, facts: ModelFacts) -> LengthWarmup:
        """Check the flags against the model. Raises ``UserError``."""
        assert config.length_warmup_from is not None
        names = (FLAG, "--length-warmup-steps", "--length-warmup-granularity")
        numbers = config.length_warmup_steps, config.length_warmup_granularity
        return cls(facts, KeptTokensSchedule(config.length_warmup_from, facts.seq_length, *numbers, names))

    @property
    def settings(self) -> Mapping[str, Any]:
        schedule = self.schedule
        return {
            METHOD: "length_warmup",
            "length_warmup_from": schedule.min_kept_tokens,
            "length_warmup_steps": schedule.growth_steps,
            "length_warmup_granularity": schedule.granularity,
        }

    def plan(self, step: int) -> StepPlan:
        return StepPlan.dense(self.schedule.at(step), self.facts.num_layers)

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        for first, steps, length in self.schedule.stages(num_steps):
            yield first, steps, StepPlan.dense(length, self.facts.num_layers)


@contextmanager
def installed() -> Iterator[None]:
    """In the block, the flags exist."""
    entry = Entry("routing", LengthWarmup.name, FLAG, LengthWarmupConfig, LengthWarmup.build)
    with patch.dict(METHODS, length_warmup=entry):
        yield


def main() -> None:
    """Train with samples cut to the length of the step."""
    from megatron.ltd.training.step import Stepper

    train = Stepper.train

    def train_on_shorter(self: Any, batches: Iterator[Any], plan: StepPlan, *args: Any) -> Any:
        return train(self, (cut(batch, plan.seq_length) for batch in batches), plan, *args)

    with installed(), patch.object(Stepper, "train", train_on_shorter):
        run_script("pretrain-gpt")


def cut(batch: Any, length: int) -> Any:
    """The first ``length`` tokens of the samples of a ``data.batch.Batch``, fields [B, S]."""
    fields = ("tokens_BS", "labels_BS", "loss_mask_BS", "position_ids_BS")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[:, :length].contiguous() for name in fields})


if __name__ == "__main__":
    main()
