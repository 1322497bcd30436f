"""The signatures of a version of Transformer Engine, which ``tools/transformer_engine_signatures.py`` records.

    @recorded("pytorch.module.linear.Linear.forward", ignores=("is_first_microbatch",))
    def forward(self, inp): ...

A call binds its arguments to the recorded signature: one that the version does not have is a ``TypeError``. The
function gets those that it names. The others must be ignored explicitly, or have their default: otherwise the stand-in
would compute something else than Transformer Engine, which is a ``NotImplementedError``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

VERSION = os.environ.get("TRANSFORMER_ENGINE_STAND_IN", "2.11.0")
"""The version whose signatures count."""
_RECORD = json.loads(Path(__file__).with_name("signatures.json").read_text(encoding="utf-8"))


def signature(name: str) -> inspect.Signature:
    """The recorded signature of ``name``, such as ``"pytorch.distributed.checkpoint"``."""
    text = next(entry["parameters"] for entry in _RECORD[name] if VERSION in entry["versions"])
    (function,) = ast.parse(f"def recorded({text}): ...").body
    assert isinstance(function, ast.FunctionDef)
    found = function.args
    positional = [*found.posonlyargs, *found.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(found.defaults))
    defaults = [*missing, *found.defaults]
    kinds = [inspect.Parameter.POSITIONAL_ONLY] * len(found.posonlyargs)
    kinds += [inspect.Parameter.POSITIONAL_OR_KEYWORD] * len(found.args)
    parameters = [_parameter(*each) for each in zip(positional, kinds, defaults, strict=True)]
    if found.vararg is not None:
        parameters.append(_parameter(found.vararg, inspect.Parameter.VAR_POSITIONAL))
    for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        parameters.append(_parameter(argument, inspect.Parameter.KEYWORD_ONLY, default))
    if found.kwarg is not None:
        parameters.append(_parameter(found.kwarg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _parameter(argument: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
    if default is None:
        return inspect.Parameter(argument.arg, kind)
    try:
        value = ast.literal_eval(default)
    except ValueError:  # torch.float32, or a name of a recipe's own module
        text = ast.unparse(default)
        value = getattr(torch, text.removeprefix("torch.")) if text.startswith("torch.") else text
    return inspect.Parameter(argument.arg, kind, default=value)


def bind(name: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """All arguments of a call by name, with defaults. Raises ``TypeError`` if the version does not take them."""
    try:
        bound = signature(name).bind(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(f"transformer_engine {VERSION}, {name}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def recorded(name: str, ignores: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the stand-in of ``name``; ``ignores``: arguments that do not change what a CPU computes."""
    parameters = signature(name).parameters

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        taken = inspect.signature(function).parameters

        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            bound = bind(name, *arguments, **keywords)
            for argument in bound.keys() - taken.keys() - set(ignores):
                value, default = bound[argument], parameters[argument].default
                if value is not default and value != default:
                    raise NotImplementedError(f"the stand-in of {name} does not compute {argument}={value!r}")
            return function(**{argument: bound[argument] for argument in taken})

        return checked

    return decorate
