# SPDX-License-Identifier: Apache-2.0
"""Everything that vllm-surgery refuses, as few typed errors that carry data.

The text of each is one line. One place turns them into an exit code (`vllm_surgery.cli`), others into a log line or an
HTTP status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ValidationError

# A place may hold a key from a hostile file. Cut here, so that the reason behind it is never cut away.
_PLACE_LIMIT = 120


class SurgeryError(Exception):
    """Base of every error that a user can cause. ``str()`` of it is one line."""

    def __init__(self, reason: str) -> None:
        self.reason = one_line(reason)
        super().__init__(self.reason)


class UsageError(SurgeryError):
    """Wrong usage, or a file that isn't there: nothing was looked at yet."""


class CheckpointError(SurgeryError):
    """A model folder that can't be read as a Hugging Face checkpoint."""


class EngineError(SurgeryError):
    """The vLLM that runs here, or the way it was started, can't carry the patch out."""


class CannotSwapError(EngineError):
    """A server that can't exchange patches while it runs, whatever the patch; the text says why."""


class ConflictError(SurgeryError):
    """Another swap runs, or the server is no longer in the state that the caller saw. Nothing was changed."""


class SwapFailedError(EngineError):
    """A swap that failed on the way and was undone: the server serves what it served before."""


class MixedWeightsError(EngineError):
    """Workers of one engine hold different patches, by a failed swap or from the start: it must not answer."""


class ServerUnreachableError(SurgeryError):
    """Nothing answers at a server's address, or not in time, or the connection broke."""


class PluginMissingError(UsageError):
    """A server that answers, and has no vllm-surgery."""


class ServerError(SurgeryError):
    """A running server's refusal, as it came over HTTP.

    Attributes:
        status: HTTP's.
        kind: the name of the error on the server, such as ``ConflictError``.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind = status, one_line(kind)
        super().__init__(message)


class FleetError(SurgeryError):
    """Servers that were to do something together, and didn't.

    Attributes:
        servers: of each its ``url``, what became of it (``fate``), what it ``serves`` and a ``reason``; plain data.
    """

    def __init__(self, reason: str, servers: Sequence[Mapping[str, str | None]]) -> None:
        self.servers = [dict(server) for server in servers]
        super().__init__(reason)


class PatchError(SurgeryError):
    """A patch that is wrong in itself.

    Attributes:
        source: the file, or where else the patch came from.
        place: where in it, such as ``edits[0].neurons.29``; empty for the patch as a whole.
        detail: why, without file and place.
    """

    def __init__(self, source: str, place: str, detail: str) -> None:
        self.source = source
        self.place = one_line(place, _PLACE_LIMIT)
        self.detail = one_line(detail)
        super().__init__(": ".join(part for part in (source, self.place, self.detail) if part))

    def __reduce__(self) -> tuple[type[PatchError], tuple[str, str, str]]:
        # Workers send their errors to the server's process, and Python would call the class with one argument.
        return type(self), (self.source, self.place, self.detail)


class MismatchError(PatchError):
    """A patch that is sound but not for this model: guard, range, seal, or a format that can't hold it."""


def check_key(key: str | None, what: str) -> None:
    """Checks that an HTTP header can hold a key.

    Args:
        key: the key, if any.
        what: it is called in the error.

    Raises:
        UsageError: none can.
    """
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"{what} holds a character that no header can hold")


def first_problem(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """The place and the message of the first thing that pydantic found wrong."""
    first = error.errors(include_url=False)[0]
    return first["loc"], str(first["msg"]).removeprefix("Value error, ")


def one_line(text: str, limit: int = 500) -> str:
    """`text` with all white space folded, control characters spelled out, and cut at `limit` characters."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def is_text(text: str) -> bool:
    """False where it holds half of a surrogate pair, which JSON can spell but no file, log or header can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(text: str) -> str:
    """`text` with control characters spelled out, so that a terminal that shows it does nothing else."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
