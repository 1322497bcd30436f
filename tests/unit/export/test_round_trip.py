"""A run's checkpoint is exported to Hugging Face's library, with equal logits, and imported again, with equal bits.

The runs are a few steps long with a learning rate that moves every weight, norms and biases too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron.ltd.evaluation.load import LoadedModel, load_model
from megatron.ltd.export.config import ExportConfig, ImportConfig
from megatron.ltd.export.from_hugging_face import import_model
from megatron.ltd.export.to_hugging_face import export_checkpoint
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support import pretrain, small_dataset, world

BYTES = TokenizerFiles("ByteTokenizer")
COMMON = (
    "--num-layers 3 --hidden-size 24 --num-attention-heads 4 --seq-length 16 --micro-batch-size 4 --train-iters 4 "
    "--lr 0.03 --init-method-std 0.2 --lr-decay-style constant --eval-interval 4 --eval-iters 1 "
    "--tokenizer-type ByteTokenizer --random-ltd --ltd-min-kept-tokens 4 --ltd-granularity 4 --ltd-growth-steps 3"
).split()
ROPE = "--position-embedding-type rope --normalization RMSNorm --swiglu --ffn-hidden-size 40".split()
UNTIED = "--untie-embeddings-and-output-weights"
RUNS = {
    "GPT-2": ["--openai-gelu"],
    "GPT-2, untied, exact GELU": [UNTIED],
    "Llama, grouped, tied": [*ROPE, "--disable-bias-linear", "--group-query-attention", "--num-query-groups", "2"],
    "Llama, untied, biases, bf16": [*ROPE, UNTIED, "--bf16"],
    "Llama 3.1": [*ROPE, "--disable-bias-linear", "--use-rope-scaling"],
    "Qwen2": [*ROPE, "--disable-bias-linear", "--add-qkv-bias"],
    "Qwen3, untied, heads of another size": [
        *ROPE, UNTIED, "--disable-bias-linear", "--qk-layernorm", "--kv-channels", "8",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run, and its model as exported to Hugging Face's format."""

    name: str
    run: Path
    exported: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=RUNS)
