"""Adversarial inputs as files: safetensors with what they are in the metadata; and their way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from calipers import __version__
from calipers.errors import InvalidInput, MissingFile, StoreNotWritable, UsageError
from calipers.runs.store import RunStore

__all__ = ["Adversarial", "read_adversarial", "save_adversarial"]


@final
@dataclass(frozen=True, eq=False)
class Adversarial:
    """Adversarial inputs of a data set.

    Args:
        images: float32, (inputs, *input_shape), in input units.
        indices: the index of each in its data set, int64.
        labels: the true classes, int64; -1 where the file does not say.
        about: what the file says of itself.
    """

    images: NDArray[np.float32]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    about: dict[str, str]


def save_adversarial(store: RunStore, path: Path) -> int:
    """Write the adversarial inputs of a run, as they were judged; the clean one where none was found.

    The file holds ``adversarial`` (float32), ``index``, ``label``, ``prediction`` (int64), ``success`` (uint8) and
    ``distance`` (float64), and in its metadata the specification and the fingerprint of the classifier.

    Args:
        store: a run of an attack or a bracket.
        path: the file, which is not there yet.

    Returns:
        The number of inputs.

    Raises:
        UsageError: if the run has none.
        StoreNotWritable: if the file is there or cannot be written.
    """
    from safetensors.numpy import save_file

    attempts = {row.index: row for row in store.attempts()}
    arrays = dict(store.tensors("adversarial"))
    rows = [attempts[index] for index in sorted(attempts) if index in arrays]
    if not rows:
        raise UsageError(f"{store.path} has no adversarial inputs: only attacks leave them")
    if path.exists():
        raise StoreNotWritable(f"{path} is there already: name another file, or remove it")
    facts = store.facts()
    about = {
        "calipers": __version__,
        "spec": store.spec.to_json(),
        "target": facts.get("target", ""),
        "norm": store.spec.norm,
        "eps": store.spec.eps,
    }
    tensors: dict[str, NDArray[Any]] = {
        "adversarial": np.stack([arrays[row.index] for row in rows]),
        "index": np.array([row.index for row in rows], dtype=np.int64),
        "label": np.array([row.label for row in rows], dtype=np.int64),
        "prediction": np.array([row.prediction for row in rows], dtype=np.int64),
        "success": np.array([row.success for row in rows], dtype=np.uint8),
        "distance": np.array([row.distance for row in rows], dtype=np.float64),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path), metadata=about)
    except OSError as problem:
        path.unlink(missing_ok=True)
        raise StoreNotWritable(
            f"{path} cannot be written ({problem.strerror}): choose another place"
        ) from None
    return len(rows)


def read_adversarial(path: Path) -> Adversarial:
    """Read adversarial inputs, of calipers or of another program.

    Args:
        path: a safetensors file with ``adversarial``, and ``index`` and ``label`` if they are known (0, 1, 2, ... and
            unknown if not); or an npz file of the same arrays.

    Returns:
        The inputs.

    Raises:
        MissingFile: if there is no file.
        InvalidInput: if it holds something else.
    """
    if not path.is_file():
        raise MissingFile(f"there is no file {path}: `calipers attack --save` writes one")
    about: dict[str, str] = {}
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            from safetensors import safe_open

            with safe_open(str(path), framework="numpy") as file:
                about = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except Exception as problem:
        raise InvalidInput(f"{path} cannot be read as safetensors or npz ({problem})") from None
    if "adversarial" not in arrays:
        raise InvalidInput(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: an array 'adversarial' is needed"
        )
    images = arrays["adversarial"]
    count = len(images)
    indices = arrays.get("index", np.arange(count))
    labels = arrays.get("label", np.full(count, -1))
    if images.dtype.kind != "f" or indices.shape != (count,) or labels.shape != (count,):
        raise InvalidInput(
            f"{path}: 'adversarial' has shape {images.shape} and type {images.dtype}, 'index' {indices.shape}, 'label' "
            f"{labels.shape}: give floats, and one index and label each"
        )
    return Adversarial(images.astype(np.float32), indices.astype(np.int64), labels.astype(np.int64), about)
