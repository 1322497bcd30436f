"""The software of a run: installed versions, and a fingerprint that changes with any source file."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch

import megatron.ltd
from megatron.ltd import versions
from megatron.ltd.versions import installed_versions, package_version, source_fingerprint


def test_versions() -> None:
    found = installed_versions()
    assert found["torch"] in (torch.__version__, torch.__version__.partition("+")[0])  # pip's has no local version
    assert found["python"] == platform.python_version()
    assert found["megatron-ltd"] == megatron.ltd.__version__ and found["megatron-core"].startswith("0.16.")
    assert package_version("no-such-package") == "none"


def test_the_fingerprint_depends_on_the_sources_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is equal for a copy, ignores files that are not source, and changes with the content or name of a source."""
    original = source_fingerprint()
    copy = tmp_path / "ltd"
    shutil.copytree(Path(versions.__file__).parent, copy)
    monkeypatch.setattr(versions, "__file__", str(copy / "versions.py"))
    (copy / "methods" / "README.md").write_text("other words")
    assert source_fingerprint() == original and len(original) == 12
    (copy / "methods" / "base.py").rename(copy / "methods" / "basis.py")
    renamed = source_fingerprint()
    (copy / "errors.py").write_text((copy / "errors.py").read_text() + "\n")
    assert len({original, renamed, source_fingerprint()}) == 3
