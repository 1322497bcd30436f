"""Try to break every command, for a bounded time, and count what was right and wrong.

    python tools/torture.py --minutes 5
    python tools/torture.py --campaign kills corruption --minutes 120 --output torture
    python tools/torture.py --campaign command-lines --seed 1234 --trial 17        repeats one trial

Campaigns: kill -9 and signals in chains of runs; damaged files; random command lines; hostile data files; full and
closed disks. With --output a second start goes on where the first one ended, and one with another seed adds to the
page. The exit status is 0 if nothing was wrong.
The implementation is in ``tools/torture``.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})  # of all that is forked
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture.config import TortureConfig  # noqa: E402
from torture.trials import Journal, Trial  # noqa: E402

from megatron.ltd.errors import UserError, run_command  # noqa: E402
from megatron.ltd.flags import read_command  # noqa: E402
from megatron.ltd.format import text_table  # noqa: E402


def main() -> None:
    """Read the flags, run the campaigns, and print the table."""
    (config,) = read_command(__doc__, TortureConfig)
    earlier = _earlier(Path(config.output)) if config.output else []
    with tempfile.TemporaryDirectory(prefix="torture-cache-") as cache:
        os.environ["HF_DATASETS_CACHE"] = cache  # of the data of tasks; before it is imported
        _run(config, earlier)


def _run(config: TortureConfig, earlier: Sequence[Mapping[str, Any]]) -> None:
    from torture.warm import import_everything

    import_everything()
    from torture.drive import check_targets, prepared, repeat, run_campaigns

    check_targets(config)
    if config.trial is not None:
        with prepared() as material:
            _say(repeat(config, material))
        return
    with tempfile.TemporaryDirectory(prefix="torture-journal-") as other:
        prefix = Path(config.output or f"{other}/torture")
        journal = Journal(prefix.with_name(f"{prefix.name}.jsonl"))
        journal.start(config.seed, shlex.join(["python", "tools/torture.py", *sys.argv[1:]]))
        try:
            with prepared() as material:
                run_campaigns(config, journal, material)
        finally:
            wrong = _report(config, journal, prefix, earlier)
    if wrong:
        raise SystemExit(1)


def _say(trial: Trial) -> None:
    print(f"{trial.what}\nended with {trial.ending}, after {trial.seconds:.1f} s: {trial.problem or 'right'}")
    if trial.is_wrong:
        raise SystemExit(1)


def _earlier(prefix: Path) -> list[dict[str, Any]]:
    """The series that the page has already."""
    path = prefix.with_name(f"{prefix.name}.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        assert all(series["rows"] is not None for series in found)
    except (AssertionError, KeyError, OSError, TypeError, ValueError):
        raise UserError(f"--output {prefix}: {path} is not what this tool writes now; use another prefix") from None
    return list(found)


def _report(config: TortureConfig, journal: Journal, prefix: Path, earlier: Sequence[Mapping[str, Any]]) -> int:
    """Write the table and print it; return the number of wrong trials."""
    from torture.report import table_rows, to_json, to_markdown

    seed = config.seed
    report = to_json(journal.read(seed), seed, journal.starts(seed), journal.mended(seed))
    reports = [*(other for other in earlier if other["seed"] != seed), report]
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    page = to_markdown(reports).encode(errors="backslashreplace")  # a command line may hold what is not UTF-8
    prefix.with_name(f"{prefix.name}.md").write_bytes(page)
    header = ("campaign", "what", "tried", "right", "wrong", "skipped", "minutes")
    print(text_table(table_rows([report], by_kind=True), header, num_labels=2))
    return len(report["wrong"])


if __name__ == "__main__":
    run_command(main)
