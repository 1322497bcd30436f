"""Measure the speed of evaluation: our model and lm-eval's ``hf``, alternating, on the same weights and requests.

    python tools/benchmark/evaluation.py --vocab-file encoder.json --merge-file vocab.bpe --task-data task_data

The weights are those of a newly initialized GPT-2 of Hugging Face, because the cost does not depend on them. The
requests are those of lm-eval's official tasks on local data, and the answers of both are compared. Prints seconds and
their ratio as Markdown. lm-eval's ``hf`` needs the packages transformers and accelerate. Run it on an idle machine, or
on one thread with ``--clock cpu``.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.page import CLOCKS, about, check_clock, check_installed, facts

from megatron.ltd.errors import run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.format import markdown_table
from megatron.ltd.versions import cpu_model

_TASKS = {
    "lambada_openai": "last words of passages",
    "hellaswag": "four endings a context",
    "boolq": "yes or no after a passage",
    "wikitext": "perplexity of pages",
}
_GENERATION = "free answers, greedy"


@dataclass(frozen=True)
class EvaluationBenchmarkConfig(Settings):
    """evaluation benchmark"""

    vocab_file: str = flag(None, metavar="FILE", help="GPT-2's encoder.json", required="give it")
    merge_file: str = flag(None, metavar="FILE", help="GPT-2's vocab.bpe", required="give it")
    task_data: str = flag(
        None, metavar="DIR", help=f"local data of {', '.join(_TASKS)}, as tools/prepare_tasks.py writes it",
        required="give the folder that tools/prepare_tasks.py wrote",
    )  # fmt: skip
    num_layers: int = flag(12, help="transformer layers")
    hidden_size: int = flag(768, help="width of the hidden states")
    num_attention_heads: int = flag(12, help="attention heads")
    seq_length: int = flag(1024, help="tokens that the model takes")
    limit: int = flag(64, help="documents of each task; of wikitext, a thirty-second of them")
    new_tokens: int = flag(32, help="tokens generated after each of the passages")
    hf_batch_sizes: tuple[int, ...] = flag((1, 8, 32), metavar="N", help="batch sizes of hf; 1 is lm-eval's default")
    rounds: int = flag(3, help="measured rounds; each answers all requests with every model")
    threads: int | None = flag(None, help="threads of the CPU (default: torch's, one a core)")
    clock: str = flag("wall", choices=tuple(CLOCKS), help="cpu: CPU time of the process, with --threads 1")
    device: str = flag("auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    bf16: bool = flag(False, help="weights and activations in bfloat16")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clock(self.clock, self.threads, self.device)
        check_installed("lm_eval", "transformers", "accelerate")


Contender = Callable[[str, Sequence[Any]], list[Any]]
"""A function that answers requests, given the name of lm-eval's request method"""


def main() -> None:
    """Read the flags, measure, and print the table."""
    (config,) = read_command(__doc__, EvaluationBenchmarkConfig)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    requests = build_requests(config)
    with tempfile.TemporaryDirectory() as folder:
        write_model(config, Path(folder))
        with contenders(config, Path(folder)) as asked:
            seconds, differences = measure(config, asked, requests)
    print(report(config, requests, seconds, differences))


