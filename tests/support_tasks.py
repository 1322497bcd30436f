"""Small datasets with invented examples in the formats of two lm-eval tasks, as ``--task-data`` reads them."""

from __future__ import annotations

import json
from pathlib import Path

LAMBADA = [
    "The cat sat by the door all day, for it waited for the old dog. In the evening came the dog",
    "Nobody had seen the red kite since the storm. Then a boy climbed the tree and found the kite",
    "She put salt in the soup, tasted it, and put in more. Now there was too much salt",
    "He wrote a letter each week, and never sent a single letter",
    "The river was high, and the bridge was gone. They looked for long for another bridge",
]
BOOLQ = [
    ("Snow falls when it is cold.", "does snow fall when it is cold", 1),
    ("A ship is made of wood or steel.", "is a ship made of paper", 0),
    ("The mill grinds corn.", "does the mill grind corn", 1),
]


def write_task_data(folder: Path) -> Path:
    """Write data for lambada_openai and boolq to ``folder``, and return it."""
    boolq = [dict(zip(("passage", "question", "label"), record, strict=True)) for record in BOOLQ]
    for task, split, records in (
        ("lambada_openai", "test", [{"text": text} for text in LAMBADA]),
        ("boolq", "validation", boolq),
    ):
        (folder / task).mkdir(parents=True)
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
