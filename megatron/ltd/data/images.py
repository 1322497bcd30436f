"""Labelled images: from folders, arrays, or a library.

    FOLDER/CLASS/NAME.png    one sub-folder per class, PNG or JPEG; classes are numbered in the order of their names
    FILE.npz                 images [N, H, W] or [N, H, W, C], uint8 or float; labels [N], whole numbers from 0
    digits                   scikit-learn's 1,797 images of 8 x 8 pixels: 1,437 for training, 360 for evaluation

Pixels of 8 bits become numbers between 0 and 1; floats are taken as they are. All images have one size. They are read
from folders as they are needed, and arrays are held in memory. Whatever is wrong is found before a run starts, but
for pixels of a file that cannot be read.

Shapes: N images, C channels, H height, W width. Not here: in which order images are read (``data.epochs``).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from megatron.ltd.data.config import ImageDataConfig
from megatron.ltd.data.epochs import LabelledBatch, stacked_labels
from megatron.ltd.errors import UserError
from megatron.ltd.format import format_bytes
from megatron.ltd.machine import memory_bytes
from megatron.ltd.models.encoder_config import ViTConfig

SUFFIXES = (".png", ".jpg", ".jpeg")
_DIGITS_TRAIN_IMAGES = 1437
_MOST_CLASSES = 1 << 20
_INSTALL = 'pip install "megatron-ltd[vision]"'


@dataclass(frozen=True, kw_only=True)
class ImageBatch(LabelledBatch):
    """A microbatch of images, normalised: float32 [B, C, H, W]."""

    images_BCHW: Tensor


class Images(Protocol):
    """Images and their labels; ``images[i]`` holds ``image``, [H, W, C], uint8 or float, and ``label``."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    fingerprint: str
    """Equal for the same images and labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class ArrayImages:
    """Images in memory."""

    def __init__(self, images_NHWC: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._images_NHWC, self._labels_N = images_NHWC, labels_N
        content = hashlib.sha256(np.ascontiguousarray(images_NHWC).tobytes())
        content.update(labels_N.astype("<i8").tobytes())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images_NHWC[index], "label": int(self._labels_N[index])}


class FolderImages:
    """Images in files, opened on access. The fingerprint is of names and sizes of files, not of pixels."""

    def __init__(self, files: Sequence[tuple[Path, int]], classes: Sequence[str], num_channels: int) -> None:
        self.classes = tuple(classes)
        self._files, self._num_channels = tuple(files), num_channels
        listed = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path, _ in files]
        self.fingerprint = hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self._files[index]
        try:
            with _pillow().open(path) as image:
                pixels = np.asarray(image.convert("L" if self._num_channels == 1 else "RGB"))
        except Exception as error:  # Pillow raises errors of many kinds
            raise UserError(f"{path}: cannot be read as an image ({error}); replace or remove it") from None
        return {"image": pixels.reshape(*pixels.shape[:2], self._num_channels), "label": label}


def open_images(config: ImageDataConfig, model: ViTConfig) -> tuple[Images, Images | None]:
    """The checked images for training and for evaluation. The training images define the classes.

    Raises ``UserError`` if images cannot be read or have another size than the model's, or a label is missing or
    unknown.
    """
    if config.data_path is not None:
        train, valid = _digits()
        _check_size(f"--data-path {config.data_path}", (8, 8, 1), model)
        _check_count(f"--data-path {config.data_path}", train.classes, model)
        return train, valid
    assert config.train_data_path is not None
    opened = _open("--train-data-path", config.train_data_path, model, None)
    if config.valid_data_path is None:
        return opened, None
    return opened, _open("--valid-data-path", config.valid_data_path, model, opened.classes)


def build_image_batch(
    samples: Sequence[Mapping[str, Any]], sample_ids: Sequence[int], *, mean: Sequence[float], std: Sequence[float]
) -> ImageBatch:
    """Stack samples of ``Images`` with their ``weight``: pixels less ``mean``, over ``std``, each [C] or [1]."""
    pixels_BHWC = np.stack([sample["image"] for sample in samples])
    scale = 255.0 if pixels_BHWC.dtype == np.uint8 else 1.0
    images_BCHW = torch.from_numpy(pixels_BHWC.astype(np.float32)).permute(0, 3, 1, 2) / scale
    mean_C11, std_C11 = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return ImageBatch(
        sample_ids_B=torch.tensor(sample_ids, dtype=torch.int64),
        images_BCHW=((images_BCHW - mean_C11) / std_C11).contiguous(),
        **stacked_labels(samples),
    )


def _digits() -> tuple[ArrayImages, ArrayImages]:
    """scikit-learn's digits, always split in the same way."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"--data-path digits: needs the package scikit-learn; run {_INSTALL}") from None
    images_NHW, labels_N = load_digits(return_X_y=True)
    images_NHWC = images_NHW.reshape(-1, 8, 8, 1).astype(np.float32) / 16.0  # its pixels go from 0 to 16
    order = np.random.RandomState(0).permutation(len(labels_N))
    parts = (order[:_DIGITS_TRAIN_IMAGES], order[_DIGITS_TRAIN_IMAGES:])
    names = [str(digit) for digit in range(10)]
    train, valid = (ArrayImages(images_NHWC[part], labels_N[part], names) for part in parts)
    return train, valid


def _open(flag: str, given: str, model: ViTConfig, known: Sequence[str] | None) -> Images:
    """``known``: the known classes; None to take them from these images."""
    path = Path(given)
    if path.is_dir():
        return _open_folder(f"{flag} {given}", path, model, known)
    if path.suffix == ".npz" and path.is_file():
        return _open_arrays(f"{flag} {given}", path, model, known)
    raise UserError(f"{flag} {given}: is neither a folder of images nor a .npz file; use one of them")


