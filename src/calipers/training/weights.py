"""Weights of a training as a safetensors file, with all that a loader must know in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save

from calipers.training.checkpoints import write_whole
from calipers.training.loop import TrainedModel

__all__ = ["save_weights"]


def save_weights(path: Path, model: TrainedModel, *, data: str, accuracy: Mapping[str, float]) -> None:
    """Write the weights and their description.

    The metadata of the file are texts: `arch`, `num_classes`, `input_shape`, `mean` and `std` (numbers
    separated by commas, as a model reference writes them), `bounds`, `recipe`, `data`, and
    `accuracy` (JSON); `sigma` where the recipe has noise.

    Args:
        path: the file; it is replaced as a whole.
        model: what a training gave.
        data: name of the training data, for people.
        accuracy: what was measured of the network, each under a name that says on what.
    """
    metadata = {
        "arch": model.recipe.arch,
        "num_classes": str(model.num_classes),
        "input_shape": ",".join(map(str, model.input_shape)),
        "mean": ",".join(map(str, model.mean)),
        "std": ",".join(map(str, model.std)),
        "bounds": "0,1",
        **model.recipe.facts(),
        "recipe": repr(model.recipe),
        "epochs_run": str(len(model.history)),
        "data": data,
        "accuracy": json.dumps(dict(accuracy)),
    }
    write_whole(path, save(model.state_dict, metadata=metadata))
