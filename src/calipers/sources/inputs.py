"""Indexed inputs: a data set as numbered images with labels, its subsets, and the digests of both."""

from __future__ import annotations

import functools
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, final

import numpy as np
from numpy.typing import NDArray

from calipers.errors import InvalidInput, MissingClasses, UsageError
from calipers.randomness import check_seed
from calipers.sources.misfits import of_other_classes, of_other_shape, of_other_values

if TYPE_CHECKING:
    from calipers.sources.tensors import Tensors

__all__ = ["NO_LABEL", "Dataset", "Example", "Pixels", "input_digest", "on_grid"]

NO_LABEL: Final = -1
"""The label of an input whose class is not known."""

_LEVELS: Final = 255
_NAMED: Final = 5


def input_digest(image: NDArray[np.float32]) -> str:
    """Hash one input: its number format, its shape and every value.

    Args:
        image: the input, of any shape.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    plain = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(f"{plain.dtype.str} {plain.shape} ".encode(), digest_size=16)
    digest.update(plain.tobytes())
    return digest.hexdigest()


def on_grid(image: NDArray[np.float32]) -> bool:
    """Say whether every value is a level of an 8-bit image: float32(k) / float32(255) for k from 0 to 255.

    Args:
        image: values of any shape, in units of [0, 1].

    Returns:
        Whether all of them are.

    Example:
        >>> on_grid(np.arange(256, dtype=np.float32) / np.float32(255)), on_grid(np.float32([0.5]))
        (True, False)
    """
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        return False
    levels = np.clip(np.rint(values.astype(np.float64) * _LEVELS), 0, _LEVELS)
    return bool(np.array_equal(levels.astype(np.float32) / np.float32(_LEVELS), values))


class Pixels(ABC):
    """The values of the inputs of a whole data set, read one at a time."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, channels first."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the inputs."""

    @abstractmethod
    def read(self, index: int) -> NDArray[np.float32]:
        """Read one input.

        Args:
            index: its number, from 0.

        Returns:
            Its values in input units, float32, of the shape above.

        Raises:
            InvalidInput: if it cannot be measured: damaged, of another shape, NaN, out of range.
        """

    @abstractmethod
    def digest(self) -> str:
        """Hash what the inputs are made of.

        Returns:
            Hexadecimal digits that change whenever an input does.
        """


@final
@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One input of a data set.

    Args:
        index: its number in the whole data set, whatever subset it was read from.
        image: its values, float32, in input units.
        label: its class, NO_LABEL where it is not known.
    """

    index: int
    image: NDArray[np.float32]
    label: int


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Numbered inputs with labels, or a subset of them.

    A subset keeps the numbers that its inputs have in the whole, so that records of two subsets agree.

    Args:
        name: the reference it was made from.
        pixels: the inputs of the whole data set.
        labels: the class of each of them, int64, NO_LABEL where it is not known.
        indices: the numbers of the inputs in this subset, in order.
        class_names: the names of the classes in order, where they are known.
        notes: what a user should see before a run, as pairs of a word and its value.

    Raises:
        InvalidInput: if there is not one label an input, or a label is out of range; it names the first one.
    """

    name: str
    pixels: Pixels
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    class_names: tuple[str, ...] | None = None
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.pixels):
            raise InvalidInput(
                f"{self.name} has {len(self.pixels)} images and {len(self.labels)} labels: give one label an "
                "image"
            )
        wrong = np.flatnonzero(self.labels < NO_LABEL)
        if self.num_classes is not None:
            wrong = np.flatnonzero((self.labels < NO_LABEL) | (self.labels >= self.num_classes))
        if wrong.size:
            first, last = (
                int(wrong[0]),
                "and up" if self.num_classes is None else f"to {self.num_classes - 1}",
            )
            raise InvalidInput(
                f"{self.name}: label {int(self.labels[first])} of input {first} is out of range: classes are "
                f"0 {last}, "
                "and -1 where the class is not known"
            )

    @classmethod
    def whole(
        cls,
        name: str,
        pixels: Pixels,
        labels: NDArray[np.int64],
        *,
        class_names: tuple[str, ...] | None = None,
        notes: tuple[tuple[str, str], ...] = (),
    ) -> Dataset:
        """Make a data set of all its inputs.

        Args:
            name: the reference it is made from.
            pixels: its inputs.
            labels: the class of each of them (n,), NO_LABEL where it is not known.
            class_names: the names of the classes in order.
            notes: what a user should see before a run.

        Returns:
            The data set.
        """
        return cls(name, pixels, labels, np.arange(len(pixels), dtype=np.int64), class_names, notes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, channels first."""
        return self.pixels.shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes, where their names are known."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether every input of this subset has a label."""
        return bool((self.labels[self.indices] != NO_LABEL).all())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the whole data set that this is a subset of: inputs, how they are read, and labels."""
        digest = hashlib.blake2b(self.pixels.digest().encode(), digest_size=16)
        digest.update(str(self.pixels.shape).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Example:
        index = int(self.indices[position])
        return Example(index, self.pixels.read(index), int(self.labels[index]))

    def __iter__(self) -> Iterator[Example]:
        return (self[position] for position in range(len(self)))

    def tensors(self, limit: int | None = None) -> Tensors:
        """Read the first inputs as tensors.

        Args:
            limit: how many at most; all of them if None.

        Returns:
            Images (batch, *shape), float32, and labels (batch,), in order.
        """
        from calipers.sources.tensors import read_tensors

        return read_tensors(self, limit)

    def describe(self) -> tuple[tuple[str, str], ...]:
        """Say what the data set is, for a user to look at before a run.

        Returns:
            Pairs of a word and its value.
        """
        whole, here = len(self.pixels), len(self)
        known = self.labels[self.indices]
        classes = np.unique(known[known != NO_LABEL])
        return (
            ("data", self.name),
            ("inputs", f"{here}" if here == whole else f"{here} of {whole}"),
            ("shape", "x".join(str(side) for side in self.shape)),
            (
                "labels",
                (f"{classes.size} class{'' if classes.size == 1 else 'es'}")
                if self.labelled
                else _without_label(int((known == NO_LABEL).sum())),
            ),
            *self.notes,
        )

    def take(self, *, skip: int = 0, limit: int | None = None) -> Dataset:
        """Take a plain subset: leave some out at the front, then keep the next ones.

        Args:
            skip: how many to leave out.
            limit: how many to keep at most, None for all that follow.

        Returns:
            The subset; it warns (MissingClasses) if classes of the whole are absent from it.

        Raises:
            UsageError: if a number is negative, or nothing is left.
        """
        if skip < 0 or (limit is not None and limit < 1):
            raise UsageError(f"skip is {skip} and limit is {limit}: skip is at least 0, limit at least 1")
        if skip >= len(self):
            raise UsageError(f"skip is {skip} and {self.name} has {len(self)} inputs: nothing is left")
        stop = len(self) if limit is None else skip + limit
        return self._subset(self.indices[skip:stop])

    def sample(self, n: int, *, seed: int) -> Dataset:
        """Take a stratified subset: each class in proportion to its share, the inputs of a class at random.

        Within a class the inputs of least hash of (seed, number) are taken, so that the choice is the same on
        every machine and with every version of every library.

        Args:
            n: how many inputs to take.
            seed: chooses among them.

        Returns:
            The subset, in the order of the whole; it warns (MissingClasses) if classes of the whole are
            absent from it.

        Raises:
            UsageError: if n is not from 1 to the number of inputs.
        """
        if not 1 <= n <= len(self):
            raise UsageError(f"sample is {n} and {self.name} has {len(self)} inputs: give 1 to {len(self)}")
        check_seed(seed)
        classes, counts = np.unique(self.labels[self.indices], return_counts=True)
        chosen = [
            self._draw(self.indices[self.labels[self.indices] == label], share, seed)
            for label, share in zip(classes, _shares(counts, n), strict=True)
        ]
        return self._subset(np.sort(np.concatenate(chosen)))

    def require(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Check that a classifier can be measured on every input of this subset; reads all of them.

        Args:
            input_shape: the shape of one input of the classifier.
            num_classes: the number of its classes.
            bounds: the least and the largest value that it takes.

        Raises:
            InvalidInput: if shape, a label or a value does not fit, or an image is damaged; it names the
                first one.
        """
        self.require_fit(input_shape=input_shape, num_classes=num_classes)
        low, high = bounds
        for example in self:
            index, least, largest = example.index, float(example.image.min()), float(example.image.max())
            if least < low or largest > high:
                found = f"input {index} has values from {least:g} to {largest:g}"
                raise InvalidInput(of_other_values(self.name, found, f"{low:g} to {high:g}"))

    def require_fit(self, *, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Check that shape and labels fit a classifier, without reading an image.

        Args:
            input_shape: the shape of one input of the classifier.
            num_classes: the number of its classes.

        Raises:
            InvalidInput: if they do not; it names the first label that does not.
        """
        if self.shape != tuple(input_shape):
            raise InvalidInput(of_other_shape(self.name, self.shape, tuple(input_shape)))
        here = self.labels[self.indices]
        wrong = np.flatnonzero(here >= num_classes)
        if wrong.size:
            index = int(self.indices[wrong[0]])
            raise InvalidInput(
                f"{self.name}: input {index} has label {int(here[wrong[0]])}, and the model has classes 0 to "
                f"{num_classes - 1}: mend the label, or take a model of these classes"
            )
        if self.num_classes is not None and self.num_classes != num_classes:
            raise InvalidInput(of_other_classes(self.name, self.num_classes, num_classes))

    def _draw(self, members: NDArray[np.int64], share: int, seed: int) -> NDArray[np.int64]:
        ranked = sorted(
            (hashlib.blake2b(f"calipers/sample/1 {seed} {index}".encode(), digest_size=8).digest(), index)
            for index in members.tolist()
        )
        return np.array([index for _, index in ranked[:share]], dtype=np.int64)

    def _subset(self, indices: NDArray[np.int64]) -> Dataset:
        missing = np.setdiff1d(self.labels[self.labels != NO_LABEL], self.labels[indices])
        if missing.size:
            some = ", ".join(self._class_name(int(label)) for label in missing[:_NAMED])
            more = f" and {missing.size - _NAMED} more" if missing.size > _NAMED else ""
            size = "1 input" if len(indices) == 1 else f"{len(indices)} inputs"
            warnings.warn(
                MissingClasses(f"this subset of {self.name} ({size}) has no input of {some}{more}"),
                stacklevel=3,
            )
        return replace(self, indices=indices)

    def _class_name(self, label: int) -> str:
        return f"class {label}" if self.class_names is None else f"class {label} ({self.class_names[label]})"


def _without_label(count: int) -> str:
    return "1 input has none" if count == 1 else f"{count} inputs have none"


def _shares(counts: NDArray[np.int64], n: int) -> list[int]:
    # Split n among strata in proportion to their counts, the rest to the largest remainders
    total = int(counts.sum())
    parts = [divmod(n * int(count), total) for count in counts]
    shares = [whole for whole, _ in parts]
    rest = sorted(range(len(parts)), key=lambda row: (-parts[row][1], row))
    for row in rest[: n - sum(shares)]:
        shares[row] += 1
    return shares
