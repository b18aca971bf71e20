"""The error that users see: what is wrong, where, and a hint what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def printable(path: str) -> str:
    """A path for messages and tables in one line of UTF-8: other bytes and control characters are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Bad input or environment, printed as one line.

    The command line prints it and exits with 1. Ingest turns it into a failure row. `kind` is a short stable
    slug (`no-audio`, `decode-failed`) for tables and tests.
    """

    def __init__(self, what: str, *, where: object = "", hint: str = "", kind: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.hint = hint
        self.kind = kind
        super().__init__(what, self.where, hint, kind)

    def __str__(self) -> str:
        text = " ".join(self.what.split())
        if self.where:
            text += f" ({printable(self.where)})"
        if self.hint:
            text += f"; {' '.join(self.hint.split())}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """The default pickling between Ray processes loses keyword-only arguments."""
        return _rebuild, (type(self), self.what, {"where": self.where, "hint": self.hint, "kind": self.kind})


class UsageError(UserError):
    """Wrong usage of a command, such as an unknown setting or a value of the wrong type: exit code 2."""


class Stopped(UserError):
    """The command stopped on request, with everything saved. `code` is the exit code: 128 + signal number."""

    def __init__(
        self, what: str, *, where: object = "", hint: str = "", kind: str = "stopped", code: int = 130
    ) -> None:
        super().__init__(what, where=where, hint=hint, kind=kind)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (
            type(self),
            self.what,
            {"where": self.where, "hint": self.hint, "kind": self.kind, "code": self.code},
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived. Not an Exception, so that no handler of errors swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`did you mean NAME?` with the most similar known name; "" if none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {similar[0]}?" if similar else ""


def choice_hint(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the most similar known one, then all of them."""
    known = list(known)
    question = nearest_name(name, known)
    return f"{question} one of: {', '.join(known)}".strip()


def _rebuild(cls: type[UserError], what: str, named: dict[str, Any]) -> UserError:
    return cls(what, **named)
