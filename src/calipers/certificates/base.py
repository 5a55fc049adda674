"""Certifier: proves a radius below which nothing changes the answer; its results, and their records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from calipers.errors import UsageError
from calipers.evidence.records import Certificate
from calipers.threat.threat_model import ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

    from calipers.certificates.smoothing.plan import ExecutionPlan
    from calipers.target import Target
from calipers.target.arguments import check_arguments

__all__ = ["CertificateResult", "Certifier", "Progress"]

Progress = Callable[[int], None]
"""Told after each batch how many forwards were run since the last call."""


@final
@dataclass(frozen=True)
class CertificateResult:
    """Certificates of a batch, in the order of the inputs.

    Args:
        certificates: one an input; labels are not known to a certifier and stand at -1.
    """

    certificates: tuple[Certificate, ...]

    @property
    def radius(self) -> np.ndarray:
        """Proved radii, float64, in input units; 0 where the certifier abstains."""
        return np.array([found.radius for found in self.certificates], dtype=np.float64)

    @property
    def prediction(self) -> np.ndarray:
        """Classes, int64; -1 where the certifier abstains."""
        return np.array([found.prediction for found in self.certificates], dtype=np.int64)

    def records(self, labels: Sequence[int] | None = None) -> list[Certificate]:
        """Cross the border from results to stored rows.

        Args:
            labels: the class of each input, if known.

        Returns:
            One record an input.

        Raises:
            UsageError: if there is not one label for each input.
        """
        if labels is None:
            return list(self.certificates)
        if len(labels) != len(self.certificates):
            raise UsageError(
                f"{len(labels)} labels were given for {len(self.certificates)} inputs: give one each"
            )
        pairs = zip(self.certificates, labels, strict=True)
        return [replace(found, label=int(label)) for found, label in pairs]


@dataclass(frozen=True)
class Certifier(ABC):
    """A method that proves lower bounds on the robust radius; it never sees a label.

    A concrete certifier is a frozen dataclass of plain values: its repr is its entry in the store.
    """

    revision: ClassVar[int]

    @abstractmethod
    def stream(
        self,
        target: Target,
        inputs: Iterable[tuple[int, Tensor]],
        threat: ThreatModel,
        *,
        seed: int,
        plan: ExecutionPlan | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Certificate]:
        """Certify inputs as they come, and give each certificate as soon as it stands.

        Args:
            target: the classifier that the certificates are about.
            inputs: pairs of the index in the data set and the input (*input_shape), float32.
            threat: its norm is the norm of the radii.
            seed: the seed of the run.
            plan: how forwards are run; measured here if None.
            progress: told how many forwards were run.

        Yields:
            One certificate an input, in the order in which they are finished.
        """

    def __call__(
        self,
        target: Target,
        x: Tensor,
        threat: ThreatModel,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        plan: ExecutionPlan | None = None,
    ) -> CertificateResult:
        """Certify a batch.

        Args:
            target: the classifier that the certificates are about.
            x: inputs (batch, *input_shape), float32, in input units.
            threat: its norm is the norm of the radii.
            seed: the seed of the run.
            indices: the index of each input in its data set, which decides its noise; 0, 1, 2, ... if None.
            plan: how forwards are run; measured if None.

        Returns:
            The certificates in the order of the inputs.

        Raises:
            UsageError: if the indices are not one for each input, or not all different.
        """
        check_arguments(target, x)
        target.check_inputs(x)
        numbers = list(range(len(x))) if indices is None else [int(index) for index in indices]
        if len(numbers) != len(x) or len(set(numbers)) != len(numbers):
            raise UsageError(f"{len(numbers)} indices for {len(x)} inputs: give one each, all different")
        found = self.stream(target, zip(numbers, x, strict=True), threat, seed=seed, plan=plan)
        by_index = {certificate.index: certificate for certificate in found}
        return CertificateResult(tuple(by_index[index] for index in numbers))
