"""Numbers in a checkpoint that do not fit its files or the model cause one error line and exit status 2."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from megatron.ltd.workloads import BERT, VIT
from tests.end_to_end.runs import bert_flags, reseal, run_status, tiny_flags
from tests.end_to_end.tools import bert, bert_classifier, evaluate, export, finetune, generate, load, tool_status, vit
from tests.support_errors import assert_names
from tests.support_vit import vit_flags


def _weight(metadata: Metadata) -> str:
    """The name of the weights that are changed: in a GPT they are the decoder's."""
    names = (f"{part}.layers.mlp.linear_fc1.weight" for part in ("decoder", "encoder"))
    return next(name for name in names if name in metadata.state_dict_metadata)


def _entry(metadata: Metadata) -> Any:
    return metadata.state_dict_metadata[_weight(metadata)]


def _place(metadata: Metadata) -> Any:
    return metadata.storage_data[MetadataIndex(_weight(metadata), _entry(metadata).chunks[0].offsets)]


def _resize(metadata: Metadata, *shape: int) -> None:
    entry, place = _entry(metadata), _place(metadata)
    entry.size = torch.Size(shape)
    entry.chunks = [ChunkStorageMetadata(torch.Size([0] * len(shape)), entry.size)]
    metadata.storage_data[MetadataIndex(_weight(metadata), entry.chunks[0].offsets)] = place


class _Huge:
    """An object that pickles as a shape with a length of more than 64 bits."""

    def __reduce__(self) -> Any:
        return torch.Size, ((1 << 70, 1),)


def _huge(metadata: Metadata) -> None:
    _entry(metadata).size = _Huge()


METADATA: dict[str, Callable[[Metadata], Any]] = {
    "no tensor": lambda metadata: metadata.state_dict_metadata.pop(_weight(metadata)),
    "a negative length": lambda metadata: _resize(metadata, -3, 64, 16),
    "a huge length": _huge,
    "huge": lambda metadata: _resize(metadata, 1 << 62, 1 << 62, 1 << 62),
    "beyond memory": lambda metadata: _resize(metadata, 3, 1 << 30, 16),
    "more axes": lambda metadata: _resize(metadata, 3, 64, 16, 1),
    "no axis": lambda metadata: _resize(metadata),
    "fewer layers": lambda metadata: _resize(metadata, 2, 64, 16),
    "no layer": lambda metadata: _resize(metadata, 0, 64, 16),
    "transposed": lambda metadata: _resize(metadata, 3, 16, 64),
    "no chunk": lambda metadata: _entry(metadata).chunks.clear(),
    "a chunk twice": lambda metadata: _entry(metadata).chunks.append(_entry(metadata).chunks[0]),
    "a chunk elsewhere": lambda metadata: setattr(_entry(metadata).chunks[0], "offsets", torch.Size([1, 0, 0])),
    "a larger chunk": lambda metadata: setattr(_entry(metadata).chunks[0], "sizes", torch.Size([9, 64, 16])),
    "a chunk of fewer axes": lambda metadata: setattr(_entry(metadata).chunks[0], "sizes", torch.Size([3])),
    "no place": lambda metadata: metadata.storage_data.clear(),
    "a negative offset": lambda metadata: setattr(_place(metadata), "offset", -1),
    "an offset beyond the file": lambda metadata: setattr(_place(metadata), "offset", 1 << 40),
    "a huge offset": lambda metadata: setattr(_place(metadata), "offset", 1 << 80),
    "a negative size": lambda metadata: setattr(_place(metadata), "length", -1),
    "a size beyond the file": lambda metadata: setattr(_place(metadata), "length", 1 << 40),
    "another tensor's place": lambda metadata: setattr(_place(metadata), "offset", 0),
    "a file elsewhere": lambda metadata: setattr(_place(metadata), "relative_path", "../../../etc/passwd"),
    "a file of its own": lambda metadata: setattr(_place(metadata), "relative_path", "/etc/passwd"),
    "a folder": lambda metadata: setattr(_place(metadata), "relative_path", ".."),
    "a missing file": lambda metadata: setattr(_place(metadata), "relative_path", "missing.distcp"),
    "no file": lambda metadata: setattr(_place(metadata), "relative_path", "\0"),
    "a file of text": lambda metadata: setattr(_place(metadata), "relative_path", "run.json"),
    "another type": lambda metadata: setattr(_entry(metadata).properties, "dtype", torch.complex128),
}


def _change_metadata(checkpoint: Path, change: Callable[[Metadata], Any]) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    metadata.all_local_plans = None  # it shares objects with the other fields
    change(metadata)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(checkpoint)


def _set(record: Any, *names: str, value: Any) -> None:
    for name in names[:-1]:
        record = record[name]
    record[names[-1]] = value


