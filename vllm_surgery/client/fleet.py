# SPDX-License-Identifier: Apache-2.0
"""Many servers, changed as one: all have the change, or all serve what they served before.

Each is asked whether it could (a rehearsal, which changes nothing), then each is told to, and if one fails, those that
did are told to take it back. Nobody else's change is ever taken back: every step names the epoch that it saw. What
can't be had without a vote among the servers is that they change at the same moment: for the time that the slowest
takes they differ, as they would in a rolling update.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from vllm_surgery.errors import FleetError, ServerError, ServerUnreachableError, SurgeryError, SwapFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.protocol import ServerState, SlotsReport, SwapReport

    Report: TypeAlias = SwapReport | SlotsReport

Result = TypeVar("Result")
Answer: TypeAlias = "tuple[Result, None] | tuple[None, SurgeryError]"

Fate: TypeAlias = Literal["unchanged", "taken back", "changed", "gone"]
"""Of a server after a change of all that failed: it never had it; has it no more; has it still; doesn't answer."""

CHANGE_SECONDS = 600.0
"""How long a server may take for a change before it counts as gone. With ``mode`` ``wait`` requests end first."""

SETTLE_SECONDS = 15.0
"""How long a server may take to tell whether it did what it broke off an answer about."""

_LOOK_SECONDS = 0.25
_MOST_THREADS = 64
_CLIENT_ERRORS = range(400, 500)


@dataclass(frozen=True)
class Outcome:
    """One server after a change of all that failed.

    Attributes:
        url: of the server.
        fate: what became of the change there.
        serves: the id of what it serves now; None where it doesn't answer.
        reason: what it said, where it was the cause or couldn't take the change back.
    """

    url: str
    fate: Fate
    serves: str | None
    reason: str | None


