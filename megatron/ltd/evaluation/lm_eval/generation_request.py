"""A request to generate text: lm-eval's ``generation_kwargs``, checked strictly, and where the text ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from megatron.ltd.errors import UserError

MAX_NEW_TOKENS = 256
"""If a task sets no limit; lm-eval's own models have the same."""

_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
_WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}
"""Settings of other libraries, at the values that change nothing."""
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_gen_toks": (lambda number: number >= 0, "0 or more"),
    "temperature": (lambda value: float(value) >= 0.0, "0 (the likeliest token) or more"),
    "top_k": (lambda number: int(number) >= 0, "1 or more; 0 draws from all tokens"),
    "top_p": (lambda share: 0.0 < float(share) <= 1.0, "above 0 and at most 1, which draws from all tokens"),
}


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, cut so that the answer fits the model, and how to continue it."""

    prompt: tuple[int, ...]
    is_truncated: bool
    max_new_tokens: int
    until: tuple[str, ...]
    temperature: float
    top_k: int | None
    top_p: float
    draw: int
    """How many earlier requests have the same prompt: each gets another sample."""

    @classmethod
    def read(cls, prompt: Sequence[int], arguments: Mapping[str, Any], max_length: int, draw: int) -> GenerationRequest:
        """Raises ``UserError`` for unknown settings, values out of range, and more tokens than fit the model."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), MAX_NEW_TOKENS))
        for name, value in settings.items():
            if name not in _KNOWN and not (name in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[name]):
                raise UserError(
                    f"--gen_kwargs {name}={value}: is not supported, here or in the generation_kwargs of a task; use "
                    f"{', '.join(sorted(_KNOWN))}"
                )
        for name, (is_right, rule) in _RULES.items():
            if settings.get(name) is not None and not is_right(settings[name]):
                raise UserError(
                    f"--gen_kwargs {name}={settings[name]}: must be {rule}; change it, or the task's setting"
                )
        room = max_length - settings["max_gen_toks"]
        if room < 1:
            raise UserError(
                f"--gen_kwargs max_gen_toks={settings['max_gen_toks']}: the model takes {max_length} tokens, prompt "
                f"included; give a number below {max_length}"
            )
        samples = settings["do_sample"]
        return cls(
            prompt=tuple(prompt[-room:]),
            is_truncated=len(prompt) > room,
            max_new_tokens=settings["max_gen_toks"],
            until=tuple(stop for stop in settings["until"] if stop),
            temperature=float(arguments.get("temperature", 1.0)) if samples else 0.0,
            top_k=int(settings["top_k"]) if settings.get("top_k") else None,
            top_p=1.0 if settings.get("top_p") is None else float(settings["top_p"]),
            draw=draw,
        )

    @property
    def most_tokens(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    def is_stopped(self, text: str) -> bool:
        """Whether the new text contains a stop sequence."""
        return any(stop in text for stop in self.until)

    def cut(self, text: str) -> str:
        """The new text before its first stop sequence."""
        return text[: min((text.find(stop) for stop in self.until if stop in text), default=len(text))]
