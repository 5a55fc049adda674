"""Misfits: what is said, and what can be done, where data are of another shape, range or classes than a model takes."""

from __future__ import annotations

import math

from calipers.errors import BadReference
from calipers.sources.reference import Reference, parse_reference
from calipers.sources.schemes import DATA_SCHEMES

__all__ = ["of_other_classes", "of_other_shape", "of_other_values"]

_COLOURS = {1: "in grey", 3: "in colour"}


def of_other_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Say that data are of another shape than the model's inputs, and what their reference can do about it.

    Args:
        name: the data reference, or what else the data are called.
        shape: of one input of the data.
        wanted: the shape of one input of the model.

    Returns:
        One line.

    Example:
        >>> of_other_shape("folder:scans", (1, 32, 32), (1, 28, 28))
        'folder:scans has pictures of 32x32, read in grey, and the model takes 28x28 in grey: say folder:scans?size=28'
    """
    reference, options = _read(name)
    if reference is not None and "size" in options:
        square = shape[1] == shape[2]
        read = f"{_sides(shape[1:])}{'' if square else ' (height x width)'}, read {_COLOURS[shape[0]]}"
        known = len(wanted) == 3 and wanted[0] in _COLOURS
        takes = (
            f"{_sides(wanted[1:])} {_COLOURS[wanted[0]]}" if known else f"inputs of shape {_sides(wanted)}"
        )
        return f"{name} has pictures of {read}, and the model takes {takes}: {_pictured(reference, shape, wanted)}"
    told = f"{name} has inputs of shape {_sides(shape)}, and the model takes {_sides(wanted)}"
    if "shape" in options and math.prod(shape) == math.prod(wanted):
        return f"{told}: channels come first; say ?layout= or ?shape="
    if "shape" in options:
        return f"{told}: channels come first; resize the arrays"
    return f"{told}: take a model for these data, or data of its shape"


def of_other_classes(name: str, classes: int, wanted: int) -> str:
    """Say that data have more or fewer named classes than the model has classes.

    Args:
        name: the data reference, or what else the data are called.
        classes: how many names there are.
        wanted: how many classes the model has.

    Returns:
        One line.
    """
    _, options = _read(name)
    remedy = (
        "map names to numbers by ?labels=FILE"
        if "labels" in options
        else "take a model of these classes, or data of its classes"
    )
    counted = "1 class" if classes == 1 else f"{classes} classes"
    return f"{name} has {counted} by name and the model has {wanted}, so their numbers would be a guess: {remedy}"


def of_other_values(name: str, found: str, taken: str) -> str:
    """Say that an input has values that the model does not take.

    Args:
        name: the data reference, or what else the data are called.
        found: which input, and from what to what its values are.
        taken: from what to what those of the model are.

    Returns:
        One line.
    """
    _, options = _read(name)
    remedy = "scale them, or say ?range=" if "range" in options else "take a model of these values"
    return f"{name}: {found}, and the model takes {taken}: {remedy}"


def _pictured(reference: Reference, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    # The options that make inputs of a model from pictures, if any do
    if len(wanted) != 3 or wanted[0] not in _COLOURS:
        return "pictures have 1 or 3 channels, height and width; take arrays (npz:) or another model"
    if shape[1:] != wanted[1:] and wanted[1] != wanted[2]:
        return f"resize the files themselves to {wanted[1]} high and {wanted[2]} wide"
    options = dict(reference.options)
    if shape[1:] != wanted[1:]:
        options.pop("crop", None)
        options["size"] = str(wanted[1])
    if shape[0] != wanted[0]:
        options["channels"] = str(wanted[0])
    written = "&".join(f"{name}={value}" for name, value in options.items())
    return f"say {reference.scheme}:{reference.path}?{written}"


def _read(name: str) -> tuple[Reference | None, tuple[str, ...]]:
    # The parts of a data reference and the options that it may have; neither for data of another name
    try:
        reference = parse_reference(name, DATA_SCHEMES, what="data")
    except BadReference:
        return None, ()
    return reference, next(scheme.options for scheme in DATA_SCHEMES if scheme.name == reference.scheme)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
