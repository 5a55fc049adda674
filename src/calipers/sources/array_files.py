"""Arrays of images: npz files, IDX files, and what a function or a library returns, as a data set."""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from calipers.errors import BadReference, InvalidInput, MissingFile, UnsafeFile
from calipers.sources.inputs import NO_LABEL, Dataset, Pixels
from calipers.sources.reference import Reference

__all__ = ["ArrayPixels", "ValueRange", "arrays_to_dataset", "load_idx", "load_npz", "read_idx"]

ValueRange = Literal["0-1", "0-255", "raw"]
"""In what range values are stored; ``raw`` leaves any finite value as it is (feature vectors)."""

_RANGES: Final = {"0-1": "0-1", "0-255": "0-255", "raw": "raw"}
_LAYOUTS: Final = {"chw": "chw", "nchw": "chw", "hwc": "hwc", "nhwc": "hwc"}
_IMAGE_KEYS: Final = ("x", "images", "data", "image", "features")
_LABEL_KEYS: Final = ("y", "labels", "targets", "label", "target")
_SPLITS: Final = {"train": "train", "test": "test", "t10k": "t10k", "t3k": "t3k"}
_PREFIXES: Final = {"train": ("train",), "test": ("t10k", "test", "t3k"), "t10k": ("t10k",), "t3k": ("t3k",)}
_IDX_BYTE: Final = 8
_CHANNELS: Final = (1, 3)
_BLOCK: Final = 4096


