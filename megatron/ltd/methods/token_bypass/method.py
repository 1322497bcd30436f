"""TokenBypass: some tokens of a sample bypass a span of layers, the same tokens in all of them.

    layers before the span      all tokens
    the span's first layer      the kept tokens, which attend to all tokens
    the rest of the span        the kept tokens, among themselves
    layers after the span       all tokens

Kept are the most important tokens (``importance``), or a random draw that the layers share. Each layer takes the kept
tokens out and puts them back by itself: the numbers are those of doing so once for the span, and a span may cross the
stages of a pipeline. Hou et al., "Token Dropping for Efficient BERT Pretraining" (arXiv:2203.13240).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.methods.base import METHOD, Method, ModelFacts, Samples
from megatron.ltd.methods.schedule_flags import KINDS, ScheduleFlags, in_blocks
from megatron.ltd.schedules.kept_tokens import TokenSchedule
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenBypassConfig:
    """TokenBypass (tokens that bypass the middle layers)"""

    token_bypass: bool = flag(False, affects="schedule", help="let the less important tokens bypass a span of layers")
    token_bypass_kept_tokens: int | None = flag(
        None, affects="schedule", help="tokens of a sample that do not bypass it (default: half of them)"
    )
    token_bypass_schedule: str | None = flag(
        None,
        affects="schedule",
        choices=KINDS,
        help="how kept tokens go on: from so many to all, as many, back, or as stages say (default: constant, growing "
        "where --token-bypass-growth-steps is given)",
    )
    token_bypass_growth_steps: int | None = flag(
        None, affects="schedule", help="steps until every token is kept, or the fewest where they shrink"
    )
    token_bypass_granularity: int = flag(16, affects="schedule", help="kept tokens that change are a multiple of this")
    token_bypass_stages: tuple[str, ...] = flag(
        (),
        affects="schedule",
        metavar="STEP:KEPT",
        help="of a staged schedule: kept tokens from each of these 0-based steps on",
    )
    token_bypass_layers: str | None = flag(
        None,
        affects="schedule",
        metavar="SPAN",
        help='layers of the span, 1-based, as "6-11" (default: the middle to the last but one)',
    )
    token_bypass_selector: str = flag(
        "importance",
        affects="schedule",
        choices=("importance", "random"),
        help="keep the tokens whose ids had the largest losses, or a random draw",
    )
    token_bypass_entry: str = flag(
        "all",
        affects="schedule",
        choices=("all", "kept"),
        help="what kept tokens attend to in the span's first layer: all tokens, or kept",
    )
    token_bypass_special_ids: tuple[int, ...] = flag(
        (),
        affects="schedule",
        help="ids of tokens that importance always keeps (default: the tokenizer's special ones, such as [CLS])",
    )
    token_bypass_block_size: int = flag(
        1, affects="schedule", help="random selector: draw blocks of this many neighbouring tokens (1: single tokens)"
    )
    token_bypass_strata: int = flag(
        1, affects="schedule", help="cut the sequence in this many equal runs, each keeping its share of the tokens"
    )

    @property
    def enabled(self) -> bool:
        return self.token_bypass

    @property
    def grows(self) -> bool:
        """Whether kept tokens grow where ``token_bypass_growth_steps`` is given."""
        return self.token_bypass_schedule in (None, "growing")

    def schedule_flags(self, seq_length: int) -> ScheduleFlags:
        """The schedule that is asked for; kept tokens are half of ``seq_length`` where none are given."""
        return ScheduleFlags(
            prefix="--token-bypass",
            kept_flag="--token-bypass-kept-tokens",
            kind=self.token_bypass_schedule or ("constant" if self.token_bypass_growth_steps is None else "growing"),
            kept_tokens=self.token_bypass_kept_tokens,
            default_kept_tokens=max(1, seq_length // 2),
            growth_steps=self.token_bypass_growth_steps,
            granularity=self.token_bypass_granularity,
            stages=self.token_bypass_stages,
            strata=self.token_bypass_strata,
            block_size=self.token_bypass_block_size,
        )


def parse_span(text: str, num_layers: int) -> range:
    """Layer numbers of a span such as ``"6-11"``. Raises ``UserError`` where it is none inside the model."""
    first, _, last = text.strip().partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise UserError(f'--token-bypass-layers is "{text}": it is one span, such as 6-11; give its two ends')
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise UserError(f'--token-bypass-layers is "{text}": the span is empty; give the lower layer first')
    if span[0] < 2 or span[-1] >= num_layers:
        raise UserError(
            f'--token-bypass-layers is "{text}": the first and the last layer compute every token, so that a span lies '
            f"between 2 and {num_layers - 1} with --num-layers {num_layers}"
        )
    return span


@dataclass(frozen=True)
class TokenBypass(Method):
    """The span, how many tokens it keeps, and which."""

    title: ClassVar[str] = "TokenBypass"

    facts: ModelFacts
    schedule: TokenSchedule
    span: range
    config: TokenBypassConfig

    @classmethod
    def build(cls, config: TokenBypassConfig, facts: ModelFacts) -> TokenBypass:
        """Check the flags against the model. Raises ``UserError``."""
        num_layers, seq_length = facts.num_layers, facts.seq_length
        if num_layers < 3:
            raise UserError(
                f"--token-bypass keeps the first and the last layer full, and --num-layers {num_layers} has none "
                "between: use at least 3 layers"
            )
        span = parse_span(config.token_bypass_layers or f"{max(2, num_layers // 2)}-{num_layers - 1}", num_layers)
        schedule = config.schedule_flags(seq_length).build(facts)
        if config.token_bypass_special_ids and config.token_bypass_selector != "importance":
            raise UserError(
                f"--token-bypass-special-ids {' '.join(map(str, config.token_bypass_special_ids))} are kept by "
                f"importance, and --token-bypass-selector is {config.token_bypass_selector}: leave one of the two out"
            )
        if config.token_bypass_block_size > 1 and config.token_bypass_selector != "random":
            raise UserError(
                f"--token-bypass-block-size {config.token_bypass_block_size}: importance is that of single tokens; add "
                "--token-bypass-selector random, or leave the block size out"
            )
        return cls(facts, schedule, span, config)

    @property
    def name(self) -> str:
        """With the size of the blocks, where tokens come in such."""
        return f"{self.title}{in_blocks(self.config.token_bypass_block_size)}"

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of tokens that importance always keeps."""
        return self.config.token_bypass_special_ids or (self.facts.special_ids if self.learns else ())

    @property
    def settings(self) -> Mapping[str, Any]:
        """The span, its schedule, and how its tokens are chosen."""
        return {
            METHOD: "token_bypass",
            **self.config.schedule_flags(self.facts.seq_length).settings,
            "token_bypass_layers": f"{self.span[0]}-{self.span[-1]}",
            "token_bypass_selector": self.config.token_bypass_selector,
            "token_bypass_entry": self.config.token_bypass_entry,
            "token_bypass_special_ids": list(self.special_ids),
        }

    def plan(self, step: int) -> StepPlan:
        return self._plan(self.schedule.at(step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        for first_step, steps, kept_tokens in self.schedule.stages(num_steps):
            yield first_step, steps, self._plan(kept_tokens)

    @property
    def learns(self) -> bool:
        return self.config.token_bypass_selector == "importance"

    def unlearned(self, vocab_size: int) -> Tensor:
        """Every id as important as any other. Raises ``UserError`` for special ids outside the vocabulary."""
        from megatron.ltd.methods.token_bypass.importance import start_importance

        outside = [number for number in self.special_ids if not 0 <= number < vocab_size]
        if outside:
            raise UserError(
                f"--token-bypass-special-ids {outside[0]} is outside the vocabulary: ids of this tokenizer go from 0 "
                f"to {vocab_size - 1}; give some of those"
            )
        return start_importance(vocab_size)

    def learn(self, learned_V: Tensor, loss_sums_V: Tensor, counts_V: Tensor) -> Tensor:
        from megatron.ltd.methods.token_bypass.importance import next_importance

        return next_importance(learned_V, loss_sums_V, counts_V)

    def select(self, samples: Samples, layer_number: int, kept_tokens: int) -> Tensor:
        """The most important tokens, or one draw for the span: the same in each of its layers."""
        from megatron.ltd.methods.token_bypass.importance import importance_of, most_important
        from megatron.ltd.routing.sampling import kept_indices, token_keys  # import torch, which plans do not need

        seed, seq_length, strata = self.facts.seed, self.facts.seq_length, self.config.token_bypass_strata
        if not self.learns:
            block_size = self.config.token_bypass_block_size
            return kept_indices(seed, samples.ids_B, self.span[0], seq_length, kept_tokens, strata, block_size)
        assert samples.tokens_BS is not None and samples.learned_V is not None, "importance is that of tokens"
        importance_BS = importance_of(samples.tokens_BS, samples.learned_V, self.special_ids, samples.padding_BS)
        keys_BS = token_keys(seed, samples.ids_B, self.span[0], seq_length)
        return most_important(importance_BS, keys_BS, kept_tokens, strata)

    def _plan(self, kept_tokens: int) -> StepPlan:
        num_layers, seq_length = self.facts.num_layers, self.facts.seq_length
        if kept_tokens == seq_length:
            return StepPlan.dense(seq_length, num_layers)
        kept = tuple(kept_tokens if layer in self.span else seq_length for layer in range(1, num_layers + 1))
        entry = {self.span[0]} if self.config.token_bypass_entry == "all" else ()
        return StepPlan(seq_length, kept, (1.0,) * num_layers, frozenset(entry))
