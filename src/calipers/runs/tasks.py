"""Tasks: one input to measure, under a key made of everything that decides its result and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from calipers.runs.spec import RunSpec

__all__ = ["TASK_VERSION", "Conditions", "Task", "tasks_of"]

TASK_VERSION = 1
"""Part of every key: raised when the meaning of a stored record changes."""


@final
@dataclass(frozen=True, slots=True)
class Task:
    """One input to measure.

    Args:
        key: the resume key, 32 hexadecimal digits.
        index: the index of the input in its data set.
        label: its class, -1 where none is known.
        digest: the digest of its pixels.
        batch: the number of the batch that it is always measured in, where float32 results depend on the others in
            it; such tasks travel together. None where they do not.
    """

    key: str
    index: int
    label: int
    digest: str
    batch: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Conditions:
    """What the references of a specification turned out to be: the part of a key that all inputs share.

    Args:
        target: the fingerprint of the classifier that is measured.
        batch_shape: the execution plan as far as it decides float32 results: batch size, layout, compilation.
        revision: the revision of the method, raised when its results change under the same fields.
    """

    target: str
    batch_shape: str
    revision: int

    def key(self, spec: RunSpec, *, index: int, label: int, digest: str) -> str:
        """Make the resume key of one input.

        Nothing else decides what is reused: neither the model or data reference as written, nor the other
        inputs of the run, nor workers, order or limits.

        Args:
            spec: the specification of the run.
            index: the index of the input, since it decides the noise.
            label: the class of the input.
            digest: the digest of its pixels.

        Returns:
            The BLAKE2b hash of 128 bits, in hexadecimal.
        """
        parts = (
            TASK_VERSION,
            spec.kind,
            self.target,
            digest,
            label,
            spec.norm,
            spec.eps,
            spec.method,
            self.revision,
            spec.noise,
            spec.votes,
            spec.precision,
            index,
            spec.seed,
            spec.device,
            self.batch_shape,
            spec.source,
            *((spec.judge,) if spec.judge else ()),
        )
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def tasks_of(
    spec: RunSpec,
    conditions: Conditions,
    inputs: Iterable[tuple[int, int, str]],
    *,
    rows: int | None = None,
) -> Iterator[Task]:
    """Turn inputs into tasks.

    Args:
        spec: the specification of the run.
        conditions: what its references turned out to be.
        inputs: index, label and digest of each input, in the order in which they are to be measured.
        rows: the rows of a batch, where results depend on it; None where they do not.

    Yields:
        One task an input.
    """
    for place, (index, label, digest) in enumerate(inputs):
        key = conditions.key(spec, index=index, label=label, digest=digest)
        yield Task(key, index, label, digest, None if rows is None else place // rows)