@final
class ArrayPixels(Pixels):
    """Images in one array in memory, kept in the number format that they have.

    Args:
        values: array of shape (n, *stored shape).
        value_range: the range of the stored values; ``0-255`` is divided by 255.
        layout: ``chw``, or ``hwc`` for channels last.
        shape: the shape that each input is given (its values in the order of storage), None to leave it.
        name: the reference, for messages.

    Raises:
        InvalidInput: if a value is NaN, infinite or outside the range; it names the first input that has one.
    """

    def __init__(
        self,
        values: NDArray[Any],
        *,
        value_range: ValueRange,
        layout: Literal["chw", "hwc"],
        shape: tuple[int, ...] | None,
        name: str,
    ) -> None:
        self._values = values
        self._range = value_range
        self._layout = layout
        stored = values.shape[1:]
        self._shape = (1, *stored) if len(stored) == 2 else tuple(stored)
        if layout == "hwc" and len(stored) == 3:
            self._shape = (stored[2], stored[0], stored[1])
        if shape is not None:
            if math.prod(shape) != math.prod(stored):
                raise BadReference(
                    f"{name}: shape is {shape}, and the stored inputs have shape {tuple(stored)}"
                )
            self._shape = shape
        self._check(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, channels first."""
        return self._shape

    def __len__(self) -> int:
        return len(self._values)

    def read(self, index: int) -> NDArray[np.float32]:
        """Read one input.

        Args:
            index: its number.

        Returns:
            Its values, float32; an 8-bit level k becomes float32(k) / float32(255).
        """
        image = self._values[index].astype(np.float32)
        if self._range == "0-255":
            image = image / np.float32(255)
        if self._layout == "hwc" and image.ndim == 3:
            image = image.transpose(2, 0, 1)
        return np.ascontiguousarray(image).reshape(self._shape)

    def digest(self) -> str:
        """Hash the values as they are stored, and how they are read.

        Returns:
            Hexadecimal digits.
        """
        header = (
            f"array {self._values.dtype.str} {self._values.shape} {self._range} {self._layout} {self._shape} "
        )
        digest = hashlib.blake2b(header.encode(), digest_size=16)
        for start in range(0, len(self), _BLOCK):
            digest.update(np.ascontiguousarray(self._values[start : start + _BLOCK]).tobytes())
        return digest.hexdigest()

    def _check(self, name: str) -> None:
        low, high = {"0-1": (0.0, 1.0), "0-255": (0.0, 255.0), "raw": (-math.inf, math.inf)}[self._range]
        for start in range(0, len(self), _BLOCK):
            block = self._values[start : start + _BLOCK].reshape(
                len(self._values[start : start + _BLOCK]), -1
            )
            finite = np.isfinite(block).all(1)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite)[0])
                raise InvalidInput(f"{name}: input {row} has NaN or infinite values: remove or repair it")
            outside = ((block < low) | (block > high)).any(1)
            if outside.any():
                row = int(np.flatnonzero(outside)[0])
                least, largest = float(block[row].min()), float(block[row].max())
                raise InvalidInput(
                    f"{name}: input {start + row} has values from {least:.9g} to {largest:.9g}, outside {low:g} "
                    "to "
                    f"{high:g}: {_range_hint(least, largest)}"
                )


def arrays_to_dataset(
    images: NDArray[Any],
    labels: NDArray[Any] | None,
    *,
    name: str,
    value_range: ValueRange | None = None,
    layout: Literal["chw", "hwc"] | None = None,
    shape: tuple[int, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Make a data set of arrays.

    Args:
        images: array (n, h, w), (n, c, h, w), (n, h, w, c) or (n, features), of 8-bit integers or numbers.
        labels: whole numbers (n,), None where there are none.
        name: the reference, for messages.
        value_range: the range of the values; by default 0-255 for 8-bit integers, 0-1 for anything else.
        layout: where the channels are; by default seen from the shape.
        shape: a shape to give each input.
        class_names: the names of the classes in order.

    Returns:
        The data set.

    Raises:
        BadReference: if the layout cannot be seen from the shape, or the array is not one of images.
        InvalidInput: if values or labels mean nothing; it names the first one.
    """
    if images.ndim not in (2, 3, 4) or not len(images) or 0 in images.shape:
        raise BadReference(
            f"{name}: the array of images has shape {images.shape}: give (n, h, w), (n, c, h, w), (n, h, w, "
            "c) or (n, features)"
        )
    if images.dtype.kind not in "buif":
        raise BadReference(
            f"{name}: the images are of type {images.dtype}: give 8-bit integers or real numbers"
        )
    found_range: ValueRange = value_range or ("0-255" if images.dtype == np.uint8 else "0-1")
    found_layout = layout or _see_layout(images.shape, shape, name)
    pixels = ArrayPixels(images, value_range=found_range, layout=found_layout, shape=shape, name=name)
    notes = [("values", f"{images.dtype}, range {found_range}")]
    if images.ndim == 4:
        notes.append(("layout", found_layout))
    return Dataset.whole(
        name, pixels, _whole_labels(labels, len(images), name), class_names=class_names, notes=tuple(notes)
    )


def load_npz(reference: Reference) -> Dataset:
    """Read a file of numpy arrays, without running any pickle in it.

    Args:
        reference: an ``npz:`` reference.

    Returns:
        The data set.

    Raises:
        BadReference: if it is not such a file, or the arrays cannot be told from their names.
        UnsafeFile: if an array holds Python objects, which only a pickle can.
    """
    path = reference.file()
    with path.open("rb") as opened:
        start = opened.read(2)
    if start == b"\x93N":
        raise BadReference(
            f"{reference.text}: {path.name} is a single array: save images and labels by numpy.savez"
        )
    if start[:1] == b"\x80":
        raise UnsafeFile(
            f"{reference.text}: {path.name} is a pickle, which could run code; refused, nothing was run"
        )
    if start != b"PK":
        raise BadReference(
            f"{reference.text}: {path.name} is no npz file: save images and labels by numpy.savez"
        )
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            image_key = _pick(reference, "x", _IMAGE_KEYS, archive.files)
            label_key = _pick_labels(reference, archive.files)
            for key in filter(None, (image_key, label_key)):
                arrays[key] = archive[key]
    except ValueError as problem:
        if "pickle" in str(problem):
            raise UnsafeFile(
                f"{reference.text}: {path.name} holds Python objects, which could run code; refused"
            ) from None
        raise BadReference(f"{reference.text}: {path.name} cannot be read as npz: {_line(problem)}") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as problem:
        raise BadReference(f"{reference.text}: {path.name} cannot be read as npz: {_line(problem)}") from None
    return arrays_to_dataset(
        arrays[image_key],
        arrays[label_key] if label_key else None,
        name=reference.text,
        value_range=read_range(reference),
        layout=read_layout(reference),
        shape=reference.shape(),
    )


def load_idx(reference: Reference) -> Dataset:
    """Read a folder of IDX files, as MNIST and its kin come.

    Args:
        reference: an ``idx:`` reference; ``split`` is train or test, test by default.

    Returns:
        The data set.

    Raises:
        MissingFile: if the folder has no images or no labels of the split.
    """
    folder = reference.folder()
    split = reference.choice("split", _SPLITS) or "test"
    names = sorted(path.name for path in folder.iterdir())
    for prefix in _PREFIXES[split]:
        parts = {
            word: [name for name in names if name.startswith(prefix) and word in name and "idx" in name]
            for word in ("images", "labels")
        }
        if parts["images"] and parts["labels"]:
            images = read_idx(folder / parts["images"][0])
            labels = read_idx(folder / parts["labels"][0])
            return arrays_to_dataset(images, labels, name=reference.text)
    raise MissingFile(
        f"{reference.text}: {str(folder)!r} has no IDX images and labels of the split {split}: such files "
        "are called "
        f"{_PREFIXES[split][0]}-images-idx3-ubyte and {_PREFIXES[split][0]}-labels-idx1-ubyte, or the same "
        "with .gz"
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of bytes, packed by gzip or not.

    Args:
        path: the file.

    Returns:
        The array that it holds.

    Raises:
        BadReference: if it is damaged, cut short, or holds something other than bytes.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as problem:
        raise BadReference(f"{path.name} cannot be read: {_line(problem)}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_BYTE:
        raise BadReference(
            f"{path.name} is no IDX file of bytes: it starts with {raw[:4].hex() or 'nothing'}"
        )
    header = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4))
    if len(raw) != header + math.prod(shape):
        raise BadReference(
            f"{path.name} is damaged: it announces {math.prod(shape)} bytes of values and has "
            f"{len(raw) - header}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def read_range(reference: Reference) -> ValueRange | None:
    """Read the option ``range`` of a data reference.

    Args:
        reference: the reference.

    Returns:
        The range, None if the option is not there.
    """
    found = reference.choice("range", _RANGES)
    return None if found is None else _as_range(found)


def read_layout(reference: Reference) -> Literal["chw", "hwc"] | None:
    """Read the option ``layout`` of a data reference.

    Args:
        reference: the reference.

    Returns:
        The layout, None if the option is not there.
    """
    found = reference.choice("layout", _LAYOUTS)
    return None if found is None else ("hwc" if found == "hwc" else "chw")


def _as_range(text: str) -> ValueRange:
    return "0-255" if text == "0-255" else ("raw" if text == "raw" else "0-1")


def _pick(reference: Reference, option: str, names: tuple[str, ...], keys: list[str]) -> str:
    asked = reference.option(option)
    if asked is not None:
        if asked not in keys:
            raise BadReference(
                f"{reference.text}: the file has no array {asked!r}: it has {', '.join(keys) or 'none'}"
            )
        return asked
    for name in names:
        if name in keys:
            return name
    raise BadReference(
        f"{reference.text}: no array is called {', '.join(names)}: name it by ?{option}=, of "
        f"{', '.join(keys) or 'none'}"
    )


def _pick_labels(reference: Reference, keys: list[str]) -> str | None:
    # Find the labels; a file with images alone has none, anything else must be named
    images = _pick(reference, "x", _IMAGE_KEYS, keys)
    if reference.option("y") is None and not set(keys) - {images}:
        return None
    return _pick(reference, "y", _LABEL_KEYS, keys)


def _see_layout(stored: tuple[int, ...], shape: tuple[int, ...] | None, name: str) -> Literal["chw", "hwc"]:
    if len(stored) != 4 or shape is not None:
        return "chw"
    first, last = stored[1] in _CHANNELS, stored[3] in _CHANNELS
    if first == last:
        raise BadReference(
            f"{name}: where the channels are cannot be seen from {stored}: say ?layout=chw or ?layout=hwc"
        )
    return "chw" if first else "hwc"


def _whole_labels(labels: NDArray[Any] | None, count: int, name: str) -> NDArray[np.int64]:
    if labels is None:
        return np.full(count, NO_LABEL, dtype=np.int64)
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "buif":
        raise InvalidInput(
            f"{name}: the labels have type {labels.dtype} and shape {labels.shape}: give whole numbers, one "
            "an image"
        )
    if len(flat) != count:
        raise InvalidInput(f"{name} has {count} images and {len(flat)} labels: give one label an image")
    wrong = (
        np.flatnonzero(~np.isfinite(flat) | (np.floor(flat) != flat))
        if flat.dtype.kind == "f"
        else np.empty(0, int)
    )
    if wrong.size:
        raise InvalidInput(f"{name}: label {flat[wrong[0]]} of input {int(wrong[0])} is not a whole number")
    return flat.astype(np.int64)


def _range_hint(least: float, largest: float) -> str:
    if least >= 0 and largest <= 255:
        return "are they 8-bit levels? say ?range=0-255"
    return "scale them, or say ?range=raw for feature vectors"


def _line(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
