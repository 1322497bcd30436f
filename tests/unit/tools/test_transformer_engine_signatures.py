"""The signatures that ``tools/transformer_engine_signatures.py`` reads from a wheel, and those that are recorded."""

from __future__ import annotations

import ast
import json
import zipfile
from pathlib import Path

import pytest

from tests.distributed.engine import VERSIONS
from tests.stand_ins.transformer_engine import signatures
from tests.support_errors import refused
from tools import transformer_engine_signatures as tool

MODULE = """
class Linear:
    def __init__(self, size: int, /, bias: bool = True, *rest, device: str | None = "cuda", **kwargs) -> None: ...

class Function(autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, smoothing=0.0): ...

entropy = Function.apply

@dataclass()
class Recipe(Base):
    margin: int = 0
    note = "no field"
    fp8_format: Format = Format.HYBRID
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Linear.__init__", "self, size, /, bias=True, *rest, device='cuda', **kwargs"),
        ("entropy", "logits, target, smoothing=0.0, /"),
        ("Recipe", "margin=0, fp8_format=Format.HYBRID"),
    ],
)
def test_parameters(name: str, expected: str) -> None:
    assert tool.parameters(ast.parse(MODULE), name) == expected


def test_a_wheel_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, text in (
        ("1.0", "def f(a): ...\nraise SystemExit"),
        ("1.1", "def f(a): ..."),
        ("1.2", "def f(b): ..."),
    ):
        with zipfile.ZipFile(tmp_path / f"transformer_engine-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr("transformer_engine/pytorch/some.py", text)
    record = tmp_path / "record.json"
    monkeypatch.setattr(tool, "SOURCES", {"pytorch/some.py": ("f",)})
    monkeypatch.setattr(tool, "RECORD", record)
    monkeypatch.setattr("sys.argv", ["tool", "--wheels", str(tmp_path), "--versions", "1.0", "1.1", "1.2"])
    tool.main()
    first, second = {"versions": ["1.0", "1.1"], "parameters": "a"}, {"versions": ["1.2"], "parameters": "b"}
    assert json.loads(record.read_text()) == {"pytorch.some.f": [first, second]}
    assert tool.recorded_versions() == ["1.0", "1.1", "1.2"]
    monkeypatch.setattr("sys.argv", ["tool", "--wheels", str(tmp_path), "--versions", "1.3"])
    with refused(f"--wheels {tmp_path}", "transformer_engine-1.3-*.whl"):
        tool.main()


def test_everything_is_recorded_for_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool.recorded_versions() == list(VERSIONS)
    recorded = json.loads(tool.RECORD.read_text(encoding="utf-8"))
    prefixes = {path: path.removesuffix(".py").replace("/", ".") for path in tool.SOURCES}
    assert recorded.keys() == {f"{prefixes[path]}.{name}" for path, names in tool.SOURCES.items() for name in names}
    for version in VERSIONS:
        monkeypatch.setattr(signatures, "VERSION", version)
        assert all(str(signatures.signature(name)) for name in recorded)
