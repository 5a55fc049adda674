"""The bench: what a specification refers to, loaded once in each process that measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from calipers.runs.catalog import open_model
from calipers.runs.descriptions import build_noise
from calipers.runs.spec import RunSpec

if TYPE_CHECKING:
    from calipers.certificates.smoothing.plan import ExecutionPlan
    from calipers.sources.inputs import Dataset
    from calipers.target import Target

__all__ = ["Bench", "Facts", "Subject"]

_JUDGED, _SEARCHED = 10_000, 1_000
"""Draws of a smoothed classifier's answer to the judge and to a search."""

Facts = tuple[tuple[str, str], ...]
"""Pairs of a word and its value."""


@final
@dataclass(frozen=True)
class Subject:
    """What a specification's references turned out to be.

    Args:
        target: the classifier that is measured: smoothed where the specification has a noise.
        base: the model itself; the same where nothing is smoothed.
        data: the inputs that are selected.
        described: pairs of a word and its value, for a user to look at before the run.
        code: the file of the user's code that made the model, by name and hash; empty where there is none.
    """

    target: Target
    base: Target
    data: Dataset
    described: Facts
    code: str = ""

    @property
    def identity(self) -> str:
        """What the measured classifier is, for resume keys: its fingerprint, and the user's code that made it."""
        return f"{self.target.fingerprint} {self.code}".rstrip()


@final
class Bench:
    """Where one process measures: the specification, and what is loaded of it when it is first needed.

    Another process gets the specification alone and loads for itself.

    Args:
        spec: the specification.
        device: the device, such as ``cpu`` or ``cuda:1``.
        trust_code: whether code of the user's may be run.
    """

    def __init__(self, spec: RunSpec, *, device: str, trust_code: bool) -> None:
        self.spec = spec
        self.device = device
        self.trust_code = trust_code
        self.plan: ExecutionPlan | None = None
        self.identity: str | None = None
        self._subject: Subject | None = None
        self._inputs: tuple[tuple[int, int, str], ...] | None = None

    def aside(self, spec: RunSpec) -> Bench:
        """Make a bench for another specification of the same model, noise and data, which shares what is loaded.

        Args:
            spec: the other specification.

        Returns:
            The bench.
        """
        other = Bench(spec, device=self.device, trust_code=self.trust_code)
        other._subject, other._inputs = self._subject, self._inputs
        return other

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_subject": None}

    def subject(self) -> Subject:
        """Load the model and the data, once.

        Returns:
            The classifier and the inputs.
        """
        if self._subject is None:
            self._subject = _load(self.spec, self.device, trust_code=self.trust_code)
        return self._subject

    def inputs(self) -> tuple[tuple[int, int, str], ...]:
        """Read and check every input that is selected, once.

        Returns:
            Index, label and digest of each.
        """
        if self._inputs is None:
            self._inputs = tuple(_digests(self.subject()))
        return self._inputs

    def clean_correct(self) -> int:
        """Count the selected inputs that the base classifier gets right without noise; one forward each.

        Returns:
            The number of them.
        """
        return len(self.subject().data) - len(self.clean_wrong())

    def clean_wrong(self) -> tuple[int, ...]:
        """List the selected inputs that the base classifier does not get right without noise; one forward each.

        Returns:
            Their indices in the data set: what it answers wrongly, abstains on or rejects.
        """
        import torch

        subject = self.subject()
        wrong: list[int] = []
        rows = self.plan.batch_size if self.plan is not None else 100
        for start in range(0, len(subject.data), rows):
            batch = [subject.data[place] for place in range(start, min(start + rows, len(subject.data)))]
            images = torch.stack([torch.from_numpy(example.image) for example in batch])
            with torch.inference_mode():
                found = subject.base.predict(images).cpu()
            wrong += [
                example.index
                for example, answer in zip(batch, found.tolist(), strict=True)
                if answer != example.label
            ]
        return tuple(wrong)


def _load(spec: RunSpec, device: str, *, trust_code: bool) -> Subject:
    from calipers.certificates.smoothing.smoothed import smooth
    from calipers.sources.datasets import load_dataset

    data = load_dataset(spec.data, trust_code=trust_code)
    model = open_model(
        spec.model,
        precision=spec.precision,
        device=device,
        trust_code=trust_code,
        input_shape=data.shape,
    )
    base = model.target
    if data.shape != base.input_shape:
        data = load_dataset(spec.data, input_shape=base.input_shape, trust_code=trust_code)
    data.require_fit(input_shape=base.input_shape, num_classes=base.num_classes)
    if spec.skip or spec.limit is not None:
        data = data.take(skip=spec.skip, limit=spec.limit)
    if spec.sample is not None:
        data = data.sample(spec.sample, seed=spec.seed)
    target = base
    if spec.noise:
        target = smooth(
            base,
            build_noise(spec.noise),
            spec.votes or "hard",
            samples=_JUDGED,
            search_samples=_SEARCHED,
        )
    return Subject(target, base, data, (*model.description, *data.describe()), model.code)


def _digests(subject: Subject) -> Iterator[tuple[int, int, str]]:
    import torch

    from calipers.certificates.smoothing.smoothed import SmoothedTarget
    from calipers.sources.inputs import input_digest

    for example in subject.data:
        image = torch.from_numpy(example.image)
        subject.target.check_inputs(image[None], indices=[example.index])
        if isinstance(subject.target, SmoothedTarget):
            subject.target.noise.prepare(image)
        yield example.index, example.label, input_digest(example.image)