_DEEP = json.loads("[" * 500 + "]" * 500)
RUN: dict[str, tuple[tuple[str, ...], Any]] = {
    "layers": (("config", "model", "num_layers"), 10**9),
    "no layers": (("config", "model", "num_layers"), 0),
    "layers no number": (("config", "model", "num_layers"), "3"),
    "layers a fraction": (("config", "model", "num_layers"), 2.5),
    "layers a list": (("config", "model", "num_layers"), [3]),
    "layers deep": (("config", "model", "num_layers"), _DEEP),
    "hidden": (("config", "model", "hidden_size"), 1 << 40),
    "hidden negative": (("config", "model", "hidden_size"), -16),
    "heads": (("config", "model", "num_attention_heads"), 1 << 62),
    "MLP": (("config", "model", "ffn_hidden_size"), 1 << 40),
    "length": (("config", "model", "seq_length"), -1),
    "length huge": (("config", "model", "seq_length"), 1 << 62),
    "normalization": (("config", "model", "normalization"), ["LayerNorm"]),
    "epsilon": (("config", "model", "norm_epsilon"), "small"),
    "dropout": (("config", "model", "hidden_dropout"), 1e400),
    "switch": (("config", "model", "swiglu"), "no"),
    "a setting unknown": (("config", "model", "weights"), 1),
    "no model": (("config", "model"), None),
    "tokenizer": (("config", "tokenizer", "tokenizer_type"), 7),
    "vocabulary": (("config", "tokenizer", "vocab_size"), 1 << 62),
    "padding": (("config", "tokenizer", "make_vocab_size_divisible_by"), 0),
    "padding huge": (("config", "tokenizer", "make_vocab_size_divisible_by"), 1 << 62),
    "parallel": (("config", "parallel", "tensor_model_parallel_size"), -2),
    "no parallel": (("config", "parallel"), []),
    "precision": (("config", "precision", "bf16"), "yes"),
    "iteration": (("progress", "iteration"), "6"),
    "iteration negative": (("progress", "iteration"), -6),
    "iteration huge": (("progress", "iteration"), 10**300),
    "samples": (("progress", "consumed_samples"), None),
    "tokens": (("progress", "consumed_tokens"), -1),
    "samples of the data": (("progress", "data_first_sample"), 1 << 40),
    "layer tokens": (("progress", "consumed_layer_tokens"), 1e300),
    "progress of more": (("progress", "speed"), 1),
    "no samples": (("progress",), {"iteration": 6}),
    "no identity": (("identity",), {}),
    "no order": (("order",), {}),
    "no schedule": (("schedule",), {}),
    "learned": (("learned",), True),
}


def _arguments(run: Path, data: str, folder: Path) -> tuple[int, str]:
    typed = tiny_flags(data, "--load", run, "--use-checkpoint-args", "--log-dir", folder)
    for name in ("--num-layers", "--hidden-size", "--num-attention-heads", "--seq-length", "--tokenizer-type"):
        place = typed.index(name)
        del typed[place : place + 2]
    return run_status(typed)


Command = Callable[[Path, str, Path], tuple[int, str]]


