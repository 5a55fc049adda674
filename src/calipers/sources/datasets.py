"""Data references: from the one-line text that names a data set to its indexed inputs and labels."""

from __future__ import annotations

from dataclasses import replace

from calipers.sources.array_files import load_idx, load_npz
from calipers.sources.image_folder import load_folder
from calipers.sources.inputs import Dataset
from calipers.sources.reference import Reference, parse_reference
from calipers.sources.schemes import DATA_SCHEMES, Listing
from calipers.sources.shipped import DATA_SUFFIX, card, shipped_data, shipped_file

__all__ = ["list_datasets", "load_dataset"]


def load_dataset(
    reference: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    trust_code: bool = False,
) -> Dataset:
    """Load what a data reference names.

    Args:
        reference: the text, such as ``folder:pictures?size=224``; `list_datasets` has all forms.
        input_shape: the shape of one input of the model, where it is known; picture files are read in grey or
            colour to match it.
        trust_code: whether code of the user's may be run (``python:`` references).

    Returns:
        The data set, all of it.

    Example:
        >>> data = load_dataset("bundled:fashion-mnist")
        >>> data.shape, data[0].index, data[0].image.dtype.name
        ((1, 28, 28), 0, 'float32')
    """
    parsed = parse_reference(reference, DATA_SCHEMES, what="data")
    channels = None if input_shape is None or len(input_shape) != 3 else input_shape[0]
    match parsed.scheme:
        case "bundled":
            return _load_bundled(parsed)
        case "npz":
            return load_npz(parsed)
        case "idx":
            return load_idx(parsed)
        case "folder":
            return load_folder(parsed, channels=channels)
        case "python":
            from calipers.sources.user_code import load_user_dataset

            return load_user_dataset(parsed, trust_code=trust_code)
        case "torchvision":
            from calipers.sources.hubs import load_torchvision_dataset

            return load_torchvision_dataset(parsed)
        case _:
            from calipers.sources.hubs import load_hf_dataset

            return load_hf_dataset(parsed, channels=channels)


def list_datasets() -> tuple[Listing, ...]:
    """List what `load_dataset` understands: what ships with the package, then the forms.

    Returns:
        One row each; nothing is loaded for it.
    """
    shipped = tuple(Listing(f"bundled:{name}", summary, True) for name, summary in shipped_data().items())
    forms = tuple(
        Listing(scheme.form, scheme.describe(), False) for scheme in DATA_SCHEMES if scheme.name != "bundled"
    )
    return shipped + forms


def _load_bundled(reference: Reference) -> Dataset:
    path = shipped_file(reference.path, suffix=DATA_SUFFIX, what="data")
    whole = load_npz(replace(reference, path=str(path)))
    names = card(path).get("class_names")
    return replace(whole, class_names=tuple(names)) if names else whole
