"""What ships with the package: the names after ``bundled:``, their files, and one line about each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from calipers.errors import BadReference

__all__ = [
    "DATA_SUFFIX",
    "MODEL_SUFFIX",
    "card",
    "metadata",
    "shipped_data",
    "shipped_file",
    "shipped_models",
    "spoken_accuracy",
]

MODEL_SUFFIX: Final = ".safetensors"
DATA_SUFFIX: Final = ".npz"

_FOLDER: Final = Path(__file__).parent / "bundled"
_HEADER_LIMIT: Final = 1 << 20


def shipped_file(name: str, *, suffix: str, what: str) -> Path:
    """Find a file that ships with the package.

    Args:
        name: what stands after ``bundled:``.
        suffix: the suffix of such files.
        what: ``model`` or ``data``, for the message.

    Returns:
        Its path.

    Raises:
        BadReference: if there is none of this name; the message lists those that there are.
    """
    names = {path.name.removesuffix(suffix): path for path in sorted(_FOLDER.glob(f"*{suffix}"))}
    if name not in names:
        raise BadReference(f"no bundled {what} is called {name!r}: there are {', '.join(names) or 'none'}")
    return names[name]


def shipped_models() -> dict[str, str]:
    """List the networks that ship with the package.

    Returns:
        One line about each name, from the metadata of its file.
    """
    return {path.stem: _about_model(metadata(path)) for path in sorted(_FOLDER.glob(f"*{MODEL_SUFFIX}"))}


def shipped_data() -> dict[str, str]:
    """List the data sets that ship with the package.

    Returns:
        One line about each name, from its card.
    """
    return {path.stem: str(card(path).get("summary", "")) for path in sorted(_FOLDER.glob(f"*{DATA_SUFFIX}"))}


def card(path: Path) -> Mapping[str, Any]:
    """Read the card beside a data file: JSON with summary, class_names, source and licence.

    Args:
        path: the data file.

    Returns:
        What the card says, nothing if there is none.
    """
    beside = path.with_suffix(".json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}


def metadata(path: Path) -> dict[str, str]:
    """Read what a safetensors file says of itself, without its tensors and without torch.

    Args:
        path: the file.

    Returns:
        Its metadata; nothing if it is not such a file.
    """
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= _HEADER_LIMIT else b""
    try:
        told = json.loads(header).get("__metadata__", {})
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in told.items()}


def spoken_accuracy(text: str) -> str:
    """Say the accuracies that a file tells of itself.

    Args:
        text: JSON of a number, or of names and numbers.

    Returns:
        The same for people, or the text itself if it is not such JSON.

    Example:
        >>> spoken_accuracy('{"clean test": 0.903}')
        '90.30% (clean test)'
    """
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if isinstance(found, Mapping) and all(isinstance(value, int | float) for value in found.values()):
        return ", ".join(f"{value:.2%} ({name})" for name, value in found.items())
    return f"{found:.2%}" if isinstance(found, float) else text


def _about_model(told: Mapping[str, str]) -> str:
    parts = [told.get("arch", "a network"), f"trained on {told['data']}" if "data" in told else ""]
    sigma = told.get("sigma", "")
    if sigma:
        parts.append("without noise" if float(sigma) == 0 else f"Gaussian noise of sigma {sigma}")
    if "trained_for" in told:
        parts.append(f"for {told['trained_for']}")
    if "accuracy" in told:
        parts.append(f"accuracy {spoken_accuracy(told['accuracy'])}")
    return ", ".join(part for part in parts if part)