@pytest.mark.parametrize("command", [load, finetune, generate, export])
@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA.keys())
def test_metadata(
    change: Callable[[Metadata], Any], command: Command, data: str, trained: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "iter_0000006"
    _change_metadata(checkpoint, change)
    status, said = command(trained, data, tmp_path)
    lines = said.splitlines()
    assert (status, len(lines)) == (2, 1) and str(checkpoint) in lines[0], (status, said)
    assert not (tmp_path / "exported").exists()


@pytest.fixture(scope="module")
def runs(straight: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of the workloads, by name. Tests must not change them."""
    folder = tmp_path_factory.mktemp("runs")
    assert run_status([*bert_flags(folder), "--save", str(folder / "bert")], workload=BERT) == (0, "")
    vit_run = [*vit_flags(folder), "--device", "cpu", "--save", str(folder / "vit")]
    assert run_status(vit_run, workload=VIT) == (0, "")
    return {"gpt": straight, "bert": folder / "bert", "vit": folder / "vit"}


@pytest.mark.parametrize(("name", "command"), [
    pytest.param("gpt", evaluate, marks=pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs extra eval")),
    ("bert", bert), ("bert", bert_classifier), ("vit", vit),
])  # fmt: skip
@pytest.mark.parametrize("case", [None, "no tensor", "a huge length", "a negative offset", "transposed"])
def test_metadata_of_other_commands(
    case: str | None, name: str, command: Command, runs: dict[str, Path], data: str, tmp_path: Path
) -> None:
    """Without a change the command succeeds, so it reads these metadata."""
    run, folder = Path(shutil.copytree(runs[name], tmp_path / "run")), tmp_path / "folder"
    folder.mkdir()
    checkpoint = max(run.glob("iter_*"))
    _change_metadata(checkpoint, METADATA[case] if case is not None else lambda metadata: None)
    status, said = command(run, data, folder)
    assert status == (0 if case is None else 2), said
    assert case is None or (len(said.splitlines()) == 1 and str(checkpoint) in said), said


@pytest.mark.parametrize("command", [load, _arguments, generate, export])
@pytest.mark.parametrize(("names", "value"), RUN.values(), ids=RUN.keys())
def test_run_records(
    names: tuple[str, ...], value: Any, command: Command, data: str, trained: Path, tmp_path: Path
) -> None:
    """A command that does not use the changed field may also succeed."""
    checkpoint = trained / "iter_0000006"
    record = json.loads((checkpoint / "run.json").read_text())
    _set(record, *names, value=value)
    (checkpoint / "run.json").write_text(json.dumps(record))
    reseal(checkpoint)
    status, said = command(trained, data, tmp_path)
    assert (status, said) == (0, "") or (status, len(said.splitlines())) == (2, 1), (status, said)
    assert status == 0 or not (tmp_path / "exported").exists()


def _common(**changes: Any) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        torch.save({**torch.load(checkpoint / "common.pt"), **changes}, checkpoint / "common.pt")

    return change


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).write_text(text)


def _tensors(change: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    """Replace the stored tensor by other content with at least as many bytes."""

    def damage(checkpoint: Path) -> None:
        metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
        place = _place(metadata)
        path, saved = checkpoint / place.relative_path, io.BytesIO()
        torch.save(change(torch.ones(3, 64, 16)), saved)
        saved.write(bytes(max(0, place.length - saved.tell())))
        place.offset, place.length = path.stat().st_size, saved.tell()
        path.write_bytes(path.read_bytes() + saved.getvalue())
        (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))

    return damage


SCALER = {"scale": torch.tensor([1.0]), "growth_tracker": 0, "hysteresis_tracker": 0}
FILES: dict[str, Callable[[Path], Any]] = {
    "no step": _common(optimizer={}),
    "step no number": _common(optimizer={"step": "6"}),
    "step negative": _common(optimizer={"step": -6}),
    "step a tensor": _common(optimizer={"step": torch.ones(3)}),
    "optimizer a list": _common(optimizer=[6]),
    "scaler": _common(optimizer={"step": 6, "grad_scaler": {"scale": torch.tensor([0.0])}}),
    "scaler of NaN": _common(optimizer={"step": 6, "grad_scaler": {**SCALER, "scale": torch.tensor([torch.nan])}}),
    "scaler of text": _common(optimizer={"step": 6, "grad_scaler": {**SCALER, "growth_tracker": "0"}}),
    "no clock": _common(opt_param_scheduler=None),
    "clock": _common(opt_param_scheduler={"num_steps": 1e300}),
    "clock huge": _common(opt_param_scheduler={"num_steps": 1 << 80}),
    "a list": lambda checkpoint: torch.save([1], checkpoint / "common.pt"),
    "common no file of torch": _text("common.pt", "nothing"),
    "no common": lambda checkpoint: (checkpoint / "common.pt").unlink(),
    "format": _text("metadata.json", '{"sharded_backend": "zarr", "sharded_backend_version": 1}'),
    "format of more": _text("metadata.json", '{"sharded_backend": "torch_dist", "load": 1}'),
    "format no object": _text("metadata.json", "[1]"),
    "format deep": _text("metadata.json", "[" * 100_000),
    "run deep": _text("run.json", "[" * 100_000),
    "run of digits": _text("run.json", "1" * 10_000),
    "tensor too small": _tensors(lambda tensor: tensor[:, :8]),
    "tensor a list": _tensors(lambda tensor: [tensor]),
    "tensor sparse": _tensors(lambda tensor: tensor.to_sparse()),
    "tensor a dict": _tensors(lambda tensor: {"a": tensor}),
    "tensor cut": lambda checkpoint: (checkpoint / "__0_0.distcp").write_bytes(b"PK" * 400_000),
}  # fmt: skip


@pytest.mark.parametrize("damage", FILES.values(), ids=FILES.keys())
def test_files(damage: Callable[[Path], Any], data: str, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "iter_0000006"
    damage(checkpoint)
    reseal(checkpoint)
    status, said = load(trained, data, tmp_path)
    lines = said.splitlines()
    assert (status, len(lines)) == (2, 1) and str(checkpoint) in lines[0], (status, said)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": ' + "1" * 10_000 + "}", '{"files": {"a": {"bytes": 1e999}}}']
)
def test_a_manifest_that_cannot_be_read_is_skipped(text: str, data: str, trained: Path, tmp_path: Path) -> None:
    (trained / "iter_0000006" / "manifest.json").write_text(text)
    assert load(trained, data, tmp_path) == (0, "")


@pytest.mark.parametrize("more", [[], ["--temperature", "0"], ["--top-k", "3"], ["--top-p", "0.5"]])
def test_nan_weights(more: list[str], data: str, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "iter_0000006"
    _tensors(lambda tensor: tensor * torch.nan)(checkpoint)
    reseal(checkpoint)
    status, said = tool_status("generate_text.py", "--load", trained, "--prompt", "a", "--device", "cpu", *more)
    (line,) = said.splitlines()
    assert status == 2
    assert_names(line, "--load", "nan")
