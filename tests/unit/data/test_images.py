"""Images from folders, arrays and scikit-learn, and data that are refused."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron.ltd.data.config import ImageDataConfig
from megatron.ltd.data.images import build_image_batch, open_images
from megatron.ltd.errors import UserError
from megatron.ltd.models.encoder_config import ViTConfig
from tests.support_errors import assert_names, refused

DIGITS = "05542a5937b2"
"""The start of the training split's fingerprint, which is the same on every machine."""


def model(**changes: Any) -> ViTConfig:
    return ViTConfig(**({"img_h": 4, "img_w": 6, "patch_dim": 2, "num_channels": 1} | changes))


def pixels(number: int, channels: int = 1, height: int = 4, width: int = 6) -> np.ndarray:
    """Random pixels, uint8 [H, W, C], with ``number`` as the seed."""
    return np.random.RandomState(number).randint(0, 256, (height, width, channels), dtype=np.uint8)


def write_image(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(path)


def write_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), channels: int = 1) -> Path:
    """Write two PNGs per class, with pixels 0, 1, 2, ... in the order of the file names."""
    for number, name in enumerate(classes):
        for place in (0, 1):
            write_image(folder / name / f"{place}.png", pixels(2 * number + place, channels))
    return folder


def write_arrays(path: Path, **changes: Any) -> Path:
    images = np.stack([pixels(number)[..., 0] for number in range(4)])
    arrays = {"images": images, "labels": np.array([0, 0, 1, 1])} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def opened(train: Path, valid: Path | None = None, **changes: Any) -> Any:
    config = ImageDataConfig(train_data_path=str(train), valid_data_path=None if valid is None else str(valid))
    return open_images(config, model(**changes))


@pytest.mark.parametrize(("kind", "channels"), [("folder", 1), ("folder", 3), ("arrays", 1)])
def test_images_are_the_pixels_that_were_stored(tmp_path: Path, kind: str, channels: int) -> None:
    if kind == "folder":
        path, classes = write_folder(tmp_path / "train", channels=channels), ("cat", "dog")
    else:
        path, classes = write_arrays(tmp_path / "train.npz"), ("0", "1")
    images, nothing = opened(path, num_channels=channels)
    assert nothing is None and images.classes == classes and len(images) == 4
    for number in range(4):
        assert images[number]["label"] == number // 2
        np.testing.assert_array_equal(images[number]["image"], pixels(number, channels))


def test_colour_files_become_grey_where_the_model_takes_one_channel(tmp_path: Path) -> None:
    images, _ = opened(write_folder(tmp_path / "train", channels=3), num_channels=1)
    assert images[0]["image"].shape == (4, 6, 1)


def test_validation_images_use_the_class_numbers_of_training(tmp_path: Path) -> None:
    train, valid = write_folder(tmp_path / "train", ("a", "b", "c")), write_folder(tmp_path / "valid", ("c",))
    _, images = opened(train, valid)
    assert [images[number]["label"] for number in range(2)] == [2, 2] and len(images.classes) == 3


def test_digits_are_always_split_the_same_way() -> None:
    train, valid = open_images(ImageDataConfig(data_path="digits"), model(img_h=8, img_w=8))
    assert (len(train), len(valid)) == (1437, 360)
    assert train.fingerprint[:12] == DIGITS and train.classes == tuple("0123456789")
    assert min(train[0]["image"].min(), valid[0]["image"].min()) == 0.0
    assert max(train[number]["image"].max() for number in range(50)) == 1.0
    seen = {train[number]["image"].tobytes() for number in range(len(train))}
    assert len(seen) == 1437 and not any(valid[number]["image"].tobytes() in seen for number in range(360))


