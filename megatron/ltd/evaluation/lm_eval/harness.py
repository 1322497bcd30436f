"""Our models as lm-eval models: EleutherAI's harness provides tasks, prompts and metrics.

    loglikelihood           log p(continuation | context)                     multiple choice, LAMBADA
    loglikelihood_rolling   log p(text), in windows of the model's length     perplexity
    generate_until          continuation, up to a stop sequence               open questions

lm-eval divides the requests over the data-parallel ranks and gathers their results; the ranks of a tensor-parallel
group answer the same requests together.

A context that is too long loses its beginning, as with lm-eval's own models. The number of such contexts is logged and
part of the results. A continuation without tokens is refused, as by lm-eval's ``hf``: as a sum of no log-probabilities
it would be likelier than every other answer. This module needs the package lm-eval; ``scoring`` and ``decoding``, which
it uses, do not.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TextIO

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.decoding import generate
from megatron.ltd.evaluation.lm_eval.generation_request import GenerationRequest
from megatron.ltd.evaluation.lm_eval.harness_args import NAME, HarnessArgs
from megatron.ltd.evaluation.load import load_model
from megatron.ltd.evaluation.sampler import Sampler, text_seed
from megatron.ltd.evaluation.scoring import BatchSize, Text, score
from megatron.ltd.parallel.agreement import together
from megatron.ltd.parallel.mesh import Mesh, initialize
from megatron.ltd.tokenizers.base import Tokenizer

_log = logging.getLogger(__name__)
_BAR_SECONDS = 5.0

Scored = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of lm-eval: context and continuation as text (None for a window), and both as token ids."""


