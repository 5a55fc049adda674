"""Target: a classifier with its preprocessing and bounds, frozen, probed and fingerprinted."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calipers.errors import (
    GradientsUnavailable,
    InvalidInput,
    ScoresUnavailable,
    TargetError,
    UsageError,
)
from calipers.randomness import Draws
from calipers.target.chance import drawn_from
from calipers.target.fingerprint import fingerprint_module, fingerprint_values
from calipers.target.preprocessing import Preprocessed, channel_buffers
from calipers.target.probes import probe as probe_classifier
from calipers.target.probes import probe_inputs
from calipers.threat.threat_model import ABSTAIN

__all__ = ["Access", "Precision", "Target", "outcomes"]

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ArrayFunction = Callable[[np.ndarray], np.ndarray]


class Access(IntEnum):
    """What a target can give, from least to most."""

    DECISIONS = 1
    SCORES = 2
    GRADIENTS = 3


def outcomes(logits: Tensor, *, num_classes: int) -> Tensor:
    """Turn scores into outcomes: the class of the single largest score, or ``num_classes`` for a failed draw.

    A draw fails where a score is NaN or infinite, where two scores tie for the largest, and where the largest is the
    rejection score of a detector (a last column beyond the classes).

    Args:
        logits: scores of shape (batch, classes) or (batch, classes + 1).
        num_classes: the number of classes.

    Returns:
        One outcome an input, int64, from 0 to ``num_classes``.
    """
    scores = logits.float()
    top, chosen = scores.max(1)
    finite = torch.isfinite(scores).all(1)
    single = (scores == top[:, None]).sum(1) == 1
    return torch.where(finite & single & (chosen < num_classes), chosen, num_classes)


class Target:
    """A classifier under measurement.

    The network is copied, so that later changes of the caller's do not reach a target whose fingerprint is in a store.

    Args:
        net: a module in eval mode that maps (batch, *input_shape) to (batch, num_classes) scores, with one more column
            for the rejection score if ``detector``.
        num_classes: the number of classes, at least 2.
        input_shape: the shape of one input, channels first.
        bounds: the least and the largest value that a valid input has, in input units.
        mean: subtracted from each channel before the network, in input units.
        std: divides each channel after that.
        precision: the number format of the network's weights and arithmetic; another one is another classifier.
        device: where the network runs.
        stochastic: declares that the network draws randomness of its own, independently for every row of a batch.
        detector: declares that a last column is a rejection score.
        name: what reports call it.
        probe: whether to run the probes; a target that was not probed is not to be trusted with a certificate.

    Raises:
        UsageError: if an argument means nothing.
        TargetError: if a probe finds that this is not one fixed function of one input.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        input_shape: Sequence[int],
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
        stochastic: bool = False,
        detector: bool = False,
        name: str = "",
        probe: bool = True,
    ) -> None:
        self._set_question(num_classes, input_shape, bounds, stochastic, detector)
        if precision not in get_args(Precision):
            raise UsageError(f"precision is {precision!r}: use fp32, bf16 or fp16")
        for path, module in net.named_modules():
            if module.training:
                where = f" (its module {path!r})" if path else ""
                raise TargetError(
                    f"the model {name or type(net).__name__} is in training mode{where}: call .eval() on it first"
                )
        self.precision: Precision = precision
        self.access = Access.GRADIENTS
        self.name = name or type(net).__name__
        self.device = torch.device(device)
        shift, scale = channel_buffers(mean, std, self.input_shape)
        wrapped = Preprocessed(copy.deepcopy(net).to(_DTYPES[precision]), shift, scale, _DTYPES[precision])
        self._module: nn.Module | None = wrapped.eval().requires_grad_(False).to(self.device)
        self._function: ArrayFunction | None = None
        self.fingerprint: str = fingerprint_values(
            [fingerprint_module(net), list(mean or []), list(std or []), *self._question(), precision]
        )
        if probe:
            self._probe()

    @classmethod
    def from_scores(
        cls,
        function: ArrayFunction,
        *,
        num_classes: int,
        input_shape: Sequence[int],
        fingerprint: str,
        bounds: tuple[float, float] = (0.0, 1.0),
        stochastic: bool = False,
        name: str = "",
        probe: bool = True,
    ) -> "Target":
        """Make a target of any function that gives scores, such as an ONNX session.

        Args:
            function: maps a float32 array (batch, *input_shape) to scores (batch, num_classes).
            num_classes: the number of classes.
            input_shape: the shape of one input.
            fingerprint: text that changes whenever the function does (the digest of its file, say).
            bounds: the least and the largest value of a valid input.
            stochastic: declares randomness of the function's own.
            name: what reports call it.
            probe: whether to run the probes.

        Returns:
            A target whose access is SCORES.
        """
        return cls._from_function(
            function, Access.SCORES, num_classes, input_shape, fingerprint, bounds, stochastic, name, probe
        )

    @classmethod
    def from_decisions(
        cls,
        function: ArrayFunction,
        *,
        num_classes: int,
        input_shape: Sequence[int],
        fingerprint: str,
        bounds: tuple[float, float] = (0.0, 1.0),
        stochastic: bool = False,
        name: str = "",
        probe: bool = True,
    ) -> "Target":
        """Make a target of any function that gives classes, such as the ``predict`` of a scikit-learn estimator.

        Args:
            function: maps a float32 array (batch, *input_shape) to integers (batch,) from 0 to ``num_classes - 1``;
                anything else is a failed draw.
            num_classes: the number of classes.
            input_shape: the shape of one input.
            fingerprint: text that changes whenever the function does.
            bounds: the least and the largest value of a valid input.
            stochastic: declares randomness of the function's own.
            name: what reports call it.
            probe: whether to run the probes.

        Returns:
            A target whose access is DECISIONS.
        """
        return cls._from_function(
            function, Access.DECISIONS, num_classes, input_shape, fingerprint, bounds, stochastic, name, probe
        )

    @classmethod
    def _from_function(
        cls,
        function: ArrayFunction,
        access: Access,
        num_classes: int,
        input_shape: Sequence[int],
        fingerprint: str,
        bounds: tuple[float, float],
        stochastic: bool,
        name: str,
        probe: bool,
    ) -> "Target":
        target = cls.__new__(cls)
        target._set_question(num_classes, input_shape, bounds, stochastic, False)
        if not fingerprint:
            raise UsageError("fingerprint is empty: give text that changes whenever the function does")
        target.precision = "fp32"
        target.access = access
        target.name = name or getattr(function, "__qualname__", type(function).__name__)
        target.device = torch.device("cpu")
        target._module = None
        target._function = function
        target.fingerprint = fingerprint_values([fingerprint, access.name, *target._question()])
        if probe:
            target._probe()
        return target

    def _set_question(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        bounds: tuple[float, float],
        stochastic: bool,
        detector: bool,
    ) -> None:
        low, high = float(bounds[0]), float(bounds[1])
        if num_classes < 2:
            raise UsageError(f"num_classes is {num_classes}: robustness needs at least 2 classes")
        if not input_shape or any(side < 1 for side in input_shape):
            raise UsageError(f"input_shape is {tuple(input_shape)}: give positive sizes, such as (3, 32, 32)")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"bounds are ({low}, {high}): give two finite values, the lower first")
        self.num_classes = int(num_classes)
        self.input_shape = tuple(int(side) for side in input_shape)
        self.bounds = (low, high)
        self.stochastic = bool(stochastic)
        self.detector = bool(detector)

    def _question(self) -> list[object]:
        return [self.num_classes, list(self.input_shape), list(self.bounds), self.stochastic, self.detector]

    def __repr__(self) -> str:
        return f"Target({self.name}, {self.num_classes} classes, inputs of shape {self.input_shape})"

    @property
    def dimension(self) -> int:
        """The number of coordinates of one input."""
        return math.prod(self.input_shape)

    @property
    def module(self) -> nn.Module:
        """The network with its preprocessing: raw float32 inputs to scores in the target's precision.

        Raises:
            GradientsUnavailable: if the target is a plain function.
        """
        if self._module is None:
            raise GradientsUnavailable(
                f"{self.name} gives {self.access.name.lower()} only and has no network to differentiate: use an attack "
                "on scores or decisions"
            )
        return self._module

    def logits(
        self, x: Float[Tensor, "batch *dims"], *, draws: Draws | None = None
    ) -> Float[Tensor, "batch columns"]:
        """Compute scores; differentiable with respect to ``x`` where the target gives gradients.

        Args:
            x: raw inputs, float32, in input units.
            draws: where a stochastic target's randomness comes from; from nowhere in particular if None, and without
                effect on a target that is not stochastic.

        Returns:
            Scores in float32, with the rejection score last for a detector.

        Raises:
            ScoresUnavailable: if the target gives decisions only.
        """
        if self.access < Access.SCORES:
            raise ScoresUnavailable(f"{self.name} gives decisions only: use a method that needs no scores")
        with self._chance(draws):
            if self._module is not None:
                scores: Tensor = self._module(x.to(self.device))
                return scores.float()
            return torch.from_numpy(np.array(self._call(x), dtype=np.float32, copy=True)).to(x.device)

    def outcomes(
        self, x: Float[Tensor, "batch *dims"], *, draws: Draws | None = None
    ) -> Int[Tensor, " batch"]:
        """Compute the outcome of each input: its class, or ``num_classes`` where the draw failed.

        Args:
            x: raw inputs, float32, in input units.
            draws: as in :meth:`logits`.

        Returns:
            One outcome an input, int64.

        Raises:
            TargetError: if decisions do not come as one number an input.
        """
        with torch.no_grad():
            if self.access >= Access.SCORES:
                return outcomes(self.logits(x, draws=draws), num_classes=self.num_classes)
            with self._chance(draws):
                decided = np.asarray(self._call(x))
            if decided.shape != (len(x),):
                raise TargetError(f"{self.name} gave decisions of shape {decided.shape} for {len(x)} inputs")
            if decided.dtype.kind not in "biuf":
                raise TargetError(
                    f"{self.name} gave decisions of type {decided.dtype}, such as {decided[:1].tolist()}: give whole "
                    f"numbers from 0 to {self.num_classes - 1}"
                )
            valid = (decided >= 0) & (decided < self.num_classes) & (decided == np.floor(decided))
            return torch.from_numpy(np.where(valid, decided, self.num_classes).astype(np.int64)).to(x.device)

    def predict(
        self, x: Float[Tensor, "batch *dims"], *, draws: Draws | None = None
    ) -> Int[Tensor, " batch"]:
        """Predict the class of each input.

        Args:
            x: raw inputs, float32, in input units.
            draws: as in :meth:`logits`.

        Returns:
            One class an input, int64; ABSTAIN where scores are NaN, infinite or tied, or where a detector rejects.
        """
        found = self.outcomes(x, draws=draws)
        return torch.where(found == self.num_classes, ABSTAIN, found)

    def check_inputs(
        self, x: Tensor, labels: Tensor | None = None, *, indices: Sequence[int] | None = None
    ) -> None:
        """Check that inputs can be measured.

        Args:
            x: inputs of shape (batch, *input_shape).
            labels: their classes (batch,), -1 where unknown.
            indices: the index of each input in its data set, for the message.

        Raises:
            InvalidInput: if the shape, a value or a label is wrong; the message names the first one.
        """
        named = range(len(x)) if indices is None else indices
        if tuple(x.shape[1:]) != self.input_shape:
            raise InvalidInput(
                f"inputs have shape {tuple(x.shape[1:])} and {self.name} takes {self.input_shape}: "
                "resize or re-lay them"
            )
        finite = torch.isfinite(x.flatten(1)).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InvalidInput(f"input {named[row]} has NaN or infinite values: remove or repair it")
        low, high = self.bounds
        outside = ((x < low) | (x > high)).flatten(1).any(1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise InvalidInput(
                f"input {named[row]} has values from {float(x[row].min()):.4g} to {float(x[row].max()):.4g}, "
                f"outside the bounds [{low:g}, {high:g}]: scale it (for 8-bit values, range=0-255)"
            )
        if labels is not None:
            wrong = (labels < -1) | (labels >= self.num_classes)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise InvalidInput(
                    f"input {named[row]} has label {int(labels[row])} and {self.name} has classes 0 to "
                    f"{self.num_classes - 1}"
                )

    def _chance(self, draws: Draws | None) -> AbstractContextManager[None]:
        return drawn_from(draws, self.device) if self.stochastic and draws is not None else nullcontext()

    def _call(self, x: Tensor) -> np.ndarray:
        if self._function is None:
            raise TargetError(f"{self.name} has no function to call")
        return self._function(x.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy())

    def _raw(self, x: Tensor) -> Tensor:
        """Scores in float32, or decisions as one column: what the probes compare."""
        with torch.no_grad():
            return self.logits(x) if self.access >= Access.SCORES else self.outcomes(x)[:, None].float()

    def _probe(self) -> None:
        x = probe_inputs(self.input_shape, self.bounds).to(self.device)
        columns = self.num_classes + int(self.detector) if self.access >= Access.SCORES else None
        probe_classifier(
            self._raw,
            x,
            name=self.name,
            columns=columns,
            stochastic=self.stochastic,
            precision=self.precision,
        )