class Fleet:
    """Servers that are changed as one.

    Args:
        clients: of the servers, at least one.
        settle_seconds: see `SETTLE_SECONDS`.
    """

    def __init__(self, clients: Sequence[SurgeryClient], *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self.clients = list(clients)
        self._settle_seconds = settle_seconds

    def subset(self, clients: Sequence[SurgeryClient]) -> Fleet:
        """Some of the servers, as a fleet of their own."""
        return Fleet(clients, settle_seconds=self._settle_seconds)

    def ask(self, question: Callable[[SurgeryClient], Result]) -> list[Answer[Result]]:
        """Asks all servers at once: of each its answer, or the error in place of it."""
        return self._each(question, self.clients)

    def states(self) -> list[ServerState]:
        """The states of all servers.

        Raises:
            FleetError: one doesn't tell.
        """
        return self._all_of(self.ask(lambda client: client.state()))

    def check(self, body: Mapping[str, Any], states: Sequence[ServerState]) -> list[Report]:
        """Asks every server whether it could carry out a change. None does.

        Args:
            body: the change; see `vllm_surgery.client.protocol.SwapRequest`.
            states: of the servers, as they were seen.

        Raises:
            FleetError: one can't.
        """
        cannot = [_cannot_swap(state) for state in states]
        self._all_of([(None, error) if error else (True, None) for error in cannot])
        asked = {key: value for key, value in body.items() if key != "mode"} | {"check": True}
        epochs = _by_client(self.clients, [state.epoch for state in states])
        return self._all_of(self.ask(lambda client: client.change({**asked, "if_epoch": epochs[id(client)]})))

    def change(self, body: Mapping[str, Any], states: Sequence[ServerState] | None = None) -> list[Report]:
        """Carries a change out on every server or on none.

        Args:
            body: the change; see `vllm_surgery.client.protocol.SwapRequest`.
            states: of the servers, as they were seen; asked for where None. One that was changed since refuses.

        Raises:
            FleetError: a server refused or failed. It tells what each serves now: what it served before, wherever a
                server answers and nobody else changed it.
            KeyboardInterrupt: as well once all is taken back.
        """
        states = self.states() if states is None else states
        wanted = _by_client(self.clients, [getattr(report, "id", None) for report in self.check(body, states)])
        epochs = _by_client(self.clients, [state.epoch for state in states])
        done: dict[int, Answer[Report]] = {}

        def carry_out(client: SurgeryClient) -> Report:
            try:
                report = client.change({**body, "if_epoch": epochs[id(client)]})
            except SurgeryError as error:
                done[id(client)] = (None, error)
                raise
            done[id(client)] = (report, None)
            return report

        try:
            answers = self.ask(carry_out)
        except BaseException:  # Interrupted: by now every server has answered, since the threads were waited for.
            self._take_back(body, epochs, wanted, done)
            raise
        if not any(error for _, error in answers):
            return [report for report, _ in answers if report is not None]
        raise self._failure(answers, self._take_back(body, epochs, wanted, done))

    def undo(self, epochs: Sequence[int]) -> list[Outcome]:
        """Takes the last change of each server back, if its epoch is still the one that the change led to.

        Args:
            epochs: of the servers, in order.
        """
        by_client = _by_client(self.clients, epochs)
        return self._fates(lambda client: self._undo(client, by_client[id(client)]))

    def _take_back(
        self,
        body: Mapping[str, Any],
        epochs: Mapping[int, int],
        wanted: Mapping[int, str | None],
        done: Mapping[int, Answer[Report]],
    ) -> list[Outcome]:
        def back(client: SurgeryClient) -> tuple[Fate, str | None]:
            before = epochs[id(client)]
            report, error = done.get(id(client), (None, ServerUnreachableError("it wasn't asked")))
            if error is None:
                changed_to = report.epoch if report is not None and report.epoch != before else None
            elif _is_refusal(error):
                return "unchanged", str(error)
            else:
                fate, changed_to = self._settle(client, body, before, wanted[id(client)])
                if fate != "changed":
                    return fate, str(error)
            fate, reason = ("unchanged", None) if changed_to is None else self._undo(client, changed_to)
            return fate, reason or (None if error is None else str(error))

        return self._fates(back)

    def _settle(
        self, client: SurgeryClient, body: Mapping[str, Any], before: int, wanted: str | None
    ) -> tuple[Fate, int | None]:
        """Whether a server that broke off did what it was told to; and the epoch that it led to.

        As long as it is at it, it lets nobody rehearse a change. One that was started anew has none of it, and a lower
        epoch.
        """
        asked = {key: value for key, value in body.items() if key != "mode"} | {"check": True, "if_epoch": before}
        deadline = time.monotonic() + self._settle_seconds
        while time.monotonic() < deadline:
            try:
                state = client.state()
                if state.epoch != before:
                    ours = state.epoch > before and wanted in {None, state.active}
                    return ("changed", state.epoch) if ours else ("unchanged", None)
                client.change(asked)
            except SurgeryError:
                time.sleep(_LOOK_SECONDS)
                continue
            return "unchanged", None
        return "gone", None

    def _undo(self, client: SurgeryClient, epoch: int) -> tuple[Fate, str | None]:
        try:
            client.undo(if_epoch=epoch)
        except ServerUnreachableError as error:
            return "gone", str(error)
        except SurgeryError as error:
            return "changed", str(error)
        return "taken back", None

    def _fates(self, act: Callable[[SurgeryClient], tuple[Fate, str | None]]) -> list[Outcome]:
        def look(client: SurgeryClient) -> Outcome:
            fate, reason = act(client)
            try:
                return Outcome(client.url, fate, client.state().active, reason)
            except SurgeryError as error:
                return Outcome(client.url, "gone", None, reason or str(error))

        return [outcome for outcome, error in self.ask(look) if outcome is not None and error is None]

    def _failure(self, answers: Sequence[Answer[Report]], outcomes: Sequence[Outcome]) -> FleetError:
        asked = zip(self.clients, answers, strict=True)
        causes = [f"{client.url}: {_without(client, error)}" for client, (_, error) in asked if error]
        left = [outcome for outcome in outcomes if outcome.fate == "changed"]
        gone = [outcome for outcome in outcomes if outcome.fate == "gone"]
        said = [_first(causes)]
        if left:
            said.append(f"{len(left)} could not take the change back: {_first([one.url for one in left])}")
        fine = len(outcomes) - len(left) - len(gone)
        if fine:
            said.append(f"{fine} of {len(outcomes)} servers serve what they served before")
        return FleetError("; ".join(said), [vars(outcome) for outcome in outcomes])

    def _all_of(self, answers: Sequence[Answer[Result]]) -> list[Result]:
        """All answers.

        Raises:
            FleetError: one is an error. Nothing was changed.
        """
        outcomes, causes = [], []
        for client, (_, error) in zip(self.clients, answers, strict=True):
            gone = isinstance(error, ServerUnreachableError)
            reason = None if error is None else _without(client, error)
            outcomes.append(vars(Outcome(client.url, "gone" if gone else "unchanged", None, reason)))
            causes += [] if error is None else [f"{client.url}: {reason}"]
        if causes:
            raise FleetError(f"{_first(causes)}; nothing was changed on any server", outcomes)
        return [answer for answer, _ in answers if answer is not None]

    @staticmethod
    def _each(question: Callable[[SurgeryClient], Result], clients: Sequence[SurgeryClient]) -> list[Answer[Result]]:
        def answer(client: SurgeryClient) -> Answer[Result]:
            try:
                return question(client), None
            except SurgeryError as error:
                return None, error

        with ThreadPoolExecutor(min(len(clients), _MOST_THREADS), "vllm-surgery-fleet") as threads:
            return list(threads.map(answer, clients))


def _cannot_swap(state: ServerState) -> SurgeryError | None:
    return None if state.can_swap else SurgeryError(f"can't swap: {state.cannot_swap_reason}")


def _by_client(clients: Sequence[SurgeryClient], values: Sequence[Result]) -> dict[int, Result]:
    return {id(client): value for client, value in zip(clients, values, strict=True)}


def _is_refusal(error: SurgeryError) -> bool:
    """True where the server itself says that it serves what it served before."""
    if not isinstance(error, ServerError):
        return False
    return error.status in _CLIENT_ERRORS or error.kind == SwapFailedError.__name__


def _without(client: SurgeryClient, error: SurgeryError) -> str:
    """An error's text without the address, where it begins with it."""
    return str(error).removeprefix(f"{client.url}: ")


def _first(words: Sequence[str], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