@register_model(NAME)
class HarnessModel(TemplateLM):
    """``model`` with its tokenizer. ``facts`` go into the results; ``bars`` is where progress bars go, if anywhere."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        batch_size: BatchSize,
        *,
        seed: int = 1234,
        facts: Mapping[str, Any] | None = None,
        bars: TextIO | None = None,
    ) -> None:
        super().__init__()
        self.model, self.text_tokenizer, self.batch_size = model, tokenizer, batch_size
        self._seed, self._facts, self._bars = seed, dict(facts or {}), bars
        self._rank, self._world_size = model.mesh.data_parallel_rank, model.mesh.data_parallel_size
        self._device, self._group = model.device, model.mesh.groups.dp
        self.num_truncated = 0
        """Requests of all ranks whose context lost its beginning."""

    @classmethod
    def load(cls, args: HarnessArgs, mesh: Mesh) -> HarnessModel:
        """The model of ``args``; prints a line for each damaged checkpoint that was skipped."""
        loaded = load_model(args.place, args.tokenizer_files, args.parallel, mesh)
        for note in loaded.notes if mesh.is_first else ():
            print(note)
        facts = {
            "iteration": loaded.iteration,
            "consumed_tokens": loaded.consumed_tokens,
            "consumed_layer_tokens": loaded.consumed_layer_tokens,
            "checkpoint": str(loaded.checkpoint),
        }
        return cls(loaded.causal_lm, loaded.tokenizer, args.batch, seed=args.seed, facts=facts, bars=sys.__stderr__)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> HarnessModel:
        """The model of ``--model_args pretrained=DIR,...``, for lm-eval's own command, which has no process groups.

        The process group is initialized here, and destroyed when this process ends.
        """
        args = HarnessArgs.read(arg_dict, additional_config or {})
        stack = ExitStack()
        mesh = stack.enter_context(initialize(args.parallel))
        atexit.register(stack.close)
        return cls.load(args, mesh)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> HarnessModel:
        """The same for "key=value,key=value"."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def __str__(self) -> str:
        return NAME

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.eod

    @property
    def max_length(self) -> int:
        return self.model.max_length

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval adds to the results' ``config``."""
        return {"model": NAME, **self._facts, "max_length": self.max_length, "num_truncated": self.num_truncated}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.text_tokenizer.encode(string)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        raise UserError("--apply_chat_template: models of this program have no chat template; leave it out")

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's, which encodes the texts, after a check of what it cannot encode. Raises ``UserError``."""
        with together():
            _check_texts(part for request in requests for part in request.args)
            for context, continuation in (request.args for request in requests):
                if not context and not self.tok_encode(continuation):
                    raise _without_tokens(context)
        return super().loglikelihood(list(requests), disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood [nat] of each continuation after its context, and whether greedy decoding would produce it."""
        length = self.max_length
        # lm-eval moves the spaces at the end of a context to the continuation, which may leave no context.
        requests = [(strings, context or [self.prefix_token_id], end) for strings, context, end in requests]
        too_long = {
            (tuple(context), tuple(end)) for _, context, end in requests if len(context) + len(end) > length + 1
        }
        with together():
            for strings, _, end in requests:
                if not end:
                    raise _without_tokens(strings[0] if strings else "")
                if len(end) > length:
                    raise UserError(
                        f"--tasks: a continuation has {len(end)} tokens, and the model takes {length}; leave its task "
                        "out"
                    )
        self._report_truncated(len(too_long), len(requests))
        texts = [Text(tuple((context + end)[-(length + 1) :]), len(end)) for _, context, end in requests]
        with self._progress(len(texts), "log-likelihoods", disable_tqdm) as progress:
            scores = score(self.model, texts, self.batch_size, progress.update)
        answers = [(found.log_likelihood, found.is_greedy) for found in scores]
        for (strings, _, _), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood [nat] of each whole text, its first token after the end-of-document token."""
        with together():
            _check_texts(part for request in requests for part in request.args)
        windows: list[Scored] = []
        num_windows = []
        for (string,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(string),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own: list[Scored] = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            num_windows.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = []
        for request, number in zip(requests, num_windows, strict=True):
            totals.append(sum(next(scores)[0] for _ in range(number)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the first of its stop sequences."""
        with together():
            _check_texts(request.args[0] for request in requests)
        draws: Counter[str] = Counter()
        asked: list[GenerationRequest] = []
        for context, arguments in (request.args for request in requests):
            prompt = self.tok_encode(context) or [self.prefix_token_id]
            asked.append(GenerationRequest.read(prompt, arguments, self.max_length, draws[context]))
            draws[context] += 1
        self._report_truncated(len({one.prompt for one in asked if one.is_truncated}), len(asked))
        order = sorted(range(len(asked)), key=lambda place: (-asked[place].max_new_tokens, -len(asked[place].prompt)))
        answers = [""] * len(asked)
        with self._progress(len(asked), "generation", disable_tqdm) as progress:
            # A text counts with all tokens that it may get.
            for batch in self.batch_size.split([asked[place].most_tokens for place in order]):
                places = [order[place] for place in batch]
                texts = self._continue([asked[place] for place in places])
                for place, text in zip(places, texts, strict=True):
                    answers[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
                progress.update(len(places))
        return answers

    def _continue(self, asked: Sequence[GenerationRequest]) -> list[str]:
        """The continuations of one batch."""
        decode = self.text_tokenizer.decode
        new_tokens = generate(
            self.model,
            [one.prompt for one in asked],
            [
                Sampler.build(text_seed(self._seed, one.prompt, one.draw), one.temperature, one.top_k, one.top_p)
                for one in asked
            ],
            max_new_tokens=[one.max_new_tokens for one in asked],
            eod=self.eot_token_id,
            has_ended=lambda place, new: asked[place].is_stopped(decode(new)),
        )
        return [one.cut(decode(new)) for one, new in zip(asked, new_tokens, strict=True)]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all data-parallel ranks, one after another; of scalars [ranks]."""
        if self._world_size == 1:
            return tensor.reshape(1) if tensor.dim() == 0 else tensor
        parts = [torch.empty_like(tensor) for _ in range(self._world_size)]
        dist.all_gather(parts, tensor, group=self._group)
        return torch.stack(parts) if tensor.dim() == 0 else torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all data-parallel ranks on rank ``dst``, None on the others."""
        found: list[Any] = [None] * self._world_size
        dist.all_gather_object(found, obj, group=self._group)
        return found if self._rank == dst else None

    def barrier(self) -> None:
        dist.barrier(group=self._group)

    def _progress(self, total: int, what: str, disabled: bool) -> tqdm:
        """A bar on the first process, for what takes longer than a few seconds."""
        is_hidden = disabled or self._bars is None or not self.model.mesh.is_first
        return tqdm(total=total, desc=what, disable=is_hidden, file=self._bars, delay=_BAR_SECONDS)

    def _report_truncated(self, number: int, of: int) -> None:
        """Count the contexts of all ranks that are cut, each once, and log the number."""
        counts_2 = torch.tensor([number, of], device=self._device)
        if self._world_size > 1:
            dist.all_reduce(counts_2, group=self._group)
        number, of = counts_2.tolist()
        self.num_truncated += number
        if number and self.model.mesh.is_first:
            _log.warning(
                "%d of %d requests are longer than the model (%d tokens): they lose the beginning of their context",
                number,
                of,
                self.max_length,
            )


def _check_texts(parts: Iterable[object]) -> None:
    """Raise ``UserError`` for a prompt or an answer that is no text, which records of another format lead to."""
    for part in parts:
        if not isinstance(part, str):
            raise UserError(
                f"--tasks: a prompt or an answer is of type {type(part).__name__}, not text; correct the data of its "
                "task, or leave the task out"
            )


def _without_tokens(context: str) -> UserError:
    """The error of a continuation of ``context`` without tokens."""
    return UserError(
        f"--tasks: an answer to {json.dumps(context[-60:], ensure_ascii=False)} has no tokens, and thus no likelihood "
        "(lm-eval's hf refuses it too); leave its task out, or correct its data"
    )
