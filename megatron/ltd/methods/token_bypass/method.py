"""TokenBypass: some tokens of a sample bypass a span of layers, the same tokens in all of them.

    layers before the span      all tokens
    the span's first layer      the kept tokens, which attend to all tokens
    the rest of the span        the kept tokens, among themselves
    layers after the span       all tokens

The most important tokens are kept (``importance``), or a random draw that the layers of the span share. Each layer
gathers and scatters the kept tokens by itself, which computes the same as doing so once for the span, so that a span
may cross pipeline stages. Hou et al., "Token Dropping for Efficient BERT Pretraining" (arXiv:2203.13240).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.flags.ranges import Range, count_in
from megatron.ltd.methods.base import METHOD, ModelFacts, Samples
from megatron.ltd.methods.schedule_choice import FollowsSchedule, ScheduleChoice
from megatron.ltd.methods.schedule_flags import ScheduleFlags
from megatron.ltd.schedules.kept_tokens import TokenSchedule
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenBypassConfig(ScheduleFlags, prefix="token_bypass", only_with="random selector: "):
    """TokenBypass (tokens that bypass the middle layers)"""

    token_bypass: bool = flag(False, affects="schedule", help="let the less important tokens bypass a span of layers")
    token_bypass_layers: str | None = flag(
        None,
        affects="schedule",
        metavar="SPAN",
        help='layers of the span, 1-based, as "6-11" (default: from the middle to the last but one)',
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
        help="the tokens that kept tokens attend to in the span's first layer: all of them, or the kept ones",
    )
    token_bypass_special_ids: tuple[int, ...] = flag(
        (),
        range=Range(0, (1 << 31) - 1),
        affects="schedule",
        help="ids of tokens that importance always keeps (default: the tokenizer's special ones, such as [CLS])",
    )

    @property
    def enabled(self) -> bool:
        return self.token_bypass


def parse_span(text: str, num_layers: int) -> range:
    """The layer numbers of a span such as ``"6-11"``. Raises ``UserError`` if it is not inside the model."""
    first, last = (count_in(part) for part in text.strip().partition("-")[::2])
    if first is None or (last is None and "-" in text):
        raise UserError(f"--token-bypass-layers {text}: must be one span; give its first and last layer, as 6-11")
    span = range(first, (first if last is None else last) + 1)
    if not span:
        raise UserError(f"--token-bypass-layers {text}: the span is empty; give the lower layer first")
    if span[0] < 2 or span[-1] >= num_layers:
        raise UserError(
            f"--token-bypass-layers {text}: the first and the last layer compute every token; give a span from 2 to "
            f"{num_layers - 1} with --num-layers {num_layers}"
        )
    return span


@dataclass(frozen=True)
class TokenBypass(FollowsSchedule):
    """The span of layers, and how many and which tokens it keeps."""

    title: ClassVar[str] = "TokenBypass"

    facts: ModelFacts
    schedule: TokenSchedule
    span: range
    config: TokenBypassConfig
    choice: ScheduleChoice

    @classmethod
    def build(cls, config: TokenBypassConfig, facts: ModelFacts) -> TokenBypass:
        """Check the flags against the model. Raises ``UserError``."""
        num_layers = facts.num_layers
        if num_layers < 3:
            raise UserError(
                f"--num-layers {num_layers}: --token-bypass drops no tokens in the first and the last layer, so no "
                "layer is left; use at least 3 layers"
            )
        span = parse_span(config.token_bypass_layers or f"{max(2, num_layers // 2)}-{num_layers - 1}", num_layers)
        choice = config.schedule_choice(facts)
        schedule = choice.build(facts)
        if config.token_bypass_special_ids and config.token_bypass_selector != "importance":
            raise UserError(
                f"--token-bypass-special-ids {' '.join(map(str, config.token_bypass_special_ids))}: has no effect with "
                f"--token-bypass-selector {config.token_bypass_selector}; remove one of the two"
            )
        if choice.block_size > 1 and config.token_bypass_selector != "random":
            raise UserError(
                f"--token-bypass-block-size {choice.block_size}: importance ranks single tokens, not blocks; add "
                "--token-bypass-selector random, or remove the block size"
            )
        return cls(facts, schedule, span, config, choice)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of tokens that importance always keeps."""
        return self.config.token_bypass_special_ids or (self.facts.special_ids if self.observes else ())

    @property
    def settings(self) -> Mapping[str, Any]:
        """The span, its schedule, and how its tokens are selected."""
        return {
            METHOD: "token_bypass",
            **self.choice.settings,
            "token_bypass_layers": f"{self.span[0]}-{self.span[-1]}",
            "token_bypass_selector": self.config.token_bypass_selector,
            "token_bypass_entry": self.config.token_bypass_entry,
            "token_bypass_special_ids": list(self.special_ids),
        }

    @property
    def observes(self) -> bool:
        return self.config.token_bypass_selector == "importance"

    def initial_state(self, vocab_size: int | None) -> Tensor | None:
        """The same importance for every id. Raises ``UserError`` for special ids outside the vocabulary."""
        if not self.observes:
            return None
        if vocab_size is None:
            raise UserError(
                "--token-bypass-selector importance: importance is learned from the loss of each token id, and this "
                "model's tokens have none; use --token-bypass-selector random"
            )
        from megatron.ltd.methods.token_bypass.importance import start_importance

        outside = [number for number in self.special_ids if not 0 <= number < vocab_size]
        if outside:
            raise UserError(
                f"--token-bypass-special-ids {outside[0]}: is outside the vocabulary; give ids of this tokenizer, from "
                f"0 to {vocab_size - 1}"
            )
        return start_importance(vocab_size)

    def observe(self, learned_V: Tensor | None, losses_2V: Tensor | None) -> Tensor | None:
        """The importances after the step; those before it if the step was skipped and has no losses."""
        from megatron.ltd.methods.token_bypass.importance import next_importance

        if learned_V is None or losses_2V is None:
            return learned_V
        return next_importance(learned_V, *losses_2V)

    def select(self, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> Tensor:
        """The most important tokens, or one draw: the same in every layer of the span."""
        from megatron.ltd.methods.token_bypass.importance import importance_of, most_important
        from megatron.ltd.routing.sampling import kept_by_layers, token_keys  # import torch, which plans do not need

        seed, seq_length, strata = self.facts.seed, self.facts.seq_length, self.choice.strata
        shared = (self.span[0],)
        if not self.observes:
            drawn = (shared, seq_length, kept_tokens, strata, self.choice.block_size)
            return kept_by_layers(seed, samples.sample_ids_B, *drawn, self.facts.kernels)
        assert samples.whole_tokens_BS is not None and samples.learned_V is not None, "the method observes"
        importance_BS = importance_of(samples.whole_tokens_BS, samples.learned_V, self.special_ids, samples.padding_BS)
        (keys_BS,) = token_keys(seed, samples.sample_ids_B, shared, seq_length)
        return most_important(importance_BS, keys_BS, kept_tokens, strata)[None]

    def plan_with(self, kept_tokens: int) -> StepPlan:
        num_layers, seq_length = self.facts.num_layers, self.facts.seq_length
        if kept_tokens == seq_length:
            return StepPlan.dense(seq_length, num_layers)
        kept = tuple(kept_tokens if layer in self.span else seq_length for layer in range(1, num_layers + 1))
        entry = {self.span[0]} if self.config.token_bypass_entry == "all" else ()
        return StepPlan(seq_length, kept, (1.0,) * num_layers, frozenset(entry))
