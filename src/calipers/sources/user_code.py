"""User code: functions of the user's that give a model or a data set, run only when they are trusted."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from calipers.errors import BadReference, CalipersError, UntrustedCode
from calipers.sources.inputs import Dataset
from calipers.sources.reference import Reference

if TYPE_CHECKING:
    from calipers.sources.network import Network
    from calipers.target import Target

__all__ = ["call_user_function", "code_digest", "load_user_dataset", "load_user_model"]


def load_user_model(
    reference: Reference, *, trust_code: bool, input_shape: tuple[int, ...] | None = None
) -> Network | tuple[Target, tuple[tuple[str, str], ...]]:
    """Call the user's factory of a model.

    Args:
        reference: a ``python:`` reference; its options say what an nn.Module cannot.
        trust_code: whether the user's code may be run.
        input_shape: the shape of the data, used where the reference has no ``shape``.

    Returns:
        The network that the factory returned with how it is fed, or the Target that it returned with what
        to show of it.

    Raises:
        BadReference: if it returned something else, or options that contradict it.
    """
    from torch import nn

    from calipers.sources.feeding import check_channels, read_feeding
    from calipers.sources.network import Network, class_count
    from calipers.target import Target

    found, facts = call_user_function(reference, trust_code=trust_code)
    if isinstance(found, Target):
        if reference.options:
            raise BadReference(
                f"{reference.text}: the function returns a Target, which says all of itself: leave out "
                f"{', '.join(name for name, _ in reference.options)}"
            )
        return found, facts
    if not isinstance(found, nn.Module):
        raise BadReference(
            f"{reference.text}: the function returned a {type(found).__name__}: return an nn.Module in eval "
            "mode, or a "
            "calipers Target (Target.from_scores or Target.from_decisions for a plain function)"
        )
    shape = reference.shape() or input_shape
    if shape is None:
        raise BadReference(
            f"{reference.text}: an nn.Module does not say its input's shape: add shape=3,224,224 or the like"
        )
    feeding = read_feeding(reference)
    check_channels(feeding, shape, reference.text)
    num_classes = reference.integer("num_classes") or class_count(found, shape, feeding, reference.text)
    return Network(found, shape, num_classes, feeding, (("arch", type(found).__qualname__), *facts))


def load_user_dataset(reference: Reference, *, trust_code: bool) -> Dataset:
    """Call the user's function that gives a data set.

    Args:
        reference: a ``python:`` reference.
        trust_code: whether the user's code may be run.

    Returns:
        The data set.

    Raises:
        BadReference: if the function returned neither a Dataset nor a pair of arrays.
    """
    from calipers.sources.array_files import arrays_to_dataset, read_layout, read_range

    found, _ = call_user_function(reference, trust_code=trust_code)
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, tuple) or len(found) != 2:
        raise BadReference(
            f"{reference.text}: the function returned a {type(found).__name__}: return (images, labels), two "
            "arrays with "
            "labels None where there are none, or a calipers Dataset"
        )
    images, labels = found
    return arrays_to_dataset(
        np.asarray(images),
        None if labels is None else np.asarray(labels),
        name=reference.text,
        value_range=read_range(reference),
        layout=read_layout(reference),
        shape=reference.shape(),
    )


def call_user_function(reference: Reference, *, trust_code: bool) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """Import the user's module and call the function in it; the current folder is importable.

    Args:
        reference: a ``python:package.module:function`` reference.
        trust_code: whether the user's code may be run.

    Returns:
        What the function returned, and the file that it stands in as a fact to show.

    Raises:
        BadReference: if there is no such module or function, or either raises; one line with the exception's
            type.
        UntrustedCode: if the code may not be run.
        CalipersError: if the user's code raises one itself, such as a TargetError of its Target.
    """
    module_name, colon, function_name = reference.path.partition(":")
    if not colon or not all(
        part.isidentifier() for part in (*module_name.split("."), *function_name.split("."))
    ):
        hint = ""
        if module_name.endswith(".py"):
            dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
            hint = f"; for a file under the current folder python:{dotted}:function"
        raise BadReference(f"{reference.text}: write python:package.module:function{hint}")
    if not trust_code:
        raise UntrustedCode(
            f"{reference.text} runs code of yours, {module_name}.{function_name}(): say --trust-code if it "
            "may"
        )
    module = _import(module_name, reference.text)
    function: Any = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        what = "has no function" if function is None else "has something that is no function, called"
        raise BadReference(f"{reference.text}: the module {module_name} {what} {function_name!r}")
    try:
        found = function()
    except CalipersError:
        raise
    except (Exception, SystemExit) as problem:
        raise BadReference(f"{reference.text}: {function_name}() {_told(problem)}") from problem
    place = getattr(module, "__file__", None)
    return found, (("code", f"{place}:{function_name}"),) if place else ()


def code_digest(reference: Reference) -> str:
    """Hash the file of the user's module: its constants and functions are part of what a model computes.

    What the module imports in turn is not covered.

    Args:
        reference: a ``python:`` reference whose module was imported.

    Returns:
        The name of the file and the BLAKE2b hash of its bytes; empty for a module without a
        file.
    """
    module = sys.modules.get(reference.path.partition(":")[0])
    place = getattr(module, "__file__", None)
    if place is None or not Path(place).is_file():
        return ""
    return f"{Path(place).name} {hashlib.blake2b(Path(place).read_bytes(), digest_size=16).hexdigest()}"


def _import(name: str, text: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is not None and (name == problem.name or name.startswith(f"{problem.name}.")):
            file = name.removesuffix(".py")
            hint = f": a file is named without .py, python:{file}:function" if name != file else ""
            raise BadReference(
                f"{text}: there is no module {problem.name!r} in {here} or among what is installed{hint}"
            ) from None
        raise BadReference(f"{text}: importing {name} {_told(problem)}") from problem
    except CalipersError:
        raise
    except (Exception, SystemExit) as problem:
        raise BadReference(f"{text}: importing {name} {_told(problem)}") from problem


def _told(problem: BaseException) -> str:
    # An exception of the user's code in one line, with the place where it was raised.
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"raised {type(problem).__name__}: {' '.join(str(problem).split())}{place}"
