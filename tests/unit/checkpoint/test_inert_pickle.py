"""Plain values are read from any pickle, whatever it imports and calls. Descriptions of tensors: safe_metadata."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.checkpoint.inert_pickle import Constructed, Name, Refused, read_plain_parts
from tests.support_pickles import Payload

PLAIN = {
    "none": None, "switch": True, "count": 1 << 70, "small": -3, "number": 2.5, "text": "ä" * 300, "list": [1, [2]],
    "pair": (1, "a"), "table": {1: "one", None: 2, 2.5: False}, "bytes": b"ab", "bytes of 300": b"a" * 300,
}  # fmt: skip
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_those_of_pickle(protocol: int) -> None:
    values = {name: value for name, value in PLAIN.items() if protocol > 2 or type(value) is not bytes}
    assert read_plain_parts(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_values_beside_other_objects_are_found(protocol: int, tmp_path: Path) -> None:
    """A namespace with sets, classes, other containers and a payload, which is not executed."""
    mark = tmp_path / "mark"
    others = {"set": {1, 2}, "frozen": frozenset({3}), "ordered": OrderedDict(a=1), "deque": deque([1]), "class": Path}
    args = argparse.Namespace(before=1, **others, payload=Payload(mark), error=ValueError("x"), after="last")
    found = read_plain_parts(pickle.dumps({"args": args, "same": args}, protocol))
    assert not mark.exists()
    assert type(found["args"]) is Constructed and found["args"].maker == Name("argparse", "Namespace")
    assert found["args"] is found["same"]
    assert (found["args"].state["before"], found["args"].state["after"]) == (1, "last")
    assert found["args"].state["payload"].maker.name == "mkdir"


def test_a_tensor_is_left_out() -> None:
    """torch.save puts it into another file of the archive, which the pickle names by a persistent id."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: object) -> tuple[str, int] | None:
            return ("storage", 1) if isinstance(found, torch.Tensor) else None

    content = io.BytesIO()
    Pickler(content, 2).dump({"scale": torch.ones(3), "step": 4})
    assert read_plain_parts(content.getvalue()) == {"scale": None, "step": 4}


DAMAGED: dict[str, Any] = {
    "nothing": b"",
    "cut off": pickle.dumps(PLAIN)[:-20],
    "no pickle": b"PK\x03\x04 and more",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id of protocol 0": b"Pname\n.",
    "a key that is a tuple": pickle.dumps({(1, 2): 3}),
    "a call of a text": b"Vtext\n)R.",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(Refused):
        read_plain_parts(content)
