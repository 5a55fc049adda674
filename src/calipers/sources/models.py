"""Model references: from the one-line text that names a model to a Target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from calipers.errors import BadReference, UsageError
from calipers.sources.reference import Reference, parse_reference
from calipers.sources.schemes import MODEL_SCHEMES, Listing
from calipers.sources.shipped import MODEL_SUFFIX, shipped_file, shipped_models

if TYPE_CHECKING:
    from calipers.sources.network import Network
    from calipers.target import Precision, Target

__all__ = ["LoadedModel", "list_models", "load_model", "open_model", "open_network", "register_loader"]

_OPAQUE = ("iclr2018", "onnx", "python")

Loader = Callable[[Reference, str], "LoadedModel"]
"""From a reference and a device to a classifier."""

_LOADERS: dict[str, Loader] = {}


@final
@dataclass(frozen=True)
class LoadedModel:
    """A target, and what a user should see of it before a run.

    Args:
        target: the classifier.
        description: pairs of a word and its value: where it is from, architecture, shape, classes, how it is
            fed.
        code: the file of the user's code that made it, by name and hash; empty where there is none.
    """

    target: Target
    description: tuple[tuple[str, str], ...]
    code: str = ""


def register_loader(scheme: str, loader: Loader) -> None:
    """Say how models of a scheme are loaded that is made above this floor: the defenses.

    Args:
        scheme: its name, one of those in `MODEL_SCHEMES`.
        loader: maps a reference and a device to the classifier.
    """
    _LOADERS[scheme] = loader


def load_model(
    reference: str,
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    trust_code: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Target:
    """Load what a model reference names.

    Args:
        reference: the text, such as ``file:net.safetensors?arch=cnn28``; `list_models` has all forms.
        precision: the number format of weights and arithmetic: fp32, bf16 or fp16; another one is another
            classifier.
        device: where it runs.
        trust_code: whether code of the user's may be run (``python:`` references and ``.pt2`` programs).
        input_shape: the shape of the data, used where neither the reference nor the model says the shape.

    Returns:
        The target. Its fingerprint covers weights, preprocessing, bounds and number format.
    """
    return open_model(
        reference, precision=precision, device=device, trust_code=trust_code, input_shape=input_shape
    ).target


def open_model(
    reference: str,
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    trust_code: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> LoadedModel:
    """Load what a model reference names, with what should be shown of it.

    Args:
        reference: as in `load_model`.
        precision: as in `load_model`.
        device: as in `load_model`.
        trust_code: as in `load_model`.
        input_shape: as in `load_model`.

    Returns:
        The target and its description.

    Raises:
        UsageError: if the model cannot have this precision or device.
    """
    import torch

    from calipers.sources.network import Network, make_target
    from calipers.target import Access

    parsed = parse_reference(reference, MODEL_SCHEMES, what="model")
    if parsed.scheme in _LOADERS:
        found: Network | LoadedModel = _LOADERS[parsed.scheme](parsed, device)
    else:
        found = _find(parsed, trust_code=trust_code, input_shape=input_shape)
    if isinstance(found, Network):
        target = make_target(found, precision=precision, device=device, name=parsed.text)
        told = (*found.facts, *_shape(target), *found.feeding.describe())
    else:
        target, told = found.target, (*found.description, *_shape(found.target))
        if target.precision != precision:
            raise UsageError(
                f"precision is {precision}, and {parsed.text} is {target.precision} by itself: leave "
                "--precision out, or "
                "make it so where it is made"
            )
        if target.access is Access.GRADIENTS and target.device != torch.device(device):
            raise UsageError(
                f"device is {device}, and the Target that {parsed.text} returns is on {target.device}"
            )
    code = ""
    if parsed.scheme == "python":
        from calipers.sources.user_code import code_digest

        code = code_digest(parsed)
    return LoadedModel(target, (("model", parsed.text), *told, ("precision", target.precision)), code)


def open_network(reference: str) -> Network:
    """Load the network that a model reference names, and how it is fed, to put something around it.

    Args:
        reference: as in `load_model`.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        BadReference: if it names something that cannot be looked into, or that only code of the user's makes.
    """
    parsed = parse_reference(reference, MODEL_SCHEMES, what="model")
    if parsed.scheme in _OPAQUE:
        raise BadReference(
            f"{parsed.text} cannot be put inside another model: save its weights, and name them by "
            "file:net.safetensors?arch=NAME"
        )
    found = _find(parsed, trust_code=False, input_shape=None)
    assert not isinstance(found, LoadedModel), "only the schemes that were refused make targets"
    return found


def list_models() -> tuple[Listing, ...]:
    """List what `load_model` understands: what ships with the package, then the forms.

    Returns:
        One row each; no weights are loaded for it.
    """
    shipped = tuple(Listing(f"bundled:{name}", summary, True) for name, summary in shipped_models().items())
    forms = tuple(
        Listing(scheme.form, scheme.describe(), False) for scheme in MODEL_SCHEMES if scheme.name != "bundled"
    )
    return shipped + forms


def _find(
    reference: Reference, *, trust_code: bool, input_shape: tuple[int, ...] | None
) -> Network | LoadedModel:
    from calipers.sources.network import Network

    match reference.scheme:
        case "bundled":
            from calipers.sources.weights import load_network

            return load_network(reference, shipped_file(reference.path, suffix=MODEL_SUFFIX, what="model"))
        case "file":
            from calipers.sources.weights import load_network

            return load_network(reference, reference.file(), trust_code=trust_code)
        case "python":
            from calipers.sources.user_code import load_user_model

            user = load_user_model(reference, trust_code=trust_code, input_shape=input_shape)
            return user if isinstance(user, Network) else LoadedModel(*user)
        case "onnx":
            from calipers.sources.onnx import load_onnx

            return LoadedModel(*load_onnx(reference, input_shape=input_shape))
        case "iclr2018":
            raise UsageError(
                f"{reference.text} names a defense, which the catalog loads: use calipers.load_model, or import "
                "calipers.runs.catalog first"
            )
        case _:
            from calipers.sources.hubs import load_hub_model

            return load_hub_model(reference)


def _shape(target: Target) -> tuple[tuple[str, str], ...]:
    sides = "x".join(str(side) for side in target.input_shape)
    low, high = target.bounds
    return (
        ("input", f"{sides}, values {low:g} to {high:g}"),
        ("classes", str(target.num_classes)),
        ("gives", target.access.name.lower()),
    )