def test_fingerprints_follow_pixels_and_labels(tmp_path: Path) -> None:
    prints = [
        opened(write_arrays(tmp_path / "train.npz", **changes))[0].fingerprint
        for changes in ({}, {}, {"labels": np.array([0, 1, 1, 1])}, {"images": np.zeros((4, 4, 6), np.uint8)})
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_batch_is_normalised() -> None:
    samples = [{"image": pixels(number, 3), "label": number, "weight": 1.0} for number in (0, 1)]
    batch = build_image_batch(samples, [8, 9], mean=(0.5, 0.4, 0.3), std=(0.5,))
    for row in (0, 1):
        for channel, mean in enumerate((0.5, 0.4, 0.3)):
            expected = (torch.from_numpy(pixels(row, 3)[..., channel]).double() / 255 - mean) / 0.5
            torch.testing.assert_close(batch.images_BCHW[row, channel].double(), expected, rtol=0, atol=1e-6)
    assert batch.sample_ids_B.tolist() == [8, 9] and batch.labels_B.tolist() == [0, 1]
    floats = [{**sample, "image": sample["image"] / 255.0} for sample in samples]
    torch.testing.assert_close(
        build_image_batch(floats, [8, 9], mean=(0.5, 0.4, 0.3), std=(0.5,)).images_BCHW, batch.images_BCHW
    )


def test_images_of_mixed_sizes_name_the_first_odd_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train")
    write_image(folder / "dog" / "2.png", pixels(0, height=5))
    with refused("--train-data-path", "dog/2.png", "5 x 6", "cat/0.png", "4 x 6"):
        opened(folder)


ARRAYS: dict[str, tuple[dict[str, Any], list[object]]] = {
    "no labels": ({"labels": None}, ["labels", "images=..., labels=..."]),
    "no images": ({"images": None}, ["images"]),
    "labels of words": ({"labels": np.array(["cat", "cat", "dog", "dog"])}, ["labels", "<U3"]),
    "labels of floats": ({"labels": np.array([0.0, 0.5, 1.0, 1.0])}, ["labels", "float64"]),
    "negative label": ({"labels": np.array([0, 0, -1, 1])}, ["labels[2]", "-1", 0]),
    "too few labels": ({"labels": np.array([0, 1, 1])}, ["labels", "[3]", 4]),
    "one class": ({"labels": np.zeros(4, np.int64)}, [1]),
    "other size": ({"images": np.zeros((4, 6, 6), np.uint8)}, ["6 x 6", "4 x 6", "--img-h 6 --img-w 6"]),
    "channels": ({"images": np.zeros((4, 4, 6, 3), np.uint8)}, ["--num-channels 3"]),
    "flat": ({"images": np.zeros((4, 24), np.uint8)}, ["images", "[4, 24]", "[N, H, W]"]),
    "whole numbers of 64 bits": ({"images": np.zeros((4, 4, 6), np.int64)}, ["int64", "uint8 (0 to 255)"]),
    "not finite": ({"images": np.full((4, 4, 6), np.nan)}, ["images[0]"]),
    "huge label": ({"labels": np.array([0, 1 << 62, 1, 1])}, ["labels[1]"]),
    "objects": ({"labels": np.array([0, None, 1, 1], dtype=object)}, ["numpy.savez"]),
}


@pytest.mark.parametrize(("changes", "names"), ARRAYS.values(), ids=ARRAYS.keys())
def test_bad_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], names: list[object]) -> None:
    path = write_arrays(tmp_path / "train.npz", **changes)
    with refused("--train-data-path", path, *names):
        opened(path)


def test_files_that_expand_without_bound(tmp_path: Path) -> None:
    """A file of a few bytes that announces terabytes, and a PNG of 400 million pixels."""
    with zipfile.ZipFile(tmp_path / "train.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, shape in {"images": (1 << 40, 4, 6), "labels": (4,)}.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.writestr(f"{name}.npy", header.getvalue())
    with refused("--train-data-path", tmp_path / "train.npz"):
        opened(tmp_path / "train.npz")
    folder = write_folder(tmp_path / "folder")
    png = (folder / "cat" / "0.png").read_bytes()
    size = b"IHDR" + struct.pack(">II", 20_000, 20_000) + png[24:29]
    (folder / "cat" / "0.png").write_bytes(png[:12] + size + struct.pack(">I", zlib.crc32(size)) + png[33:])
    with refused("--train-data-path", folder / "cat" / "0.png"):
        opened(folder)


def test_labels_that_the_classes_do_not_have(tmp_path: Path) -> None:
    train = write_arrays(tmp_path / "train.npz")
    valid = write_arrays(tmp_path / "valid.npz", labels=np.array([0, 1, 2, 1]))
    with refused("--valid-data-path", valid, "labels[2]", 2, 0, 1):
        opened(train, valid)
    with refused("--train-data-path", "train.npz", "labels[2]", 2, 0, 1):
        opened(write_arrays(tmp_path / "train.npz", labels=np.array([0, 1, 2, 1])), num_classes=2)
    opened(train, num_classes=3)  # a class may be without images


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train")
    with refused("--num-classes 3", folder, 2):
        opened(folder, num_classes=3)
    valid = write_folder(tmp_path / "valid", ("cow",))
    with refused(f"--valid-data-path {valid}", "cow/0.png"):
        opened(folder, valid)
    with refused("--num-channels 2"):
        opened(folder, num_channels=2)
    write_image(folder / "3.png", pixels(0))
    with refused(f"--train-data-path {folder}", "3.png"):
        opened(folder)
    (folder / "3.png").unlink()
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[:-30])
    images, _ = opened(folder)
    with pytest.raises(UserError) as error:
        images[1]
    assert_names(str(error.value), folder / "cat" / "1.png")
    (folder / "cat" / "1.png").write_bytes(b"no image")
    with refused(f"--train-data-path {folder}", "1.png"):
        opened(folder)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    for name in ("empty", "nothing", "bad.npz"):
        with refused("--train-data-path", tmp_path / name):
            opened(tmp_path / name)


FLAGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["--train-data-path"]),
    "validation alone": ({"valid_data_path": "x"}, ["--train-data-path"]),
    "both": ({"data_path": "digits", "train_data_path": "x"}, ["--data-path digits", "--train-data-path"]),
    "unknown": ({"data_path": "faces"}, ["--data-path faces", "digits", "--train-data-path"]),
}


@pytest.mark.parametrize(("flags", "names"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], names: list[str]) -> None:
    with refused(*names):
        ImageDataConfig(**flags).check_given()
