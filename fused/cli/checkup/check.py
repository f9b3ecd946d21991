"""What one look at the machine, or at a directory, has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fused.cli.exits import Exit

if TYPE_CHECKING:
    from fused.control import Json

State = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """`fail`: a mount would not be made, or does not serve. `warn`: it would, but somebody may want to know this."""

    name: str
    state: State
    detail: str
    """A sentence, without a full stop."""
    advice: str | None = None
    """What to do about it, where something can be done."""
    code: Exit = Exit.OK
    """The exit code that this failure asks for: that of the command which would meet it."""

    def as_json(self) -> Json:
        """As `ipfsfs doctor --json` shows it."""
        return {"name": self.name, "state": self.state, "detail": self.detail, "advice": self.advice}


def ok(name: str, detail: str) -> Check:
    """It is as it should be."""
    return Check(name, "ok", detail)


def warn(name: str, detail: str, advice: str) -> Check:
    """It keeps nobody from mounting."""
    return Check(name, "warn", detail, advice)


def fail(name: str, code: Exit, detail: str, advice: str) -> Check:
    """It keeps a mount from being made, or from serving."""
    return Check(name, "fail", detail, advice, code)
