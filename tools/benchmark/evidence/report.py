"""The page: the results by setting, each arm at its best learning rate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.estimate import p_text, paired, text

from megatron.ltd.format import format_ranges, markdown_table

from .plan import DENSE, HERE, arm_flags, read_setting
from .records import Record
from .summary import ArmSummary, SettingSummary

_LEGEND = """\
- **loss**: held-out loss at the end, nats a token. ± is the standard error over seeds; differences are paired by seed.
- **cost**: FLOPs over those of the dense run of as many steps (theory, `megatron/ltd/plan/accounting.py`).
- **LR**: each arm's best learning rate of those with the most seeds.
- **vs dense**: loss minus that of dense after as many steps, dense at its own learning rate; **p** is two-sided,
  Student's t over the paired differences. **vs dense at equal FLOPs** is the same against dense runs planned for the
  arm's FLOPs, from warm-up to the end of the cosine, at the best of their rates with the most seeds.
- **η**: the share of dense's steps after which a dense run, planned to end there, reaches the arm's loss. The arm
  **pays** where η is above its cost."""


def to_markdown(
    settings: Mapping[str, SettingSummary], records: Sequence[Record], reading: str, plot: Path, planned: int
) -> str:
    """The page in Markdown. ``planned`` is the number of runs in the plan."""
    lines = ["# Evidence: where does each method pay?", "", reading.strip(), "", f"![η over cost]({plot.name})", ""]
    lines += [f"{len(records)} of {planned} planned runs are finished.", "", _LEGEND, ""]
    for name, summary in settings.items():
        about = read_setting(name)
        lines += [f"## {name}: {about.title}", "", _arms_table(summary), "", *_pairs_table(summary)]
        lines += _rates_table(summary)
        lines += [f"`{' '.join(about.flags)}`; {about.steps} steps, {about.vocabulary}.", ""]
    return "\n".join([*lines, "## Arms", "", *_arm_list(records), "", *_facts(records), ""])


def _arms_table(setting: SettingSummary) -> str:
    rows = []
    for arm in setting.arms:
        found = setting.summary(arm)
        relative = "" if found.relative is None else f" ({found.relative:+.1%})"
        compared = [
            text(found.difference, 4, sign=True) + relative,
            p_text(found.difference),
            text(found.at_equal_flops, 4, sign=True),
            p_text(found.at_equal_flops),
        ]
        cells = [arm, f"{found.lr:g}", f"{len(found.seeds)}", text(found.loss, 4), f"{found.cost:.1%}"]
        cells += [""] * len(compared) if arm == DENSE else compared
        rows.append([*cells, text(found.eta, 3) if found.eta else "", _verdict(found)])
    header = ("arm", "LR", "seeds", "loss", "cost", "vs dense", "p", "vs dense at equal FLOPs", "p", "η", "pays")
    return markdown_table(rows, header)


def _verdict(found: ArmSummary) -> str:
    """Whether eta is above the cost, and whether the difference exceeds two standard errors."""
    if found.eta is None:
        return ""
    surplus, error = found.eta.mean - found.cost, found.eta.standard_error
    answer = "yes" if surplus > 0 else "no"
    return answer if error is not None and abs(surplus) > 2 * error else f"{answer}, within the noise"


def _pairs_table(setting: SettingSummary) -> list[str]:
    """Compare blocks with single tokens at the same number of kept tokens, each at its own learning rate."""
    rows = []
    for arm in setting.arms:
        single = arm.replace(arm.split("-")[0], "single", 1)
        if arm.startswith("blocks") and single in setting.arms:
            difference = paired(setting.losses(arm), setting.losses(single))
            rows.append((f"{arm} - {single}", text(difference, 4, sign=True), p_text(difference)))
    return [markdown_table(rows, ("blocks against single tokens", "difference", "p")), ""] if rows else []


def _rates_table(setting: SettingSummary) -> list[str]:
    """Mean losses by learning rate over the seeds that all of an arm's rates share; the best rate is in bold."""
    swept = [arm for arm in setting.arms if len(setting.rates(arm)) > 1]
    if not swept:
        return []
    rates = sorted({lr for arm in swept for lr in setting.rates(arm)})
    rows = []
    for arm in swept:
        seeds = sorted(set.intersection(*(set(setting.losses(arm, lr)) for lr in setting.rates(arm))))
        best = setting.best_rate(arm)
        cells = []
        for lr in rates:
            losses = setting.losses(arm, lr)
            mean = f"{sum(losses[seed] for seed in seeds) / len(seeds):.4f}" if losses else "-"
            cells.append(f"**{mean}**" if lr == best else mean)
        rows.append((arm, format_ranges(seeds), *cells))
    table = markdown_table(rows, ("loss by learning rate", "seeds", *(f"{lr:g}" for lr in rates)))
    return [table, "", *(line for arm in swept for line in _better_rate(setting, arm))]


def _better_rate(setting: SettingSummary, arm: str) -> list[str]:
    """A warning if the arm may be better than where it is compared: another rate has a lower loss, but fewer seeds."""
    best, compared = setting.best_rate(arm), setting.compared_rate(arm)
    gain = paired(setting.losses(arm, best), setting.losses(arm))
    if best == compared or gain is None:
        return []
    tried = sorted(setting.losses(arm, best))
    word, seeds = "seed" if len(tried) == 1 else "seeds", format_ranges(tried)
    return [
        f"**{arm}** at {best:g} ends {-gain.mean:.4f} lower than at {compared:g}, with {word} {seeds} alone; the first "
        f"table has it at {compared:g}, with {len(setting.losses(arm))} seeds.",
        "",
    ]


def _arm_list(records: Sequence[Record]) -> list[str]:
    """The description of each arm, with its flags in the first setting that has it."""
    lines = []
    for arm in sorted({re.split("[@*]", record.arm)[0] for record in records}):
        comment = (HERE / "arms" / f"{arm}.flags").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        first = next(record for record in records if re.split("[@*]", record.arm)[0] == arm)
        flags = arm_flags(arm, read_setting(first.setting).seq_length, first.steps)
        lines.append(f"- **{arm}**: {comment}" + (f" `{' '.join(flags)}`" if flags else ""))
    return lines


def _facts(records: Sequence[Record]) -> list[str]:
    dates = sorted({record.date for record in records})
    return [
        "- Command: `python tools/benchmark/evidence.py`; every run is a line of `evidence.jsonl` with its flags, date "
        f"and versions; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        f"- Machine: {', '.join(sorted({record.machine for record in records}))}; one thread a run, two at a time.",
        *(f"- Versions: {versions}." for versions in sorted({record.versions for record in records})),
        *(f"- Data, sha256 `{sha}`." for sha in sorted({record.data_sha256 for record in records})),
    ]
