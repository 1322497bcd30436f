"""Export and import of a model convert its tokenizer too, for every architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.export.config import ExportConfig, ImportConfig
from megatron.ltd.export.from_hugging_face import import_model
from megatron.ltd.export.to_hugging_face import export_checkpoint
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.reference.gpt2_folder import write_gpt2
from tests.reference.llama_folder import LLAMA, write_llama
from tests.reference.plain_gpt import PlainConfig
from tests.support_errors import refused

TEXT = "the model keeps some of its tokens, and every other token skips this layer\n\n\tdef f(x): return x\n"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text(TEXT * 20)
    config = TrainTokenizerConfig(input=(str(folder / "text.txt"),), vocab_size=300, output_prefix=str(folder / "t"))
    return TokenizerFiles("SentencePieceTokenizer", tokenizer_model=train_tokenizer(config).path)


def write_model(folder: Path, architecture: str, vocab_size: int) -> None:
    if architecture == "gpt2":
        write_gpt2(folder, PlainConfig(learned_positions=16, vocab_size=vocab_size))
    else:
        write_llama(folder, PlainConfig(**(vars(LLAMA) | {"vocab_size": vocab_size})))


@pytest.mark.parametrize(
    ("kind", "architecture", "more_ids"),
    [("sentencepiece", "gpt2", 3), ("sentencepiece", "llama", 0), ("small_bpe", "gpt2", 0), ("small_bpe", "llama", 3)],
)
def test_round_trip(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, architecture: str, more_ids: int
) -> None:
    """``more_ids`` is how many ids the model has beyond the tokenizer's; an export keeps them."""
    from transformers import AutoTokenizer

    files: TokenizerFiles = request.getfixturevalue(kind)
    ours = build_tokenizer(files)
    write_model(tmp_path / "theirs", architecture, ours.vocab_size + more_ids)
    import_model(ImportConfig(load=str(tmp_path / "theirs"), save=str(tmp_path / "ours")), files)
    exported = tmp_path / "exported"
    export_checkpoint(ExportConfig(load=str(tmp_path / "ours"), output=str(exported)), TokenizerFiles())
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT) and theirs.decode(ours.encode(TEXT)) == TEXT
    assert json.loads((exported / "config.json").read_text())["vocab_size"] == ours.vocab_size + more_ids
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation == {"bos_token_id": ours.eod, "eos_token_id": ours.eod}

    import_model(ImportConfig(load=str(exported), save=str(tmp_path / "again")), TokenizerFiles())
    first, again = (
        json.loads((tmp_path / name / "iter_0000000" / "run.json").read_text()) for name in ("ours", "again")
    )
    assert first["identity"] == again["identity"]
    assert first["config"]["tokenizer"]["tokenizer_type"] == again["config"]["tokenizer"]["tokenizer_type"]


def test_flags_name_the_new_place_of_moved_files(small_bpe: TokenizerFiles, tmp_path: Path) -> None:
    write_model(tmp_path / "theirs", "gpt2", build_tokenizer(small_bpe).vocab_size)
    vocabulary, merges = (tmp_path / name for name in ("v.json", "m.txt"))
    for path, file in ((vocabulary, small_bpe.vocab_file), (merges, small_bpe.merge_file)):
        shutil.copy(str(file), path)
    files = TokenizerFiles("GPT2BPETokenizer", str(vocabulary), str(merges))
    import_model(ImportConfig(load=str(tmp_path / "theirs"), save=str(tmp_path / "ours")), files)
    vocabulary.unlink()
    config = ExportConfig(load=str(tmp_path / "ours"), output=str(tmp_path / "exported"))
    with refused(f"--vocab-file {vocabulary}"):
        export_checkpoint(config, TokenizerFiles())
    export_checkpoint(config, TokenizerFiles(vocab_file=small_bpe.vocab_file))
    assert (tmp_path / "exported" / "vocab.json").read_bytes() == Path(str(small_bpe.vocab_file)).read_bytes()