def build_requests(config: EvaluationBenchmarkConfig) -> dict[str, tuple[str, list[Any]]]:
    """The requests: name -> lm-eval's request method and its requests."""
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    from megatron.ltd.evaluation.local_tasks.overlays import write_overlays

    found: dict[str, tuple[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as overlays:
        write_overlays(Path(config.task_data), Path(overlays))
        manager = TaskManager(include_path=overlays, include_defaults=False)
        for name, what in _TASKS.items():
            task = manager.load([name])["tasks"][name]
            task.set_config(key="num_fewshot", value=0)
            limit = -(-config.limit // 32) if name == "wikitext" else config.limit
            task.build_all_requests(limit=limit, rank=0, world_size=1)
            found[f"{name}: {what}"] = (task.instances[0].request_type, task.instances)
    passages = [instance.args[0] for instance in found[f"lambada_openai: {_TASKS['lambada_openai']}"][1]]
    settings = {"max_gen_toks": config.new_tokens, "do_sample": False, "until": ["\n\n"]}
    generation = [
        Instance("generate_until", doc={}, arguments=(passage, dict(settings)), idx=0) for passage in passages
    ]
    found[f"{config.new_tokens} tokens a passage: {_GENERATION}"] = ("generate_until", generation)
    return found


def write_model(config: EvaluationBenchmarkConfig, folder: Path) -> None:
    """Write a GPT-2 and its tokenizer in Hugging Face's format."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    torch.manual_seed(1234)
    shape = GPT2Config(
        n_layer=config.num_layers, n_embd=config.hidden_size, n_head=config.num_attention_heads,
        n_positions=config.seq_length,
    )  # fmt: skip
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    GPT2LMHeadModel(shape).to(dtype).save_pretrained(folder)
    shutil.copy(config.vocab_file, folder / "vocab.json")
    shutil.copy(config.merge_file, folder / "merges.txt")
    GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)


@contextmanager
def contenders(config: EvaluationBenchmarkConfig, folder: Path) -> Iterator[dict[str, Contender]]:
    """The models to measure, by name."""
    from megatron.ltd.parallel.config import ParallelConfig
    from megatron.ltd.parallel.mesh import initialize

    with initialize(ParallelConfig(device=config.device)) as mesh:
        from lm_eval.models.huggingface import HFLM

        from megatron.ltd.evaluation.lm_eval.harness import HarnessModel
        from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs

        args = HarnessArgs(pretrained=str(folder), device=config.device)
        ours = HarnessModel.load(args, mesh)
        theirs = HFLM(pretrained=str(folder), device=str(mesh.device), dtype="auto", batch_size=1)

        def hf(batch_size: int, method: str, requests: Sequence[Any]) -> list[Any]:
            theirs.batch_size_per_gpu = batch_size
            return getattr(theirs, method)(list(requests), disable_tqdm=True)

        yield {
            "ours": lambda method, requests: getattr(ours, method)(requests, disable_tqdm=True),
            **{f"hf, batch {size}": functools.partial(hf, size) for size in config.hf_batch_sizes},
        }


def measure(
    config: EvaluationBenchmarkConfig, asked: dict[str, Contender], requests: dict[str, tuple[str, list[Any]]]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Return the seconds of each round by kind of request and contender, and the difference of our and ``hf``'s
    answers.
    """
    clock = CLOCKS[config.clock]
    seconds: dict[str, dict[str, list[float]]] = {what: {name: [] for name in asked} for what in requests}
    differences: dict[str, str] = {}
    for round_number in range(config.rounds + 1):
        for what, (method, instances) in requests.items():
            few = instances[:2] if round_number == 0 else instances  # the first round is a warm-up
            answers = {}
            for name, contender in asked.items():
                gc.collect()
                start = clock()
                answers[name] = contender(method, few)
                if round_number:
                    seconds[what][name].append(clock() - start)
            if round_number == config.rounds:
                differences[what] = _difference(*list(answers.values())[:2])
        if round_number:
            print(f"round {round_number} of {config.rounds} done", file=sys.stderr)
    return seconds, differences


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    if isinstance(ours[0], str):
        return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} texts equal"
    pairs = [(a, b) if isinstance(a, float) else (a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
    return f"log-likelihoods within {max(abs(a - b) for a, b in pairs):.1e}"


def report(
    config: EvaluationBenchmarkConfig,
    requests: dict[str, tuple[str, list[Any]]],
    seconds: dict[str, dict[str, list[float]]],
    differences: dict[str, str],
) -> str:
    """The page: the circumstances, and a table with one row per kind of request."""
    import torch

    others = [f"hf, batch {size}" for size in config.hf_batch_sizes]
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else f"{cpu_model()}, {os.cpu_count()} cores"
    named = about(
        "evaluation.py", "torch", "megatron-core", "lm-eval", "transformers", "accelerate",
        machine=f"{machine}; CPU threads: {torch.get_num_threads()}; {config.clock} seconds",
        model=f"GPT-2, {config.num_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.seq_length} positions, vocabulary 50257, {'bf16' if config.bf16 else 'fp32'}; {config.rounds} rounds",
    )  # fmt: skip
    rows = []
    for what, (_, instances) in requests.items():
        median = {name: statistics.median(values) for name, values in seconds[what].items()}
        best = min(others, key=median.__getitem__)
        ratio = statistics.median(b / a for a, b in zip(seconds[what]["ours"], seconds[what][best], strict=True))
        times = [f"{median[name]:.2f} s" for name in ("ours", *others)]
        rows.append([what, f"{len(instances)}", *times, f"{ratio:.2f} x", differences[what]])
    header = ["requests", "number", "ours", *others, "ours over the fastest hf", "answers"]
    return f"{facts(named)}\n\n{markdown_table(rows, header)}"


if __name__ == "__main__":
    run_command(main)
