"""Reads a pickle without importing or calling anything that it names.

    bytes  ->  opcodes (pickletools)  ->  None, bool, int, str, tuple, list, dict, and:

    Name("torch", "Size")                     for a class or a function that the pickle names
    Constructed(Name("torch", "Size"), ((3, 4),))    for a call, with the state that the result would be given

The caller builds what it needs from these. ``pickle`` itself is not used: nothing is imported or called, no attribute
is set, and memory and time are proportional to the number of bytes. Opcodes that a description of tensors does not need
are refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Refused(Exception):
    """The pickle has unexpected content; the message describes it."""


class Name(NamedTuple):
    """A class or a function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Constructed:
    """An object that the pickle would create: the call, its arguments, and the state of the result."""

    maker: Name
    arguments: tuple[Any, ...]
    state: Any = None


def read_inert(
    data: bytes, check_name: Callable[[Name], None], check_constructed: Callable[[Constructed], None]
) -> Any:
    """The object that the pickle ``data`` describes, of the types above.

    ``check_name`` and ``check_constructed`` are called with every name and every call, and raise ``Refused`` for
    unexpected ones. Raises ``Refused`` for anything but a pickle of the opcodes below.
    """
    return _run(data, _Machine(check_name, check_constructed), _OPERATIONS)


def read_plain_parts(data: bytes) -> Any:
    """The same for a pickle that holds objects of any kind, of which the caller needs plain values only.

    It may name and call anything, since nothing is imported or called. What it puts into a constructed container, such
    as an ``OrderedDict``, is left out, and a tensor is None.
    """
    return _run(data, _AnyMachine(lambda _: None, lambda _: None), {**_OPERATIONS, **_MORE_OPERATIONS})


def _run(data: bytes, machine: _Machine, operations: Mapping[str, Callable[[Any, Any], None]]) -> Any:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            if opcode.name not in operations:
                raise Refused(f"it holds the opcode {opcode.name}, which describes no tensor")
            operations[opcode.name](machine, argument)
        (result,) = machine.pop(1)
    except (ValueError, LookupError) as error:  # from genops, or from a stack with too few values
        raise Refused(f"it is not a complete pickle ({type(error).__name__})") from None
    return result


class _Machine:
    """The stack machine that executes a pickle."""

    _keys: tuple[type, ...] = (str, Constructed)
    """Types of the keys of dictionaries; to hash nested tuples can take exponential time."""

    def __init__(self, check_name: Callable[[Name], None], check_constructed: Callable[[Constructed], None]) -> None:
        self._check_name, self._check_constructed = check_name, check_constructed
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """The last ``count`` values."""
        if count > len(self._stack):
            raise LookupError
        return [self._stack.pop() for _ in range(count)][::-1]

    def pop_marked(self) -> list[Any]:
        """The values since the last mark."""
        return self.pop(max(0, len(self._stack) - self._marks.pop()))

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def put(self, number: int | None) -> None:
        """Store the last value in the memo, under the next number if none is given."""
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def get(self, number: int) -> None:
        self.push(self._memo[number])

    def last(self, kind: type[_T]) -> _T:
        """The last value, which must be of this type."""
        value = self._stack[-1]
        if type(value) is not kind:
            raise Refused(f"it changes an object of type {type(value).__name__}, which describes no tensor")
        return value

    def extend(self, values: list[Any]) -> None:
        self.last(list).extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self.last(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in self._keys:
                raise Refused(f"it has a key of type {type(key).__name__}, which describes no tensor")
            target[key] = value

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("the name of a function is not a string")
        found = Name("builtins" if module == "__builtin__" else module, name)  # protocol 2 uses Python 2's name
        self._check_name(found)
        self.push(found)

    def make(self, maker: Any, arguments: Any) -> None:
        if type(maker) is not Name or type(arguments) is not tuple:
            raise Refused("it calls something that is not a class, which describes no tensor")
        made = Constructed(maker, arguments)
        self._check_constructed(made)
        self.push(made)

    def set_state(self, state: Any) -> None:
        self.last(Constructed).state = state


class _AnyMachine(_Machine):
    """It lets a pickle fill containers that it would construct, and drops what it puts there."""

    _keys = (str, int, float, bool, type(None), Name, Constructed)

    def extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not Constructed:
            super().extend(values)

    def set_items(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not Constructed:
            super().set_items(items)

    def set_state(self, state: Any) -> None:
        if type(self._stack[-1]) is Constructed:
            super().set_state(state)

    def replace(self, value: Any) -> None:
        self.pop(1)
        self.push(value)


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "UNICODE": _Machine.push,
    "BINUNICODE": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "MEMOIZE": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.make(*machine.pop(2)),
    "NEWOBJ": lambda machine, _: machine.make(*machine.pop(2)),
    "BUILD": lambda machine, _: machine.set_state(*machine.pop(1)),
}

_MORE_OPERATIONS: dict[str, Callable[[_AnyMachine, Any], None]] = {
    "BINFLOAT": _Machine.push,
    "LONG4": _Machine.push,
    "BINUNICODE8": _Machine.push,
    "BINBYTES": _Machine.push,
    "SHORT_BINBYTES": _Machine.push,
    "BINBYTES8": _Machine.push,
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_marked()),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_marked()),
    "NEWOBJ_EX": lambda machine, _: machine.make(*machine.pop(3)[:2]),
    "BINPERSID": lambda machine, _: machine.replace(None),
}
"""Those of plain values besides, which torch.save writes under any protocol."""
