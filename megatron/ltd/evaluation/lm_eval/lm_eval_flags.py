"""The flags of ``lm_eval run``, made from the fields of lm-eval's public ``EvaluatorConfig``.

    --tasks piqa boolq          several words, or one with commas
    --gen_kwargs temperature=0.8,until=["\\n"]      key=value, several words or one with commas; or a JSON object

Importing this module needs neither lm-eval nor torch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import typing
from typing import Any, NoReturn

from megatron.ltd.errors import UserError

_SHORT = {
    "tasks": "-t", "model": "-M", "model_args": "-a", "limit": "-L", "use_cache": "-c",
    "num_fewshot": "-f", "batch_size": "-b", "output_path": "-o", "log_samples": "-s", "samples": "-E",
    "verbosity": "-v", "write_out": "-w", "predict_only": "-x",
}  # fmt: skip


class _Words(argparse.Action):
    """Words with or without commas, as one list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = [word for value in values for word in value.split(",")]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), *words])


class _Settings(argparse.Action):
    """``key=value`` words, or a JSON object, as one dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        found = dict(getattr(namespace, self.dest, {}))
        for text in values:
            if text.lstrip().startswith("{"):
                try:
                    found |= json.loads(text)
                except ValueError:
                    raise argparse.ArgumentError(self, f"{text} is not valid JSON") from None
                continue
            for item in re.split(r",(?=\s*\w+=)", text):  # a comma inside a list is followed by no "key="
                key, equals, value = item.partition("=")
                if not equals:
                    raise argparse.ArgumentError(self, f"{item!r} must be key=value")
                found[key.strip()] = _value(value)
        setattr(namespace, self.dest, found)


def _value(text: str) -> Any:
    """A setting as Python reads it (numbers, true and false, lists), else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def _seeds(text: str) -> list[int | None]:
    return [None if seed.strip().lower() == "none" else int(seed) for seed in text.split(",")]


_seeds.__name__ = "list of integers"
_OPTIONS: dict[str, dict[str, Any]] = {
    "tasks": {"nargs": "+", "action": _Words, "metavar": "TASK"},
    "cache_requests": {"nargs": "?", "const": "true", "choices": ("true", "refresh", "delete")},
    "apply_chat_template": {"nargs": "?", "const": True, "metavar": "TEMPLATE"},
    "fewshot_as_multiturn": {"nargs": "?", "const": True, "type": _value, "metavar": "BOOL"},
    "seed": {"type": _seeds, "metavar": "PYTHON,NUMPY,TORCH,FEWSHOT"},
    "batch_size": {"metavar": "SIZE"},
}


class LmEvalParser(argparse.ArgumentParser):
    """The flags of ``lm_eval run`` without its ``--config``: settings files are ours. Errors are ``UserError``.

    A flag that is not typed is absent from the namespace.
    """

    def __init__(self) -> None:
        super().__init__(usage="%(prog)s [flags]", add_help=False, allow_abbrev=False)
        _add_flags(self)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """All flags by their spelling."""
        return dict(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's ``message`` as a ``UserError``."""
        raise UserError(message.removeprefix("argument "))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    annotations = typing.get_type_hints(EvaluatorConfig)
    for field in dataclasses.fields(EvaluatorConfig):
        if field.name == "config":
            continue
        kinds = {annotations[field.name], *typing.get_args(annotations[field.name])}
        options = _OPTIONS.get(field.name)
        if options is None and bool in kinds:
            options = {"action": "store_true"}
        elif options is None and dict in kinds and str not in kinds:
            options = {"nargs": "+", "action": _Settings, "metavar": "KEY=VALUE"}
        elif options is None:
            number = next((kind for kind in (int, float) if kind in kinds), None)
            options = {"type": number or str, "metavar": "N" if number else "TEXT"}
        short = [_SHORT[field.name]] if field.name in _SHORT else []
        text = str(field.metadata.get("help", "")).replace("%", "%%")
        parser.add_argument(f"--{field.name}", *short, default=argparse.SUPPRESS, help=text, **options)


def cache_arguments(mode: str | dict[str, bool]) -> dict[str, bool]:
    """``--cache_requests`` as arguments of ``simple_evaluate``."""
    if not isinstance(mode, str):
        return mode
    return {
        "cache_requests": mode != "delete",
        "rewrite_requests_cache": mode == "refresh",
        "delete_requests_cache": mode == "delete",
    }
