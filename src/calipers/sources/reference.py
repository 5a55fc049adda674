"""References: the one-line text by which a user names a model or a data set, taken apart and checked."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, final

from calipers.errors import BadReference, MissingFile
from calipers.sources.schemes import DATA_SCHEMES, MODEL_SCHEMES, Scheme

__all__ = ["Reference", "existing_file", "parse_reference"]

_BETWEEN: Final = r"[&,;:?\s]"
"""What people write between options where a ``?`` or a ``&`` belongs."""
_INPUTS: Final = ("limit", "skip", "sample")
"""Options of a command that are taken for options of data."""
_OF_PATHS: Final = ("file", "onnx", "npz", "idx", "folder")
"""Schemes whose path is one on disk, in which a ``=`` may stand."""
_TRUE: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@final
@dataclass(frozen=True)
class Reference:
    """A reference taken apart: ``scheme:path?option=value&option=value``.

    Args:
        text: the reference as it was written.
        scheme: what stands before the colon.
        path: what stands between the colon and the question mark.
        options: names and values of the options, as written.
    """

    text: str
    scheme: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str | None:
        """Look an option up.

        Args:
            name: the option.

        Returns:
            Its value as written, None if it is not there.
        """
        return dict(self.options).get(name)

    def integer(self, name: str, *, least: int = 1) -> int | None:
        """Read an option that is a whole number.

        Args:
            name: the option.
            least: the smallest number that means something.

        Returns:
            The number, None if the option is not there.

        Raises:
            BadReference: if it is not a whole number, or is smaller.
        """
        value = self.option(name)
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            raise self._misread(name, value, "a whole number") from None
        if number < least:
            raise self._misread(name, value, f"at least {least}")
        return number

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """Read an option that is a list of numbers such as ``0.485,0.456,127/255``.

        Args:
            name: the option.

        Returns:
            The numbers, None if the option is not there.

        Raises:
            BadReference: if one of them is not a finite number.
        """
        value = self.option(name)
        if value is None:
            return None
        try:
            found = tuple(float(_fraction(part)) for part in value.split(","))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise self._misread(
                name, value, "numbers with commas between, such as 0.485,0.456,0.406"
            ) from None
        return found

    def shape(self, name: str = "shape") -> tuple[int, ...] | None:
        """Read an option that is a shape such as ``3,224,224``.

        Args:
            name: the option.

        Returns:
            The shape, None if the option is not there.

        Raises:
            BadReference: if it is not a list of positive whole numbers.
        """
        value = self.option(name)
        if value is None:
            return None
        try:
            sides = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise self._misread(name, value, "a shape, channels first, such as 3,224,224") from None
        if min(sides) < 1:
            raise self._misread(name, value, "a shape of positive sides")
        return sides

    def choice(self, name: str, choices: Mapping[str, str]) -> str | None:
        """Read an option that is one of a few words.

        Args:
            name: the option.
            choices: each word that is understood, and what it stands for.

        Returns:
            What the word stands for, None if the option is not there.

        Raises:
            BadReference: if it is another word.
        """
        value = self.option(name)
        if value is None:
            return None
        if value.lower() not in choices:
            raise self._misread(name, value, f"one of {', '.join(choices)}")
        return choices[value.lower()]

    def flag(self, name: str, *, default: bool) -> bool:
        """Read an option that is yes or no.

        Args:
            name: the option.
            default: what holds if it is not there.

        Returns:
            Whether it is switched on.

        Raises:
            BadReference: if it is neither.
        """
        value = self.option(name)
        if value is None:
            return default
        if value.lower() not in _TRUE:
            raise self._misread(name, value, "yes or no")
        return _TRUE[value.lower()]

    def file(self) -> Path:
        """Find the file that the path names.

        Returns:
            Its path, with ``~`` expanded.

        Raises:
            MissingFile: if it is not there, is a folder, or is empty.
        """
        return existing_file(self.path, self.text)

    def folder(self) -> Path:
        """Find the folder that the path names.

        Returns:
            Its path, with ``~`` expanded.

        Raises:
            MissingFile: if it is not there, is a file, or holds nothing.
        """
        found = Path(self.path).expanduser()
        if not found.exists():
            raise MissingFile(f"{self.text}: there is no folder {str(found)!r}{_here(found)}")
        if not found.is_dir():
            raise MissingFile(f"{self.text}: {str(found)!r} is a file, and a folder is needed")
        if next(found.iterdir(), None) is None:
            raise MissingFile(f"{self.text}: the folder {str(found)!r} is empty")
        return found

    def _misread(self, name: str, value: str, wanted: str) -> BadReference:
        return BadReference(f"{self.text}: {name} is {value!r}: give {wanted}")


def existing_file(path: str, text: str) -> Path:
    """Find a file that a reference or one of its options names.

    Args:
        path: the file.
        text: the reference, for the message.

    Returns:
        Its path, with ``~`` expanded.

    Raises:
        MissingFile: if it is not there, is a folder, or is empty.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise MissingFile(f"{text}: there is no file {str(found)!r}{_here(found)}")
    if found.is_dir():
        raise MissingFile(f"{text}: {str(found)!r} is a folder, and a file is needed")
    if found.stat().st_size == 0:
        raise MissingFile(f"{text}: the file {str(found)!r} is empty")
    return found


