"""A model gets the same scores on real tasks from our code on one or several processes and from Hugging Face's.

    trained    tensor parallel 2, on a novel ──► checkpoint ──► exported folder
    drawn      by Hugging Face's own code    ──► its folder ──► imported checkpoint
                                                   │                │
                                          lm_eval --model hf        ours: one process, tensor 2, data 2

200 examples each of LAMBADA, HellaSwag, ARC-Easy and BoolQ are scored with the trained model and 100 each with the
drawn one: 3,300 log-likelihoods and the accuracies are compared. Hugging Face's model runs in its own process, because
its libraries leave state behind that would disturb later jobs.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.evaluation.decoding import generate
from megatron.ltd.evaluation.load import load_model
from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig, prepare
from megatron.ltd.evaluation.sampler import Sampler
from megatron.ltd.export.config import ExportConfig, ImportConfig
from megatron.ltd.export.from_hugging_face import import_model
from megatron.ltd.export.to_hugging_face import export_checkpoint
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.distributed.error_jobs import end_of
from tests.distributed.evaluation_jobs import evaluate_command
from tests.distributed.pool import Pool
from tests.support import REPOSITORY
from tests.support_processes import PATIENCE_SECONDS
from tests.warm.start import warm_python

pytestmark = pytest.mark.distributed
pytest.importorskip("lm_eval")

TASKS = ("lambada_openai", "hellaswag", "arc_easy", "boolq")
EXAMPLES, FEW_EXAMPLES = 200, 100
VOCAB_SIZE = 2048
SEQ_LENGTH = 256
LLAMA = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --group-query-attention --num-query-groups 2 "
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    f"--untie-embeddings-and-output-weights --seq-length {SEQ_LENGTH} --attention-dropout 0 --hidden-dropout 0"
)
RUN = (
    "--train-iters 100 --micro-batch-size 8 --lr 4e-3 --lr-warmup-iters 10 --lr-decay-style cosine --eval-iters 0 "
    "--random-ltd --ltd-min-kept-tokens 64 --ltd-growth-steps 60 --tensor-model-parallel-size 2 --device cpu"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def tokenizer(folder: Path, shared_data: Path) -> TokenizerFiles:
    """A tokenizer with GPT-2's first 2,047 tokens; as the merges are ordered, it is the vocabulary of fewer merges."""
    pieces = json.loads((shared_data / "gpt2-vocab" / "encoder.json").read_text(encoding="utf-8"))
    vocabulary = {piece: number for piece, number in pieces.items() if number < VOCAB_SIZE - 1}
    vocabulary["<|endoftext|>"] = VOCAB_SIZE - 1
    merges = (shared_data / "gpt2-vocab" / "vocab.bpe").read_text(encoding="utf-8").split("\n")[: VOCAB_SIZE - 256]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return TokenizerFiles("GPT2BPETokenizer", str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def task_data(folder: Path, shared_data: Path) -> Path:
    files: dict[str, dict[str, Any]] = {
        "lambada_openai": {"test": (str(shared_data / "lambada" / "lambada_test.jsonl"),)},
        "hellaswag": {"validation": (str(shared_data / "hellaswag" / "hellaswag_val_full.txt.bz2"),)},
        "arc_easy": {"test": (str(shared_data / "arc_easy" / "test.jsonl"),)},
        "boolq": {"validation": (str(shared_data / "boolq" / "boolq.jsonl"),)},
    }
    for task in TASKS:
        prepare(PrepareConfig(task=task, output_dir=str(folder / "tasks"), **files[task]))
    return folder / "tasks"


@pytest.fixture(scope="module")
def trained(pool: Pool, folder: Path, tokenizer: TokenizerFiles, shared_data: Path) -> Path:
    """Checkpoints of a Llama trained on a novel on two tensor-parallel ranks."""
    book = (shared_data / "gutenberg" / "1342.txt").read_text(encoding="utf-8-sig")
    chapters = book.split("*** START", 1)[1].split("*** END", 1)[0].split("\n\n\n")
    (folder / "book.jsonl").write_text("".join(json.dumps({"text": chapter}) + "\n" for chapter in chapters))
    config = PreprocessConfig(input=(str(folder / "book.jsonl"),), output_prefix=str(folder / "book"), append_eod=True)
    prefix = next(iter(preprocess(config, tokenizer).cards))
    flags = [
        "--train-data-path", prefix, "--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", str(tokenizer.vocab_file),
        "--merge-file", str(tokenizer.merge_file), *LLAMA.split(), *RUN.split(), "--save", str(folder / "trained"),
    ]  # fmt: skip
    assert pool.run(end_of, [flags] * 2, world_size=2) == [("done", "")] * 2
    return folder / "trained"


@pytest.fixture(scope="module")
def exported(folder: Path, trained: Path) -> Path:
    export_checkpoint(ExportConfig(load=str(trained), output=str(folder / "exported")), TokenizerFiles())
    return folder / "exported"


@pytest.fixture(scope="module")
def drawn(folder: Path, tokenizer: TokenizerFiles) -> Path:
    """A folder with a GPT-2 initialized by Hugging Face's code, and its tokenizer files."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=SEQ_LENGTH, n_embd=64, n_layer=3, n_head=4,
        bos_token_id=VOCAB_SIZE - 1, eos_token_id=VOCAB_SIZE - 1, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "drawn")
    for name in ("vocab.json", "merges.txt"):
        (folder / "drawn" / name).write_bytes((folder / name).read_bytes())
    (folder / "drawn" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder / "drawn"


@pytest.fixture(scope="module")
def imported(folder: Path, drawn: Path) -> Path:
    import_model(ImportConfig(load=str(drawn), save=str(folder / "imported")), TokenizerFiles())
    return folder / "imported"


@dataclass(frozen=True)
class Scores:
    """The results that lm-eval wrote for one model."""

    results: Mapping[str, Mapping[str, float]]
    log_likelihoods: Mapping[str, Sequence[Sequence[float]]]
    """Log-likelihood of each continuation of each example, in order, by task."""

    @classmethod
    def read(cls, folder: Path) -> Scores:
        (results,) = folder.rglob("results_*.json")
        found = {}
        for task in TASKS:
            (samples,) = folder.rglob(f"samples_{task}_*.jsonl")
            lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
            found[task] = [[float(answer[0][0]) for answer in line["resps"]] for line in lines]
        return cls(json.loads(results.read_text())["results"], found)

    def assert_equal(self, other: Scores, examples: int = EXAMPLES) -> None:
        """Check that log-likelihoods agree to 1e-3 and accuracies exactly."""
        for task in TASKS:
            ours, theirs = self.log_likelihoods[task], other.log_likelihoods[task]
            assert len(ours) == len(theirs) == examples
            largest = max(
                abs(a - b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(one, two, strict=True)
            )
            assert largest < 1e-3, f"{task}: log-likelihoods differ by up to {largest}"
            for metric, value in self.results[task].items():
                if metric in ("acc,none", "acc_norm,none"):
                    assert value == other.results[task][metric], (task, metric)


class Judge:
    """Scores models with lm-eval, and caches the scores of ours."""

    def __init__(self, pool: Pool, folder: Path, task_data: Path) -> None:
        self.pool, self.folder, self.task_data = pool, folder, task_data
        self.known: dict[tuple[str, ...], Scores] = {}

    def ours(self, model: Path, *layout: str, world_size: int = 1, examples: int = EXAMPLES) -> Scores:
        """Score a checkpoint with our code on ranks of the pool."""
        key = (str(model), *layout, str(world_size), str(examples))
        if key not in self.known:
            arguments, output = self._arguments(examples)
            arguments += ["--load", str(model), *layout]
            self.pool.run(evaluate_command, arguments, world_size=world_size)
            self.known[key] = Scores.read(output)
        return self.known[key]

    def hugging_face(self, model: Path, examples: int = EXAMPLES) -> Scores:
        """Score a folder with lm-eval's ``hf`` model in a separate process."""
        arguments, output = self._arguments(examples)
        arguments += ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--batch_size", "16"]
        command = [warm_python(), str(REPOSITORY / "tools" / "evaluate.py"), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert ended.returncode == 0, ended.stderr[-4000:]
        return Scores.read(output)

    def _arguments(self, examples: int) -> tuple[list[str], Path]:
        """The arguments that all evaluations share, and the folder for their results."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        return [
            "--tasks", ",".join(TASKS), "--task-data", str(self.task_data), "--limit", str(examples),
            "--log_samples", "--output_path", str(output), "--device", "cpu",
        ], output  # fmt: skip


@pytest.fixture(scope="module")
def judge(pool: Pool, folder: Path, task_data: Path) -> Judge:
    return Judge(pool, folder, task_data)


def test_the_export_scores_equally(judge: Judge, trained: Path, exported: Path) -> None:
    ours = judge.ours(trained)
    ours.assert_equal(judge.hugging_face(exported))
    assert ours.results["lambada_openai"]["perplexity,none"] < VOCAB_SIZE**3, "a last word is about three tokens"
    values = [value for endings in ours.log_likelihoods["hellaswag"] for value in endings]
    assert len(set(values)) > 0.98 * len(values), "scores that are all alike say nothing"


def test_tensor_parallel_ranks_score_equally(judge: Judge, trained: Path) -> None:
    judge.ours(trained).assert_equal(judge.ours(trained, "--tensor-model-parallel-size", "2", world_size=2))


def test_data_parallel_ranks_score_equally(judge: Judge, trained: Path) -> None:
    judge.ours(trained).assert_equal(judge.ours(trained, world_size=2))


def test_a_gpt2_of_hugging_face_scores_equally(judge: Judge, drawn: Path, imported: Path) -> None:
    ours = judge.ours(imported, examples=FEW_EXAMPLES)
    ours.assert_equal(judge.hugging_face(drawn, FEW_EXAMPLES), FEW_EXAMPLES)


def test_greedy_text_is_that_of_hugging_face(trained: Path, exported: Path, task_data: Path) -> None:
    """Continue the beginnings of 16 passages, of different lengths, for 48 tokens each."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    lines = (task_data / "lambada_openai" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    texts = [json.loads(line)["text"][: 40 + 20 * number] for number, line in enumerate(lines)]
    parallel = ParallelConfig(device="cpu")
    with initialize(parallel) as mesh:
        loaded = load_model(trained, TokenizerFiles(), parallel, mesh)
        prompts = [loaded.tokenizer.encode(text) for text in texts]
        assert prompts == [tokenizer(text)["input_ids"] for text in texts]
        ours = generate(
            loaded.causal_lm, prompts, [Sampler.build(0, 0.0) for _ in prompts],
            max_new_tokens=[48] * len(prompts), eod=loaded.tokenizer.eod,
        )  # fmt: skip
    for prompt, new in zip(prompts, ours, strict=True):
        whole = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=48,
            do_sample=False, pad_token_id=VOCAB_SIZE - 1,
        )  # fmt: skip
        expected = whole[0, len(prompt) :].tolist()
        assert new == expected[: expected.index(VOCAB_SIZE - 1)] if VOCAB_SIZE - 1 in expected else new == expected