def _open_folder(shown: str, folder: Path, model: ViTConfig, known: Sequence[str] | None) -> FolderImages:
    if model.num_channels not in (1, 3):
        raise UserError(f"--num-channels {model.num_channels}: image files need 1 (grey) or 3 (colour)")
    loose = next((path for path in sorted(folder.iterdir()) if _is_image(path)), None)
    if loose is not None:
        raise UserError(f"{shown}: {loose.name} has no label; move it to a sub-folder named after its class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, name) for name in names for path in sorted((folder / name).rglob("*")) if _is_image(path)]
    if not files:
        raise UserError(f"{shown}: has no images; give it one sub-folder per class, with .png or .jpg files")
    classes = names if known is None else list(known)
    if known is None:
        _check_count(shown, classes, model)
    for path, name in files:
        if name not in classes:
            raise UserError(
                f"{shown}: {path.relative_to(folder)} is of class {name}, which the training images do not have; "
                "remove it, or add training images of its class"
            )
    _check_files(shown, [path for path, _ in files], model)
    return FolderImages([(path, classes.index(name)) for path, name in files], classes, model.num_channels)


def _check_files(shown: str, files: Sequence[Path], model: ViTConfig) -> None:
    """Check that every file is an image with the size of the first one and of the model."""
    first = None
    for path in files:
        try:
            with _pillow().open(path) as image:  # reads no pixels
                size = (image.height, image.width)
        except Exception as error:  # as above
            raise UserError(f"{shown}: {path} cannot be read as an image ({error}); replace or remove it") from None
        if first is None:
            first = size
        if size != first:
            raise UserError(
                f"{shown}: {path} has {_size(size)} pixels and {files[0]} has {_size(first)}; all images must have the "
                "same size: resize them first"
            )
    assert first is not None
    _check_size(shown, (*first, model.num_channels), model)


def _open_arrays(shown: str, path: Path, model: ViTConfig, known: Sequence[str] | None) -> ArrayImages:
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_expanded(shown, file)
            arrays = {name: file[name] for name in ("images", "labels") if name in file}
    except (OSError, ValueError, MemoryError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{shown}: cannot be read ({error}); save it with numpy.savez") from None
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"{shown}: has no array {name}; save it with numpy.savez(FILE, images=..., labels=...)")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim not in (3, 4) or not len(images):
        raise UserError(f"{shown}: images has shape {list(images.shape)}; it must be [N, H, W] or [N, H, W, C], N > 0")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{shown}: images has type {images.dtype}; it must be uint8 (0 to 255) or float")
    images_NHWC = images if images.ndim == 4 else images[..., None]
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        broken = int(np.flatnonzero(~np.isfinite(images_NHWC).all(axis=(1, 2, 3)))[0])
        raise UserError(f"{shown}: images[{broken}] has a number that is not finite; replace or remove it")
    _check_size(shown, images_NHWC.shape[1:], model)
    _check_labels(shown, labels, len(images), model.num_classes if known is None else len(known))
    if known is None:
        known = [str(number) for number in range(model.num_classes or int(labels.max()) + 1)]
        _check_count(shown, known, model)
    return ArrayImages(images_NHWC, labels, known)


def _check_expanded(shown: str, file: Any) -> None:
    """Refuse arrays that do not fit in memory: a compressed one can be a thousand times smaller."""
    needed = sum(member.file_size for member in file.zip.infolist()) if hasattr(file, "zip") else 0
    if needed > memory_bytes():
        raise UserError(
            f"{shown}: its arrays take {format_bytes(needed)}, and there are {format_bytes(memory_bytes())} of memory; "
            "give fewer images"
        )


def _check_labels(shown: str, labels: np.ndarray, num_images: int, num_classes: int | None) -> None:
    """Check that each image has an integer label from 0, below the number of classes if that is known."""
    if labels.dtype.kind not in "iu":
        raise UserError(f"{shown}: labels has type {labels.dtype}; it must contain the integers of the classes")
    if labels.shape != (num_images,):
        raise UserError(f"{shown}: labels has shape {list(labels.shape)} for {num_images} images; give one per image")
    unknown = (labels < 0) | (labels >= (_MOST_CLASSES if num_classes is None else num_classes))
    if unknown.any():
        place = int(np.flatnonzero(unknown)[0])
        known = f"classes go from 0 to {(num_classes or _MOST_CLASSES) - 1}"
        raise UserError(f"{shown}: labels[{place}] is {labels[place]}, but {known}; correct it, or remove the image")


def _check_count(shown: str, classes: Sequence[str], model: ViTConfig) -> None:
    if len(classes) < 2:
        raise UserError(f"{shown}: has 1 class; give images of at least two")
    if model.num_classes not in (None, len(classes)):
        raise UserError(
            f"--num-classes {model.num_classes}: {shown} has {len(classes)} classes; use that number, or remove "
            "--num-classes"
        )


def _check_size(shown: str, found: tuple[int, ...], model: ViTConfig) -> None:
    """``found`` is height, width and channels."""
    if found != (model.img_h, model.img_w, model.num_channels):
        height, width, channels = found
        raise UserError(
            f"{shown}: has images of {_size(found)} pixels and {channels} channel{'s' * (channels > 1)}, but the model "
            f"expects {model.img_h} x {model.img_w} and {model.num_channels}; use --img-h {height} --img-w {width} "
            f"--num-channels {channels} with a --patch-dim that divides them, or resize the images"
        )


def _size(height_and_width: Sequence[int]) -> str:
    return f"{height_and_width[0]} x {height_and_width[1]}"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError(f"image files need the package pillow: run {_INSTALL}") from None
    return Image
