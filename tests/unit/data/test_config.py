"""Values of the data flags, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from megatron.ltd.data.blends import Blend, parse_blend, plain_split
from megatron.ltd.data.config import DataConfig
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
        ({"data_path": ("a",), "valid_data_path": ("b",)}, ("--valid-data-path", "--train-data-path")),
        ({"data_path": ("a",), "train_data_path": ("b",)}, ("--data-path", "--train-data-path")),
        ({"data_path": ("a",), "mock_data": True}, ("--data-path", "--mock-data")),
        ({"data_path": ("a",), "data_args_path": "b"}, ("--data-path", "--data-args-path")),
        ({"data_args_path": "nowhere"}, ("--data-args-path nowhere",)),
        ({"per_split_data_args_path": "nowhere"}, ("--per-split-data-args-path nowhere",)),
        ({"test_data_path": ("b",)}, ("--test-data-path", "--train-data-path")),
        ({"train_data_path": ("a",), "valid_data_path": ("x=b", "c")}, ("--valid-data-path x=b c", "NAME=PREFIX")),
        ({"train_data_path": ("a",), "valid_data_path": ("x=b", "x=c")}, ("--valid-data-path x=b x=c",)),
        ({"train_data_path": ("a",), "valid_data_path": ("x=b.idx",)}, ("--valid-data-path x:", "b.idx")),
        ({"valid_data_path": ("b",)}, ("--valid-data-path", "--train-data-path")),
        ({"split": "90;10"}, ("--split 90", 10)),
        ({"split": "1,2,3,4"}, ("--split 1,2,3,4",)),
        ({"split": "-1,2"}, ("--split -1,2",)),
        ({"split": "0,0"}, ("--split 0,0",)),
        ({"split": "1e999,1"}, ("--split 1e999,1",)),
        ({"split": "nan,1"}, ("--split nan,1",)),
        ({"split": "9,,1"}, ("--split 9,,1",)),
    ],
)
def test_values_refused(values: dict, message: tuple[object, ...]) -> None:
    with refused(*message):
        DataConfig(**values)


def test_validation_sets_have_names() -> None:
    config = DataConfig(train_data_path=("a",), valid_data_path=("web=b", "code-2=d/lr=1_text"), test_data_path=("c",))
    assert config.evaluated() == ["valid_data_path/web", "valid_data_path/code-2", "test_data_path"]
    assert config.blends()["valid_data_path/code-2"].prefixes == ("d/lr=1_text",)
    one = DataConfig(train_data_path=("a",), valid_data_path=("runs/lr=1_text",))
    assert one.evaluated() == ["valid_data_path"]
    assert one.blends()["valid_data_path"].prefixes == ("runs/lr=1_text",)


def test_blends_from_files(tmp_path: Path) -> None:
    """Megatron-LM's files: the words of --data-path; lists or texts by split. Named validation sets are ours."""
    many = [word for number in range(2400) for word in (str(1 + number % 3), f"data/{number}_text_document")]
    (tmp_path / "all.txt").write_text("\n".join(many) + "\n")
    (blend,) = DataConfig(data_args_path=str(tmp_path / "all.txt")).blends().values()
    assert blend[:2] == DataConfig(data_path=tuple(many)).blends()["data_path"][:2]
    content = {"train": [0.3, "a", "0.7", "b"], "valid": {"web": "c", "code": ["1", "d", "2", "e"]}, "test": "1 f 2 g"}
    (tmp_path / "split.json").write_text(json.dumps(content))
    found = DataConfig(per_split_data_args_path=str(tmp_path / "split.json")).blends()
    assert {key: blend[:2] for key, blend in found.items()} == {
        "train_data_path": (("a", "b"), (0.3, 0.7)),
        "valid_data_path/web": (("c",), None),
        "valid_data_path/code": (("d", "e"), (1.0, 2.0)),
        "test_data_path": (("f", "g"), (1.0, 2.0)),
    }


@pytest.mark.parametrize(
    ("flag", "content"),
    [
        ("data_args_path", ""), ("data_args_path", "0.5 a b"), ("data_args_path", "a.bin"),
        ("per_split_data_args_path", "a b"), ("per_split_data_args_path", '["a"]'),
        ("per_split_data_args_path", '{"valid": "a"}'), ("per_split_data_args_path", '{"train": "a", "other": "b"}'),
        ("per_split_data_args_path", '{"train": []}'), ("per_split_data_args_path", '{"train": [{}]}'),
        ("per_split_data_args_path", '{"train": {"web": "a"}}'),
        ("per_split_data_args_path", '{"train": "a", "valid": {"a/b": "c"}}'),
        ("per_split_data_args_path", '{"train": "a", "valid": {}}'),
    ],
)  # fmt: skip
def test_files_refused(flag: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    with refused(f"--{flag.replace('_', '-')}", str(tmp_path / "file")):
        DataConfig(**{flag: str(tmp_path / "file")})  # type: ignore[arg-type]


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
