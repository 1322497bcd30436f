"""Generation and loading, on a tiny model that a real run has trained and saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.evaluation.decoding import generate_text
from megatron.ltd.evaluation.load import LoadedModel, load_model
from megatron.ltd.evaluation.sampling_config import SamplingConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.tokenizers.byte import ByteTokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support import Finished, assert_differs, pretrain, world
from tests.support_errors import refused

BYTES = TokenizerFiles(tokenizer_type="ByteTokenizer")
CPU = ParallelConfig(device="cpu")
SEQ_LENGTH, STEPS = 16, 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A random-LTD run on repetitive text."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("abcdefgh" * 500)
    preprocess(PreprocessConfig(input=(str(folder / "text.txt"),), output_prefix=str(folder / "data")), BYTES)
    flags = (
        f"--tokenizer-type ByteTokenizer --train-data-path {folder}/data_text_document --num-layers 3 --hidden-size 16 "
        f"--num-attention-heads 2 --seq-length {SEQ_LENGTH} --micro-batch-size 8 --train-iters {STEPS} --lr 3e-2 "
        "--eval-iters 0 --random-ltd --ltd-min-kept-tokens 8 --ltd-growth-steps 6 --ltd-granularity 4 "
        "--attention-dropout 0 --hidden-dropout 0.1 --log-interval 100"
    )
    return pretrain(flags.split(), folder / "save")


@pytest.fixture(scope="module")
def mesh(trained: Finished) -> Iterator[Mesh]:
    """Process groups that are set up after the run, which used its own."""
    with world() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def loaded(trained: Finished, mesh: Mesh) -> LoadedModel:
    return load_model(trained.folder, TokenizerFiles(), CPU, mesh)


def sampling(prompt: str = "abc", **changes: object) -> SamplingConfig:
    return replace(SamplingConfig(load="unused", prompt=prompt, num_tokens_to_generate=24), **changes)


def test_the_loaded_model_is_the_trained_one(loaded: LoadedModel, trained: Finished) -> None:
    """Its loss on the training text is below the last logged loss, which had dropout and was one update earlier."""
    assert (loaded.iteration, loaded.checkpoint.name, loaded.notes) == (STEPS, f"iter_{STEPS:07d}", ())
    assert loaded.consumed_tokens == STEPS * 8 * SEQ_LENGTH
    assert loaded.consumed_tokens < loaded.consumed_layer_tokens < 3 * loaded.consumed_tokens
    assert not loaded.model.training
    tokens_BS = torch.tensor([list(b"abcdefgh" * 2), list(b"efghabcd" * 2)])
    with torch.no_grad():
        logits_BSV = loaded.model(tokens_BS, torch.arange(SEQ_LENGTH).expand(2, -1), None)
    loss = torch.nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())
    losses = trained.column("loss")
    assert losses[0] > 5.0 > 1.1 * losses[-1] > float(loss)


def test_greedy_is_top_1_and_the_argmax_of_a_full_forward_at_each_step(loaded: LoadedModel) -> None:
    """Beyond the model's length the context is the last tokens, with positions from 0."""
    text = generate_text(loaded, sampling("habc", temperature=0.0, num_tokens_to_generate=2 * SEQ_LENGTH))
    assert generate_text(loaded, sampling("habc", top_k=1, num_tokens_to_generate=2 * SEQ_LENGTH)) == text
    tokens = list(f"habc{text}".encode())
    assert len(tokens) == 4 + 2 * SEQ_LENGTH
    for place in range(4, len(tokens)):
        context = torch.tensor([tokens[max(0, place - SEQ_LENGTH) : place]])
        with torch.no_grad():
            logits_SV = loaded.model(context, torch.arange(context.shape[1])[None], None)[0]
        assert tokens[place] == int(logits_SV[-1, : loaded.tokenizer.vocab_size].argmax())


def test_the_seed_decides_the_text(loaded: LoadedModel) -> None:
    first, again, other = (generate_text(loaded, sampling(temperature=2.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_bad_arguments_are_refused(trained: Finished, mesh: Mesh, tmp_path: Path) -> None:
    with refused(f"--load {tmp_path}", "--save"):
        load_model(tmp_path, TokenizerFiles(), CPU, mesh)
    with refused("--tokenizer-model"):
        load_model(trained.folder, TokenizerFiles(tokenizer_type="SentencePieceTokenizer"), CPU, mesh)
    with refused("--num-attention-heads 2", "--tensor-model-parallel-size 3"):
        load_model(trained.folder, TokenizerFiles(), ParallelConfig(device="cpu", tensor_model_parallel_size=3), mesh)


def test_another_tokenizer_is_refused(trained: Finished, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = ByteTokenizer().fingerprint[:12]
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "0" * 64)
    with refused("--tokenizer-type") as caught:
        load_model(trained.folder, TokenizerFiles(), CPU, mesh)
    assert_differs(str(caught.value), "tokenizer_fingerprint", "0" * 12, fingerprint)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"load": None}, "--load"),
        ({"prompt": ""}, "--prompt"),
        ({"num_tokens_to_generate": 0}, "--num-tokens-to-generate 0"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"top_k": 0}, "--top-k 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, object], name: str) -> None:
    with refused(name):
        sampling(**flags)
