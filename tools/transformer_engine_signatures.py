#!/usr/bin/env python3
"""Record what Transformer Engine's functions take, for the tests that run without it.

    python tools/transformer_engine_signatures.py                     versions that are recorded, from the package index
    python tools/transformer_engine_signatures.py --versions 2.9.0 2.11.0
    python tools/transformer_engine_signatures.py --wheels FOLDER     from wheels that were downloaded before

pip downloads the wheel of ``transformer-engine``, which has the Python sources and needs no CUDA. They are parsed and
never imported. Recorded are the parameters of the functions that Megatron-Core's ``extensions/transformer_engine.py``
and its optimizer, or we, call: names, kinds and defaults, as they would be written in a ``def``. Recipes of fp8 are
dataclasses, whose fields are recorded.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron.ltd.errors import UserError, run_command  # noqa: E402
from megatron.ltd.flags import Settings, flag, read_command  # noqa: E402

RECORD = REPOSITORY / "tests" / "stand_ins" / "transformer_engine" / "signatures.json"

_ATTENTION = "pytorch/attention/dot_product_attention/dot_product_attention.py"
SOURCES = {
    "pytorch/module/linear.py": ("Linear.__init__", "Linear.forward"),
    "pytorch/module/layernorm_linear.py": ("LayerNormLinear.__init__", "LayerNormLinear.forward"),
    "pytorch/module/layernorm.py": ("LayerNorm.__init__",),
    "pytorch/module/rmsnorm.py": ("RMSNorm.__init__",),
    # what the keyword arguments of the two norms are
    "pytorch/ops/basic/layer_norm.py": ("LayerNorm.__init__",),
    "pytorch/ops/basic/rmsnorm.py": ("RMSNorm.__init__",),
    _ATTENTION: ("DotProductAttention.__init__", "DotProductAttention.forward"),
    "pytorch/attention/rope.py": ("apply_rotary_pos_emb",),
    "pytorch/cross_entropy.py": ("parallel_cross_entropy",),
    "pytorch/distributed.py": ("checkpoint",),
    "pytorch/cpu_offload.py": ("get_cpu_offload_context",),
    "pytorch/quantization.py": (
        "fp8_autocast",
        *(f"FP8GlobalStateManager.is_{what}_available" for what in ("fp8", "mxfp8", "fp8_block_scaling")),
        "FP8GlobalStateManager.add_fp8_tensors_to_global_buffer",
    ),
    "pytorch/module/base.py": tuple(
        f"TransformerEngineBaseModule.{what}_fp8_meta_tensors" for what in ("init", "get", "reset")
    ),
    "common/recipe/__init__.py": (
        *("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling"),
    ),
    "pytorch/optimizers/fused_adam.py": ("FusedAdam.__init__", "FusedAdam.step"),
    "pytorch/optimizers/multi_tensor_apply.py": ("MultiTensorApply.__call__",),
}
"""The functions that are recorded, by the file of the package that defines them."""


def signatures(wheel: Path) -> dict[str, str]:
    """The parameters of every function of ``SOURCES`` in ``wheel``: ``"folder.file.name"`` -> ``"self, x, y=1"``."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for path, names in SOURCES.items():
            module = ast.parse(archive.read(f"transformer_engine/{path}"))
            prefix = path.removesuffix(".py").replace("/", ".")
            found |= {f"{prefix}.{name}": parameters(module, name) for name in names}
    return found


def parameters(module: ast.Module, name: str) -> str:
    """The parameters of the function ``name``, which may be a method, ``function = Function.apply`` of autograd, or a
    dataclass.
    """
    scope: list[ast.stmt] = module.body
    for part in name.split("."):
        node = _named(scope, part)
        scope = getattr(node, "body", [])
    if isinstance(node, ast.Assign):
        function = ast.unparse(node.value).removesuffix(".apply")
        *_, forward = ast.parse(f"def forward({parameters(module, f'{function}.forward')}, /): ...").body
        assert isinstance(forward, ast.FunctionDef)
        del forward.args.posonlyargs[0]  # the context of autograd
        return ast.unparse(forward.args)
    if isinstance(node, ast.ClassDef):
        fields = (field for field in node.body if isinstance(field, ast.AnnAssign) and field.value is not None)
        return ", ".join(f"{ast.unparse(field.target)}={ast.unparse(field.value)}" for field in fields)
    assert isinstance(node, ast.FunctionDef), name
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(node.args)


def _named(scope: Iterable[ast.stmt], name: str) -> ast.stmt:
    for node in scope:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node
    raise LookupError(name)


def merged(by_version: Mapping[str, Mapping[str, str]]) -> dict[str, list[dict[str, object]]]:
    """Each function's different signatures, with the versions that have them."""
    versions: dict[str, dict[str, list[str]]] = {}
    for version, found in by_version.items():
        for name, text in found.items():
            versions.setdefault(name, {}).setdefault(text, []).append(version)
    return {
        name: [{"versions": its, "parameters": text} for text, its in by_text.items()]
        for name, by_text in versions.items()
    }


def recorded_versions() -> list[str]:
    entries = [entry for entries in json.loads(RECORD.read_text(encoding="utf-8")).values() for entry in entries]
    versions = {version for entry in entries for version in entry["versions"]}
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def download(versions: Iterable[str], folder: Path) -> None:
    """Have pip put the wheel of each version into ``folder``."""
    for version in versions:
        package = f"transformer-engine=={version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*command, "--dest", str(folder), package], check=False).returncode:
            raise UserError(f"--versions {version}: pip could not download {package}; see its message above")


@dataclass(frozen=True)
class SignaturesConfig(Settings):
    """signatures"""

    versions: tuple[str, ...] = flag((), help="versions to record (default: those that are recorded)")
    wheels: Path | None = flag(None, metavar="FOLDER", help="a folder with their wheels (default: pip downloads them)")


def main() -> None:
    """Read the wheels and write the record."""
    (config,) = read_command(__doc__, SignaturesConfig)
    versions = config.versions or recorded_versions()
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.wheels or Path(scratch)
        if config.wheels is None:
            download(versions, folder)
        by_version = {}
        for version in versions:
            wheel = next(folder.glob(f"transformer_engine-{version}-*.whl"), None)
            if wheel is None:
                raise UserError(f"--wheels {folder}: has no transformer_engine-{version}-*.whl; download it")
            by_version[version] = signatures(wheel)
    RECORD.write_text(json.dumps(merged(by_version), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