def parse_reference(text: str, schemes: Sequence[Scheme], *, what: str) -> Reference:
    """Take a reference apart and check the names in it.

    Args:
        text: the reference as the user wrote it.
        schemes: the schemes that are understood.
        what: ``model`` or ``data``, for messages.

    Returns:
        The parts.

    Raises:
        BadReference: if the scheme or an option is unknown, or a part is missing; the message says what is
            known, and what was probably meant.

    The value of a scheme's last option is a reference with options of its own, and has all that follows.

    Example:
        >>> text = "file:net.safetensors?arch=cnn28&mean=127/255"
        >>> reference = parse_reference(text, MODEL_SCHEMES, what="model")
        >>> reference.scheme, reference.path, reference.option("arch"), reference.numbers("mean")
        ('file', 'net.safetensors', 'cnn28', (0.4980392156862745,))
        >>> text = "iclr2018:lid?weights=parts&network=file:net.th?arch=resnet20&mean=0.5"
        >>> parse_reference(text, MODEL_SCHEMES, what="model").options
        (('weights', 'parts'), ('network', 'file:net.th?arch=resnet20&mean=0.5'))
    """
    written = text.strip()
    name, colon, rest = written.partition(":")
    known = {scheme.name: scheme for scheme in schemes}
    if not colon or name not in known:
        raise BadReference(_unknown_scheme(written, name if colon else "", schemes, what))
    scheme = known[name]
    path, _, query = rest.partition("?")
    if not path:
        raise BadReference(f"{written!r} names nothing after the colon: write {scheme.form}")
    if "=" in path and not Path(path).expanduser().exists():
        _require_question_mark(written, path, query, scheme)
    options: dict[str, str] = {}
    parts = query.split("&") if query else []
    for place, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if key not in scheme.options:
            raise BadReference(_unknown_option(written, key, scheme))
        if key == scheme.last:
            value = _nested(written, key, "&".join(parts[place:])[len(key) + 1 :])
        if not equals or not value:
            raise BadReference(f"{written}: option {key!r} has no value: write {key}=...")
        if key in options:
            raise BadReference(f"{written}: option {key!r} is given twice")
        options[key] = value
        if key == scheme.last:
            break
    return Reference(written, name, path, tuple(options.items()))


def _nested(written: str, key: str, value: str) -> str:
    # A reference inside a reference, which has all that follows: an & before its own ? belongs to nobody
    before, _, lost = value.partition("?")[0].partition("&")
    if lost:
        raise BadReference(
            f"{written}: {key}= takes all that follows it: write {lost.partition('=')[0]}= before it, not after "
            f"{before!r}"
        )
    return value


def _require_question_mark(written: str, path: str, query: str, scheme: Scheme) -> None:
    # An option in a path that is not there: say where the ? belongs, or that there is no such option
    of_paths = scheme.name in _OF_PATHS
    names = "|".join(sorted(scheme.options, key=len, reverse=True)) or "$"
    for found in re.finditer(rf"({_BETWEEN}*)({names})=", path):
        before, name, after = path[: found.start()], found[2], path[found.end() :]
        if not before or not (found[1] or not of_paths or Path(before).expanduser().exists()):
            continue
        if name != scheme.last:
            after = re.sub(rf"{_BETWEEN}+({names})=", r"&\1=", after)
        meant = f"{scheme.name}:{before}?{name}={after}"
        inner = bool(scheme.last) and f"{scheme.last}=" in meant
        meant += ("?" if inner else "&") + query if query else ""
        raise BadReference(f"{written} has no ? before its option {name}=: write  {meant}")
    unknown = re.search(rf"(?<!^){_BETWEEN}(\w+)=", path)
    if unknown is not None:
        behind = f", and there is no {path!r}{_here(Path(path))}" if of_paths else ""
        said = f"; options stand behind a ?{behind}" if scheme.options else ""
        raise BadReference(_unknown_option(written, unknown[1], scheme) + said)


def _unknown_scheme(written: str, name: str, schemes: Sequence[Scheme], what: str) -> str:
    others = DATA_SCHEMES if what == "model" else MODEL_SCHEMES
    near = difflib.get_close_matches(name, [scheme.name for scheme in schemes], n=1)
    path = Path(written.partition("?")[0]).expanduser()
    hint = ""
    if name in [scheme.name for scheme in others]:
        hint = f" ({name}: names {'data' if what == 'model' else 'a model'})"
    elif near:
        hint = f" (did you mean {near[0]}:?)"
    elif path.is_dir() and what == "data":
        guess = "idx" if next(path.glob("*ubyte*"), None) else "folder"
        hint = f" (did you mean {guess}:{written}?)"
    elif path.is_file():
        guess = {".npz": "npz", ".onnx": "onnx"}.get(path.suffix, "file")
        if guess in [scheme.name for scheme in schemes]:
            hint = f" (did you mean {guess}:{written}?)"
    forms = "  ".join(scheme.form for scheme in schemes)
    return f"{written!r} is no {what} reference{hint}: known are  {forms}"


def _unknown_option(written: str, key: str, scheme: Scheme) -> str:
    if key in _INPUTS:
        return f"{written}: {scheme.name}: has no option {key!r}: give the command --{key} N"
    if not scheme.options:
        return f"{written}: {scheme.name}: takes no options, and {key!r} is one: leave it out"
    near = difflib.get_close_matches(key, scheme.options, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{written}: {scheme.name}: has no option {key!r}{hint}: known are {', '.join(scheme.options)}"


def _fraction(text: str) -> Fraction:
    top, slash, bottom = text.strip().partition("/")
    value = Fraction(top.strip()) / (Fraction(bottom.strip()) if slash else 1)
    if not math.isfinite(float(value)):
        raise ValueError(text)
    return value


def _here(path: Path) -> str:
    # Say where a relative path was looked for
    return "" if path.is_absolute() else f" in {Path.cwd()}"