def case(request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    name: str = request.param
    flags = [*COMMON, *RUNS[name], "--train-data-path", data, "--valid-data-path", data]
    pretrain(flags, folder / "run")
    config = ExportConfig(load=str(folder / "run"), output=str(folder / "exported"), tokenizer=False)
    export_checkpoint(config, TokenizerFiles())
    return Case(name, folder / "run", folder / "exported")


@pytest.fixture(scope="module")
def mesh(case: Case) -> Iterator[Mesh]:
    """Process groups that are set up after the run of ``case``, which used its own."""
    with world() as mesh:
        yield mesh


def ours(folder: Path, mesh: Mesh) -> LoadedModel:
    return load_model(folder, TokenizerFiles(), ParallelConfig(device="cpu"), mesh)


def logits(loaded: LoadedModel, tokens_BS: Tensor) -> Tensor:
    positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    with torch.no_grad():
        return loaded.model(tokens_BS, positions_BS, None)[..., :257]


def hugging_face_logits(folder: Path, tokens_BS: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(problems.values()), problems
    with torch.no_grad():
        return model.eval()(tokens_BS).logits


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert all(found[name].dtype == expected[name].dtype for name in found)


def test_exported_logits_equal_ours(case: Case, mesh: Mesh) -> None:
    tokens_BS = torch.randint(0, 257, (4, 16), generator=torch.Generator().manual_seed(0))
    found, expected = hugging_face_logits(case.exported, tokens_BS), logits(ours(case.run, mesh), tokens_BS)
    assert expected.std() > 0.3  # the nearly equal logits of an untrained model could hide errors
    tolerance = 0.05 if "bf16" in case.name else 1e-5
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_import_and_export_give_back_every_bit(case: Case, mesh: Mesh, tmp_path: Path) -> None:
    """Padding rows of the vocabulary are excepted, because an export leaves them out. Neither their number nor the
    number of files matters.
    """
    config = ImportConfig(load=str(case.exported), save=str(tmp_path / "imported"), make_vocab_size_divisible_by=100)
    assert "vocabulary 257 padded to 300" in import_model(config, BYTES).summary()
    before, after = ours(case.run, mesh).model.state_dict(), ours(tmp_path / "imported", mesh).model.state_dict()
    assert before.keys() == after.keys()
    weights = {name: tensor for name, tensor in before.items() if isinstance(tensor, Tensor)}
    cut = {name: slice(257 if tensor.shape[0] == 384 else None) for name, tensor in weights.items()}
    assert sum(place.stop == 257 for place in cut.values()) == (2 if "untied" in case.name else 1)
    assert_equal(
        {name: after[name][cut[name]] for name in weights}, {name: weights[name][cut[name]] for name in weights}
    )

    again = ExportConfig(
        load=str(tmp_path / "imported"), output=str(tmp_path / "again"), tokenizer=False, max_shard_size="12KB"
    )
    export_checkpoint(again, TokenizerFiles())
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 3
    assert_equal(tensors(tmp_path / "again"), tensors(case.exported))
    entries = json.loads((tmp_path / "again" / "config.json").read_text())
    first = json.loads((case.exported / "config.json").read_text())
    assert entries.keys() == first.keys()
    assert {name for name in entries if entries[name] != first[name]} == {"initializer_range"}  # unused later


ONE_RUN = pytest.mark.parametrize("case", ["GPT-2"], indirect=True)


@ONE_RUN
def test_export_in_another_dtype(case: Case, tmp_path: Path) -> None:
    config = ExportConfig(load=str(case.run), output=str(tmp_path / "half"), tokenizer=False, dtype="bfloat16")
    assert " in bfloat16, " in export_checkpoint(config, TokenizerFiles()).summary()
    rounded = {name: tensor.bfloat16() for name, tensor in tensors(case.exported).items()}
    assert_equal(tensors(tmp_path / "half"), rounded)
    tokens_BS = torch.zeros(1, 4, dtype=torch.int64)
    assert hugging_face_logits(tmp_path / "half", tokens_BS).dtype == torch.bfloat16
    import_model(ImportConfig(load=str(tmp_path / "half"), save=str(tmp_path / "back"), dtype="float32"), BYTES)
    record = json.loads((tmp_path / "back" / "iter_0000000" / "run.json").read_text())
    assert record["config"]["precision"]["bf16"] is False


@ONE_RUN
def test_the_model_card_describes_the_run_and_what_loading_needs(case: Case) -> None:
    card = (case.exported / "README.md").read_text()
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = [line for line in lines if line["kind"] == "train"][-1]
    validation: dict[str, Any] = [line for line in lines if line["kind"] == "validation"][-1]
    flops, dense = (
        sum(line[name] for line in lines if line["kind"] == "train") for name in ("step_flops", "dense_step_flops")
    )
    record = json.loads((case.run / "iter_0000004" / "run.json").read_text())
    fingerprint = record["order"]["train_data_fingerprint"]
    for row in (
        "| method | random-LTD (--random-ltd) |",
        "| steps | 4 |",
        f"| tokens | {last['consumed_tokens']:,} |",
        f"| layer tokens | {last['consumed_layer_tokens']:,} |",
        f"| saved over dense (FLOPs) | {100 * (1 - flops / dense):.1f} % |",
        f"| training loss, last step | {last['loss']:.4f} |",
        f"| validation loss, last | {validation['loss']:.4f} (step 4) |",
        "| dropout | attention 0.1, hidden 0.1 |",
        f"| data, fingerprint | {fingerprint} |",
        "| --ltd-min-kept-tokens | `4` |",
    ):
        assert row in card.splitlines(), row
    extras = metadata.metadata("megatron-ltd").get_all("Provides-Extra")
    _, code, rest = card.split("```")
    assert "from transformers import" in code and extras is not None and "hf" in extras
    assert 'pip install "megatron-ltd[hf]"' in rest.strip().splitlines()[0]
