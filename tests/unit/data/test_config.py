"""What may follow the data flags."""

from __future__ import annotations

import argparse

import pytest

from megatron.ltd.data.config import Blend, DataConfig, parse_blend, plain_split
from megatron.ltd.flags import add_flags, read_flags
from tests.support_errors import refused


@pytest.mark.parametrize(
    ("values", "blend"),
    [
        (["a"], Blend(("a",), None)),
        (["7"], Blend(("7",), None)),
        (["a", "b"], Blend(("a", "b"), None)),
        (["0.3", "a", "7e-1", "b"], Blend(("a", "b"), (0.3, 0.7))),
        (["2", "a"], Blend(("a",), (2.0,))),
    ],
)
def test_blends(values: list[str], blend: Blend) -> None:
    assert parse_blend("--data-path", values) == blend


@pytest.mark.parametrize(
    ("split", "plain"),
    [
        ("969,30,1", "969,30,1"), ("1", "1"), ("1e2,1", "100,1"), ("1_000,30,1", "1000,30,1"),
        (" .5 , 5e-1", "0.5,0.5"), ("1e-7,+1", "0.0000001,1"),
    ],
)  # fmt: skip
def test_split_shares_are_plain_decimals(split: str, plain: str) -> None:
    assert plain_split(split) == plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data_path": ("0.5", "a", "b")}, ("--data-path 0.5",)),
        ({"data_path": ("0.5", "a", "b", "c")}, ("--data-path 0.5",)),
        ({"data_path": ("a", "0.5")}, ("--data-path", "0.5")),
        ({"data_path": ("0", "a", "1", "b")}, ("--data-path 0", 1)),
        ({"data_path": ("nan", "a", "1", "b")}, ("--data-path", 1)),
        ({"data_path": ("a.bin",)}, ("--data-path", "a.bin")),
        ({"train_data_path": ("a.idx",)}, ("--train-data-path", "a.idx")),
        ({"data_path": ("a",), "valid_data_path": ("b",)}, ("--data-path", "--valid-data-path")),
        ({"valid_data_path": ("b",)}, ("--valid-data-path", "--train-data-path")),
        ({"split": "90;10"}, ("--split 90", 10)),
        ({"split": "1,2,3,4"}, ("--split 1,2,3,4",)),
        ({"split": "-1,2"}, ("--split -1,2",)),
        ({"split": "0,0"}, ("--split 0,0",)),
        ({"split": "1e999,1"}, ("--split 1e999,1",)),
        ({"split": "nan,1"}, ("--split nan,1",)),
        ({"split": "9,,1"}, ("--split 9,,1",)),
        ({"num_workers": -1}, ("--num-workers -1", 0)),
        ({"num_dataset_builder_threads": 0}, ("--num-dataset-builder-threads 0", 1)),
    ],
)
def test_values_refused(values: dict, message: tuple[object, ...]) -> None:
    with refused(*message):
        DataConfig(**values)


def test_flags_are_megatrons() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, DataConfig)
    line = "--data-path 1 a 2 b --split 9,1 --reset-position-ids --reset-attention-mask --eod-mask-loss --num-workers 3"
    config = read_flags(parser.parse_args([*line.split(), "--no-mmap-bin-files"]), DataConfig)
    assert config == DataConfig(
        data_path=("1", "a", "2", "b"),
        split="9,1",
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        num_workers=3,
        mmap_bin_files=False,
    )
    assert config.workers_on("cpu") == 3
    assert (DataConfig().workers_on("cpu"), DataConfig().workers_on("cuda")) == (0, 2)
