"""The published files of each task, and how they are read.

    RAW_TASKS["piqa"]: dev.jsonl (in the published zip) with dev-labels.lst, each record through ``convert.piqa``

``members`` are the ends of the paths inside the published archive; a file that is given directly may have any name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.evaluation.local_tasks import convert, convert_super_glue, raw_files

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class RawTask:
    """The published data of one task."""

    convert: Callable[[Any], list[dict[str, Any]]]
    members: Mapping[str, tuple[str, ...]]
    """By split (train, validation, test): possible ends of the path inside an archive."""
    published: str
    """The published files, for messages."""
    read: raw_files.Reader = raw_files.json_records
    label_field: str | None = None
    """The field that gets the labels of a .lst file."""
    label_members: Mapping[str, tuple[str, ...]] | None = None
    remark: Callable[[Any], str | None] = lambda value: None
    """A remark about a record that differs from the official one, or None."""


def _unknown_words(value: Any) -> str | None:
    if "<unk>" in str(value.get("page")):
        return 'hold "<unk>": they are of the release with a limited vocabulary; the official task reads WikiText-2-raw'
    return None


def _from_blocks(value: Any) -> str | None:
    return None if "ctx" in value else "come without ctx_a and ctx_b: cut at the last sentence's end"


def _arc(name: str) -> RawTask:
    ends = {TRAIN: "Train", VALIDATION: "Dev", TEST: "Test"}
    members = {split: (f"{name}-{end}.jsonl",) for split, end in ends.items()}
    return RawTask(convert.arc, members, f"{name}-Test.jsonl, or ARC-V1-Feb2018.zip")


def _anli(number: int) -> RawTask:
    members = {
        split: (f"R{number}/{end}.jsonl",) for split, end in ((TRAIN, "train"), (VALIDATION, "dev"), (TEST, "test"))
    }
    return RawTask(convert.anli, members, f"R{number}/test.jsonl, or anli_v1.0.zip")


def _super_glue(name: str, function: Callable[[Any], list[dict[str, Any]]], **more: Any) -> RawTask:
    members = {TRAIN: (f"{name}/train.jsonl",), VALIDATION: (f"{name}/val.jsonl",)}
    return RawTask(function, members, f"{name}/val.jsonl, or SuperGLUE's {name}.zip", **more)


_PLAIN = {TRAIN: ("train.jsonl",), VALIDATION: ("dev.jsonl", "valid.jsonl"), TEST: ("test.jsonl",)}
RAW_TASKS: Mapping[str, RawTask] = {
    "hellaswag": RawTask(
        convert.hellaswag,
        {TRAIN: ("hellaswag_train.jsonl",), VALIDATION: ("hellaswag_val.jsonl",)},
        "hellaswag_val.jsonl, or hellaswag_val_full.txt",
        read=raw_files.hellaswag_records,
        remark=_from_blocks,
    ),
    "lambada_openai": RawTask(convert.lambada, {TEST: ("lambada_test.jsonl",)}, "lambada_test.jsonl of OpenAI"),
    "triviaqa": RawTask(
        convert.triviaqa,
        {},
        "qa/wikipedia-dev.json and qa/web-dev.json of triviaqa-rc.tar.gz",
        read=raw_files.whole_json,
    ),
    "webqs": RawTask(
        convert.webqs,
        {TRAIN: ("webquestions.examples.train.json",), TEST: ("webquestions.examples.test.json",)},
        "webquestions.examples.test.json",
    ),
    "winogrande": RawTask(
        convert.winogrande,
        {TRAIN: ("train_xl.jsonl",), VALIDATION: ("dev.jsonl",)},
        "dev.jsonl (with dev-labels.lst where it has no answers), or winogrande_1.1.zip",
        label_field="answer",
        label_members={TRAIN: ("train_xl-labels.lst",), VALIDATION: ("dev-labels.lst",)},
    ),
    "piqa": RawTask(
        convert.piqa,
        _PLAIN,
        "valid.jsonl and valid-labels.lst, or physicaliqa-train-dev.zip",
        label_field="label",
        label_members={TRAIN: ("train-labels.lst",), VALIDATION: ("dev-labels.lst", "valid-labels.lst")},
    ),
    "arc_challenge": _arc("ARC-Challenge"),
    "arc_easy": _arc("ARC-Easy"),
    "anli_r1": _anli(1),
    "anli_r2": _anli(2),
    "anli_r3": _anli(3),
    "openbookqa": RawTask(
        convert.openbookqa,
        {TRAIN: ("Main/train.jsonl",), VALIDATION: ("Main/dev.jsonl",), TEST: ("Main/test.jsonl",)},
        "Main/test.jsonl, or OpenBookQA-V1-Sep2018.zip",
    ),
    "race": RawTask(convert.race, {}, "the folder RACE/test/high of RACE.tar.gz", read=raw_files.whole_json),
    "boolq": _super_glue("BoolQ", convert_super_glue.boolq, remark=convert_super_glue.boolq_remark),
    "copa": _super_glue("COPA", convert_super_glue.copa),
    "rte": RawTask(
        convert.glue_rte,
        {TRAIN: ("RTE/train.tsv", "RTE/train.jsonl"), VALIDATION: ("RTE/dev.tsv", "RTE/val.jsonl")},
        "RTE/dev.tsv, or GLUE's or SuperGLUE's RTE.zip",
        read=raw_files.table_records,
    ),
    "wsc": _super_glue("WSC", convert_super_glue.wsc),
    "multirc": _super_glue("MultiRC", convert_super_glue.multirc),
    "record": _super_glue("ReCoRD", convert_super_glue.record),
    "wikitext": RawTask(
        convert.wikitext,
        {TRAIN: ("wiki.train.raw",), VALIDATION: ("wiki.valid.raw",), TEST: ("wiki.test.raw",)},
        "wiki.test.raw, or wikitext-2-raw-v1.zip",
        read=raw_files.wikitext_pages,
        remark=_unknown_words,
    ),
}
