"""Schemes: the ways in which a user may name a model or a data set, with the options that each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

__all__ = ["DATA_SCHEMES", "MODEL_SCHEMES", "Listing", "Scheme"]

_FEEDING: Final = ("mean", "std", "layout", "range")
_PICTURES: Final = ("size", "crop", "channels")


@final
@dataclass(frozen=True)
class Scheme:
    """One way to name a model or a data set.

    Args:
        name: what stands before the colon.
        form: how a reference of this scheme is written.
        summary: one line for a list.
        options: the options that may follow the question mark.
        last: the option whose value is a reference with options of its own, and takes all that follows it; empty if
            there is none.
    """

    name: str
    form: str
    summary: str
    options: tuple[str, ...] = ()
    last: str = ""

    def describe(self) -> str:
        """Give the line for a list: the summary, and the options that may follow a question mark.

        Returns:
            One line.
        """
        return self.summary + (f"; options: {', '.join(self.options)}" if self.options else "")


@final
@dataclass(frozen=True)
class Listing:
    """One row of `calipers models` or `calipers datasets`.

    Args:
        reference: what a user would write.
        summary: one line about it.
        bundled: whether it ships with the package; otherwise it is a form to fill in.
    """

    reference: str
    summary: str
    bundled: bool


MODEL_SCHEMES: Final = (
    Scheme("bundled", "bundled:NAME", "ships with the package"),
    Scheme(
        "iclr2018",
        "iclr2018:NAME",
        "a defense of ICLR 2018 such as lid or pixel-defend (a wrong name lists all), or a variant of one such as "
        "input-transformations/jpeg, with the weights that ship or those of a folder; ?network=MODEL, the last option, "
        "puts it around a network of yours",
        ("weights", "network"),
        last="network",
    ),
    Scheme(
        "file",
        "file:model.safetensors?arch=NAME",
        "weights for one of the built-in architectures: safetensors, or a torch file without code in it; "
        "a .pt2 program needs --trust-code",
        ("arch", "num_classes", "shape", *_FEEDING),
    ),
    Scheme(
        "python",
        "python:package.module:factory",
        "a function of yours that returns an nn.Module in eval mode, or a calipers Target (needs "
        "--trust-code)",
        ("num_classes", "shape", *_FEEDING),
    ),
    Scheme(
        "onnx",
        "onnx:model.onnx",
        "an ONNX graph run by onnxruntime: scores only (extra: onnx)",
        ("num_classes", "shape", "output", *_FEEDING),
    ),
    Scheme("torchvision", "torchvision:resnet50", "a model of torchvision, with its weights", ("weights",)),
    Scheme("timm", "timm:NAME", "a pretrained model of timm", ("num_classes", "weights")),
    Scheme("hf", "hf:ORG/NAME", "an image classifier for transformers, from the hub or a folder", ("size",)),
    Scheme(
        "robustbench",
        "robustbench:NAME?dataset=cifar10&threat=Linf",
        "a model of RobustBench",
        ("dataset", "threat", "num_classes", "shape", "root"),
    ),
)
"""Every way to name a model."""

DATA_SCHEMES: Final = (
    Scheme("bundled", "bundled:NAME", "ships with the package"),
    Scheme(
        "npz",
        "npz:images.npz",
        "arrays of images (x, images or data) and labels (y, labels or targets)",
        ("x", "y", "layout", "range", "shape"),
    ),
    Scheme("idx", "idx:FOLDER?split=test", "MNIST-like IDX files, packed by gzip or not", ("split",)),
    Scheme(
        "folder",
        "folder:FOLDER",
        "JPEG and PNG files in one folder a class, or in one folder beside a list of labels",
        ("labels", *_PICTURES),
    ),
    Scheme(
        "python",
        "python:package.module:function",
        "a function of yours that returns images and labels (needs --trust-code)",
        ("layout", "range", "shape"),
    ),
    Scheme(
        "torchvision",
        "torchvision:CIFAR10?root=FOLDER",
        "a data set of torchvision",
        ("root", "split", "download"),
    ),
    Scheme(
        "hf",
        "hf:NAME?split=test",
        "an image data set for the library datasets, from the hub or a folder",
        ("split", "config", "image", "label", *_PICTURES),
    ),
)
"""Every way to name a data set."""
