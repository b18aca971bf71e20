"""The one error that is meant for people: what is wrong, where, and what to do about it."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Bad input or environment, told in one line.

    The command line prints it and exits with 1; inside ingest it becomes a failure row.
    `kind` is a short stable slug (`no-audio`, `decode-failed`) for tables and tests.
    """

    def __init__(self, what: str, *, where: object = "", hint: str = "", kind: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.hint = hint
        self.kind = kind
        super().__init__(what, self.where, hint, kind)

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if self.hint:
            text += f"; {self.hint}"
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Keyword-only arguments do not survive the default pickling between Ray processes."""
        return _rebuild, (type(self), self.what, {"where": self.where, "hint": self.hint, "kind": self.kind})


class UsageError(UserError):
    """The command was typed wrongly (an unknown setting, a value of the wrong type): exit code 2."""


class Stopped(UserError):
    """The command was asked to stop and did, with everything saved. `code`: the exit code, 128 and the signal's number."""

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


def _rebuild(cls: type[UserError], what: str, named: dict[str, Any]) -> UserError:
    return cls(what, **named)
