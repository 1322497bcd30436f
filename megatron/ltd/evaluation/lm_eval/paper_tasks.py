"""The tasks on which random-LTD was published: 19 zero-shot tasks, and WikiText-2 beside them.

    average = (score of task 1 + ... + score of task 19) / 19        every task counts alike, whatever its size

``metric`` is what the paper's authors read from lm-eval for each task (Megatron-DeepSpeed,
``examples_deepspeed/data_efficiency/gpt/eval/ds_evalharness_gather_result.py``), in the names of lm-eval 0.4.13: what
earlier versions called ``acc`` of TriviaQA and WebQuestions is ``exact_match`` now. The average leaves out the
perplexity of WikiText.

Not here: prompts and data, which lm-eval has.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER_GROUP = "random_ltd_paper"
"""The name of all ``PAPER_TASKS`` together, for ``--tasks``."""


@dataclass(frozen=True)
class PaperTask:
    """One of these tasks."""

    name: str
    """In lm-eval 0.4.13."""
    title: str
    """In tables."""
    metric: str
    """The metric that the paper reports."""
    file: str
    """Its file in lm-eval 0.4.13, below ``lm_eval/tasks``."""


PAPER_TASKS = (
    PaperTask("hellaswag", "HellaSwag", "acc_norm", "hellaswag/hellaswag.yaml"),
    PaperTask("lambada_openai", "LAMBADA", "acc", "lambada/lambada_openai.yaml"),
    PaperTask("triviaqa", "TriviaQA", "exact_match", "triviaqa/default.yaml"),
    PaperTask("webqs", "WebQuestions", "exact_match", "webqs/webqs.yaml"),
    PaperTask("winogrande", "WinoGrande", "acc", "winogrande/default.yaml"),
    PaperTask("piqa", "PIQA", "acc_norm", "piqa/piqa.yaml"),
    PaperTask("arc_challenge", "ARC-Challenge", "acc_norm", "arc/arc_challenge.yaml"),
    PaperTask("arc_easy", "ARC-Easy", "acc_norm", "arc/arc_easy.yaml"),
    PaperTask("anli_r1", "ANLI R1", "acc", "anli/anli_r1.yaml"),
    PaperTask("anli_r2", "ANLI R2", "acc", "anli/anli_r2.yaml"),
    PaperTask("anli_r3", "ANLI R3", "acc", "anli/anli_r3.yaml"),
    PaperTask("openbookqa", "OpenBookQA", "acc_norm", "openbookqa/openbookqa.yaml"),
    PaperTask("race", "RACE-h", "acc", "race/race.yaml"),
    PaperTask("boolq", "BoolQ", "acc", "super_glue/boolq/default.yaml"),
    PaperTask("copa", "COPA", "acc", "super_glue/copa/default.yaml"),
    PaperTask("rte", "RTE", "acc", "glue/rte/default.yaml"),
    PaperTask("wsc", "WSC", "acc", "super_glue/wsc/default.yaml"),
    PaperTask("multirc", "MultiRC", "acc", "super_glue/multirc/default.yaml"),
    PaperTask("record", "ReCoRD", "f1", "super_glue/record/default.yaml"),
    PaperTask("wikitext", "WikiText-2", "word_perplexity", "wikitext/wikitext.yaml"),
)
PAPER_TASKS_BY_NAME = {task.name: task for task in PAPER_TASKS}
