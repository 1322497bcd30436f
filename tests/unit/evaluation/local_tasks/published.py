"""Files with invented content in the formats in which data sets are published, and the requests that lm-eval must send.

``asked`` of a case holds the prompts and continuations of its first record, written by hand from the tasks' official
descriptions; ``gold`` holds the indices of the right ones.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """The files and flags of one task, and the requests that follow from its first record."""

    files: dict[str, bytes]
    flags: tuple[str, ...]
    """Flags of tools/prepare_tasks.py, with file names relative to the folder of the files."""
    asked: tuple[tuple[str, str], ...]
    """The pairs (context, continuation) of the first record."""
    gold: tuple[int, ...] = (0,)

    def write(self, folder: Path) -> list[str]:
        """Write the files; returns the flags with their paths."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return [flag if flag.startswith("--") else str(folder / flag) for flag in self.flags]


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def archive(**members: bytes) -> bytes:
    """A zip archive; ``__`` in a name stands for a slash."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for name, content in members.items():
            written.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def asked(context: str, *ends: str) -> tuple[tuple[str, str], ...]:
    """The requests of one prompt with these answers, each after a space."""
    return tuple((context, f" {end}") for end in ends)


def _arc(stem: str, key: str, **choices: str) -> dict[str, Any]:
    listed = [{"text": text, "label": label.lstrip("_")} for label, text in choices.items()]
    return {"id": "X_1", "question": {"stem": stem, "choices": listed}, "answerKey": key}


ARC = [_arc("What melts?", "B", A="stone", B="ice", C="sand"), _arc("What burns?", "1", _1="wood", _2="rain")]
ARC_ASKED = asked("Question: What melts?\nAnswer:", "stone", "ice", "sand")
ANLI = [
    {"uid": "a", "context": "Ann has two cats.", "hypothesis": "Ann has a pet.", "label": "e", "reason": "cats"},
    {"uid": "b", "context": "Bo sleeps.", "hypothesis": "Bo runs.", "label": "c"},
]
ANLI_ASKED = asked(
    "Ann has two cats.\nQuestion: Ann has a pet. True, False, or Neither?\nAnswer:", "True", "Neither", "False"
)
HELLASWAG = [
    {"ind": 1, "activity_label": "Baking", "ctx_a": "A man [x] kneads  dough.", "ctx_b": "he", "ctx": "",
     "endings": ["sings.", "bakes it.", "leaves [step] now.", "sits."], "label": 1, "source_id": "a~b"},
    {"ind": 2, "activity_label": "Home", "ctx_a": "How to sweep [title] Take a broom.", "ctx_b": "", "ctx": "",
     "endings": ["One.", "Two.", "Three.", "Four."], "label": 3},
]  # fmt: skip
PIQA = [{"goal": "To cool tea,", "sol1": "heat it.", "sol2": "wait."}, {"goal": "Cut", "sol1": "a", "sol2": "b"}]
WINOGRANDE = [
    {"qID": "1", "sentence": "Ann told Bea that _ was late.", "option1": "Ann", "option2": "Bea", "answer": "2"},
    {"qID": "2", "sentence": "The cup did not fit the box as _ was big.", "option1": "cup", "option2": "box"},
]
COPA = [
    {"premise": "The cup broke. ", "choice1": "It fell.", "choice2": "It sang.", "question": "cause", "label": 0},
    {"premise": "It rained.", "choice1": "Dust rose.", "choice2": "We got wet.", "question": "effect", "label": 1},
]
BOOLQ = [
    {"question": "is tea hot", "passage": "Tea -- Tea is made hot.", "idx": 0, "label": True},
    {"question": "is ice hot", "passage": "Ice -- Ice is cold.", "idx": 1, "label": False},
]
WSC = [
    {"text": "Ann saw Bea when she came in.", "idx": 0, "label": False,
     "target": {"span1_index": 0, "span1_text": "ann", "span2_index": 4, "span2_text": "She."}},
    {"text": "Bo ate as he was hungry.", "idx": 1, "label": True,
     "target": {"span1_index": 0, "span1_text": "Bo", "span2_index": 3, "span2_text": "he"}},
]  # fmt: skip
WSC_ASKED = asked(
    "Passage: Ann saw Bea when *she* came in.\nQuestion: In the passage above, does the pronoun "
    '"*she*" refer to "*Ann*"?\nAnswer:', "no", "yes",
)  # fmt: skip
WEBQS = [
    {"url": "u", "utterance": "who sails?", "targetValue": '(list (description "The crew") (description Ann))'},
    {"url": "u", "utterance": "where is it?", "targetValue": "(list (description Here))"},
]
RTE = (
    b"index\tsentence1\tsentence2\tlabel\n"
    b'0\tAnn said "no.\tAnn spoke.\tentailment\n'
    b"1\tBo sat.\tBo stood.\tnot_entailment\n"
)
MULTIRC = [
    {"idx": 0, "version": 1.1, "passage": {"text": "Ann reads.", "questions": [
        {"question": "Who reads?", "idx": 0,
         "answers": [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bo", "idx": 1, "label": 0}]}]}},
]  # fmt: skip
RECORD = [
    {"source": "x", "idx": 0, "passage": {"text": "Ann met Bo.\n@highlight\nThey met",
                                          "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}]},
     "qas": [{"idx": 0, "query": "@placeholder met Bo", "answers": [{"start": 0, "end": 2, "text": "Ann"}]},
             {"idx": 1, "query": "Ann met @placeholder", "answers": [{"start": 8, "end": 9, "text": "Bo"}]}]},
]  # fmt: skip
TRIVIA = {"Data": [{"Question": " Who wrote it ", "QuestionId": "q",
                    "Answer": {"Aliases": ["Ann ", "A. Nn"], "Value": "Ann", "Type": "x"}}]}  # fmt: skip
RACE = {"id": "high1.txt", "article": "Bo walked.", "answers": ["B", "A"],
        "options": [["ran", "walked", "sat", "fell"], ["Bo", "Ann", "Cy", "Di"]],
        "questions": ["Bo  _  .", "Who walked?"]}  # fmt: skip
WIKITEXT = b" \n = One = \n \n A red @-@ hot line . \n = = Part = = \n \n More . \n = Two = \n \n End . \n"

PUBLISHED = {
    "hellaswag": Published(
        {"hellaswag_val.jsonl": lines(*HELLASWAG)},
        ("--validation", "hellaswag_val.jsonl"),
        asked("Baking: A man kneads dough. He", "sings.", "bakes it.", "leaves now.", "sits."),
        (1,),
    ),
    "lambada_openai": Published(
        {"lambada_test.jsonl": lines({"text": "She went to the\nold house"}, {"text": "a b"})},
        ("--test", "lambada_test.jsonl"),
        asked("She went to the\nold", "house"),
    ),
    "triviaqa": Published(
        {"wikipedia-dev.json": json.dumps(TRIVIA).encode(), "web-dev.json": json.dumps(TRIVIA).encode()},
        ("--validation", "wikipedia-dev.json", "web-dev.json"),
        (("Question: Who wrote it?\nAnswer:", ""),),
    ),
    "webqs": Published(
        {"webquestions.examples.test.json": json.dumps(WEBQS).encode()},
        ("--test", "webquestions.examples.test.json"),
        asked("Question: who sails?\nAnswer:", "Ann", "The crew"),
        (0, 1),
    ),
    "winogrande": Published(
        {"dev.jsonl": lines(*WINOGRANDE), "dev-labels.lst": b"2\n1\n"},
        ("--validation", "dev.jsonl", "dev-labels.lst"),
        tuple((f"Ann told Bea that {name}", " was late.") for name in ("Ann", "Bea")),
        (1,),
    ),
    "piqa": Published(
        {
            "p.zip": archive(
                **{"physicaliqa-train-dev__dev.jsonl": lines(*PIQA), "physicaliqa-train-dev__dev-labels.lst": b"1\n0\n"}
            )
        },
        ("--validation", "p.zip"),
        asked("Question: To cool tea,\nAnswer:", "heat it.", "wait."),
        (1,),
    ),
    "arc_challenge": Published(
        {"ARC.zip": archive(**{"ARC-V1-Feb2018__ARC-Challenge__ARC-Challenge-Test.jsonl": lines(*ARC)})},
        ("--test", "ARC.zip"),
        ARC_ASKED,
        (1,),
    ),
    "arc_easy": Published(
        {"t.jsonl": lines(*ARC), "d.jsonl": lines(*ARC)},
        ("--test", "t.jsonl", "--train", "d.jsonl"),
        ARC_ASKED,
        (1,),
    ),
    **{
        f"anli_r{number}": Published(
            {"anli.zip": archive(**{f"anli_v1.0__R{n}__test.jsonl": lines(*ANLI) for n in (1, 2, 3)})},
            ("--test", "anli.zip"),
            ANLI_ASKED,
        )
        for number in (1, 2, 3)
    },
    "openbookqa": Published(
        {"O.zip": archive(**{"OpenBookQA-V1-Sep2018__Data__Main__test.jsonl": lines(*ARC)})},
        ("--test", "O.zip"),
        asked("What melts?", "stone", "ice", "sand"),
        (1,),
    ),
    "race": Published(
        {"high/1.txt": json.dumps(RACE).encode(), "high/2.txt": json.dumps(RACE).encode()},
        ("--test", "high"),
        asked("Article: Bo walked.\n\nBo walked\nWho walked?", "Bo", "Ann", "Cy", "Di"),
    ),
    "boolq": Published(
        {"BoolQ.zip": archive(**{"BoolQ__test.jsonl": b"", "BoolQ__val.jsonl": lines(*BOOLQ)})},
        ("--validation", "BoolQ.zip"),
        asked("Tea -- Tea is made hot.\nQuestion: is tea hot?\nAnswer:", "no", "yes"),
        (1,),
    ),
    "copa": Published(
        {"val.jsonl": lines(*COPA)},
        ("--validation", "val.jsonl"),
        asked("The cup broke because", " it fell.", " it sang."),
    ),
    "rte": Published(
        {"dev.tsv": RTE},
        ("--validation", "dev.tsv"),
        asked('Ann said "no.\nQuestion: Ann spoke. True or False?\nAnswer:', "True", "False"),
    ),
    "wsc": Published({"val.jsonl": lines(*WSC)}, ("--validation", "val.jsonl"), WSC_ASKED),
    "multirc": Published(
        {"val.jsonl": lines(*MULTIRC)},
        ("--validation", "val.jsonl"),
        asked(
            "Ann reads.\nQuestion: Who reads?\nAnswer:",
            *(f"Ann\nIs the answer correct? {answer}" for answer in ("yes", "no")),
        ),
        (1,),
    ),
    "record": Published(
        {"val.jsonl": lines(*RECORD)},
        ("--validation", "val.jsonl"),
        asked("Ann met Bo.\n\n  - They met.\n", "  - Ann met Bo", "  - Bo met Bo"),
    ),
    "wikitext": Published(
        {"w.zip": archive(**{"wikitext-2-raw__wiki.test.raw": WIKITEXT})},
        ("--test", "w.zip"),
        ((" = One =\n\nA red-hot line.\n== Part ==\n\nMore. ", ""),),
    ),
}
