"""Console: the answer on standard output, everything else on standard error, errors in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, final

import typer

from calipers.errors import CalipersError, CalipersWarning

__all__ = ["INTERRUPTED", "Say", "speaking"]

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells give it."""

_FAILED = 2
_MEMORY = ("MemoryError", "OutOfMemoryError")


@final
class Say:
    """What one verb says to its user.

    Args:
        as_json: whether the answer is one JSON object.
        quiet: whether notes and progress are left out.
        debug: whether an error shows its traceback.
    """

    def __init__(self, *, as_json: bool, quiet: bool, debug: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.debug = debug
        self.on_interrupt: list[str] = []
        self._warned: set[str] = set()
        self._answered = False

    def note(self, text: str) -> None:
        """Tell something on standard error, unless the user wants quiet.

        Args:
            text: one line or several.
        """
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def answer(self, payload: Mapping[str, Any], *parts: str) -> None:
        """Give the verb's answer on standard output: the payload with ``--json``, the parts without.

        Args:
            payload: plain values; a number that is not finite becomes null.
            parts: texts, of one line or several.
        """
        self._answered = True
        if self.as_json:
            print(json.dumps(_finite(payload), allow_nan=False), flush=True)
            return
        for part in parts:
            print(part, flush=True)

    def warn(self, text: str) -> None:
        """Tell a warning on standard error, once.

        Args:
            text: one line.
        """
        if text not in self._warned:
            self._warned.add(text)
            print(f"calipers: warning: {text}", file=sys.stderr, flush=True)

    def fail(self, text: str, kind: str, code: int) -> None:
        """Tell an error: one line on standard error, and with ``--json`` an object on standard output.

        A check that fails after the answer was given leaves that the only object there.

        Args:
            text: what was wrong, its value, the remedy.
            kind: the name of its class.
            code: the exit code.
        """
        print(f"calipers: {text}", file=sys.stderr, flush=True)
        if self.as_json and not self._answered:
            print(json.dumps({"error": {"kind": kind, "message": text, "exit_code": code}}), flush=True)


@contextlib.contextmanager
def speaking(*, as_json: bool, quiet: bool, debug: bool) -> Iterator[Say]:
    """Frame a verb: what it raises becomes one line and an exit code, what it warns one line.

    Args:
        as_json: whether the answer is one JSON object.
        quiet: whether notes and progress are left out.
        debug: whether an error shows its traceback.

    Yields:
        The console of the verb.

    Raises:
        Exit: with the code of the error.
    """
    say = Say(as_json=as_json, quiet=quiet, debug=debug)
    with warnings.catch_warnings():
        warnings.simplefilter("always", CalipersWarning)
        warnings.showwarning = _shower(say)
        try:
            yield say
        except CalipersError as problem:
            _trace(say)
            say.fail(_one_line(problem), type(problem).__name__, problem.exit_code)
            raise typer.Exit(problem.exit_code) from None
        except KeyboardInterrupt:
            _trace(say)
            for line in say.on_interrupt or ["stopped"]:
                print(f"calipers: {line}", file=sys.stderr, flush=True)
            if say.as_json:
                interrupted = {
                    "kind": "KeyboardInterrupt",
                    "message": " ".join(say.on_interrupt or ["stopped"]),
                }
                print(json.dumps({"error": {**interrupted, "exit_code": INTERRUPTED}}), flush=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as problem:
            if _is_for_typer(problem):
                raise
            _trace(say)
            kind = type(problem).__name__
            if kind in _MEMORY:
                say.fail("memory ran out: give a smaller --batch-size, or fewer --jobs", kind, _FAILED)
            else:
                hint = "" if say.debug else "; run again with --debug"
                say.fail(f"unexpected {kind}: {_one_line(problem)}{hint}", kind, _FAILED)
            raise typer.Exit(_FAILED) from None


def _shower(say: Say) -> Any:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, CalipersWarning) or (category is UserWarning and not say.quiet):
            say.warn(_one_line(message))
        elif say.debug:
            say.warn(f"{category.__name__} in {filename}:{lineno}: {_one_line(message)}")

    return show


def _is_for_typer(problem: Exception) -> bool:
    # An exit, or a reader of standard output that has gone away.
    gone = isinstance(problem, OSError) and problem.errno == errno.EPIPE
    return gone or isinstance(problem, typer.Exit | typer.Abort | typer.BadParameter)


def _trace(say: Say) -> None:
    if say.debug:
        traceback.print_exc(file=sys.stderr)


def _one_line(problem: BaseException | str) -> str:
    return " ".join(str(problem).split()) or "no message"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
