"""The table of scores on the console."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.evaluation.lm_eval.results import score_table


def test_the_table_has_every_score_and_large_ones_stay_short() -> None:
    results = {
        "results": {
            "lambada": {
                "alias": "lambada", "sample_len": 5, "acc,none": 0.25, "acc_stderr,none": "N/A",
                "perplexity,none": 4.123456789e38, "perplexity_stderr,none": 7.5e37,
            },
            "gsm8k": {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.03, "exact_match,flexible": 0.75},
        },
        "versions": {"lambada": 1.0}, "n-shot": {"lambada": 0, "gsm8k": 5},
        "higher_is_better": {"lambada": {"acc": True, "perplexity": False}},
    }  # fmt: skip
    lines = score_table(results, "results", "task").splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] == [
        ["lambada", "1.0", "none", "0", "acc", "higher is better", "0.2500", "-"],
        ["lambada", "1.0", "none", "0", "perplexity", "lower is better", "4.123e+38", "7.5e+37"],
        ["gsm8k", "-", "flexible", "5", "exact_match", "", "0.7500", "-"],
        ["gsm8k", "-", "strict", "5", "exact_match", "", "0.5000", "0.0300"],
    ]
