# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery status`: what a running server serves; or many, and in what they differ."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_servers, as_json, clients_of, in_columns
from vllm_surgery.errors import SurgeryError, one_line, visible
from vllm_surgery.patch.describe import count

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.protocol import ModelSummary, ServerState, SlotPatch, SlotsState


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "status", run, "Say what a running server serves.")
    add_servers(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    clients = clients_of(args)
    if len(clients) > 1:
        return _tell_of_all(clients, as_json=args.json)
    state = clients[0].state()
    print(as_json(state) if args.json else _in_words(state))
    return 0


def _tell_of_all(clients: Sequence[SurgeryClient], *, as_json: bool) -> int:
    """A line a server, and in what they differ; 1 if they do, or if one doesn't tell."""
    from vllm_surgery.client.fleet import Fleet

    asked = Fleet(clients).ask(lambda client: client.state())
    states = [state for state, _ in asked if state is not None]
    differences = _differences(states)
    errors = [error for _, error in asked if error is not None]
    if as_json:
        servers = [
            {"url": client.url, **_answer(state, error)} for client, (state, error) in zip(clients, asked, strict=True)
        ]
        print(json.dumps({"servers": servers, "differences": differences}, indent=2))
    else:
        told = zip(clients, asked, strict=True)
        print(in_columns([(client.url, _in_a_line(client, state, error)) for client, (state, error) in told]))
        print(_sum_of(differences, len(states), len(errors)))
    return 1 if differences or errors else 0


def _answer(state: ServerState | None, error: SurgeryError | None) -> dict[str, object]:
    if error is None and state is not None:
        return {"state": state.model_dump()}
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _in_a_line(client: SurgeryClient, state: ServerState | None, error: SurgeryError | None) -> str:
    if state is None:
        return str(error).removeprefix(f"{client.url}: ")
    shares = state.slots and len(state.slots.default) > 1
    default = f" ({_shares(state.slots)})" if state.slots and shares else ""
    swaps = "" if state.can_swap else f", can't swap: {one_line(state.cannot_swap_reason or '')}"
    wanted = f", desired: {_desired(state)}" if state.watching and state.desired.id != state.active else ""
    return f"{state.active}{default}, epoch {state.epoch}, since {state.since}{wanted}{swaps}"


def _differences(states: Sequence[ServerState]) -> dict[str, dict[str, int]]:
    """What isn't the same everywhere: by aspect, each value with the number of servers that have it."""
    aspects = {
        "active": [state.active for state in states],
        "default": [_shares(state.slots) if state.slots else "no slots" for state in states],
        "slots": [_names(state.slots) for state in states],
        "desired": [str(state.desired.id) for state in states],
        "swaps": ["possible" if state.can_swap else "not possible" for state in states],
        "on loop": [state.on_loop or "nothing" for state in states],
        "model": [_model(state.model) for state in states],
    }
    counted = {aspect: dict(Counter(values).most_common()) for aspect, values in aspects.items()}
    return {aspect: counts for aspect, counts in counted.items() if len(counts) > 1}


def _names(slots: SlotsState | None) -> str:
    offered = sorted(patch.id for patch in slots.patches if not patch.leaving) if slots else []
    return ", ".join(offered) or "nothing"


def _sum_of(differences: dict[str, dict[str, int]], told: int, silent: int) -> str:
    lines = [
        f"{aspect} differs: " + "; ".join(f"{value} on {number}" for value, number in counts.items())
        for aspect, counts in differences.items()
    ]
    if not differences and told > 1:
        lines.append(f"{count(told, 'server')} serve the same")
    if silent:
        lines.append(f"{count(silent, 'server')} did not tell")
    return "\n".join(map(visible, lines))


def _in_words(state: ServerState) -> str:
    changed = f"{count(state.units, 'unit')} in {count(state.tensors, 'tensor')}"
    return in_columns(
        [
            ("active", state.active),
            ("since", f"{state.since}, epoch {state.epoch}"),
            ("changes", f"{changed}, on {count(state.ranks, 'rank')}"),
            *([("desired", _desired(state))] if state.watching else []),
            *_slots(state.slots),
            *([("on loop", state.on_loop)] if state.on_loop else []),
            ("swaps", "possible" if state.can_swap else f"not possible: {one_line(state.cannot_swap_reason or '')}"),
            ("model", _model(state.model)),
        ]
    )


def _slots(slots: SlotsState | None) -> list[tuple[str, str]]:
    """The default, and a line for each slot that is filled."""
    if slots is None:
        return []
    free = slots.count - len(slots.patches)
    rows = [("slots", f"{len(slots.patches)} of {slots.count} filled, {free} free"), ("default", _shares(slots))]
    rows += [(f"  {patch.name}", _slot(patch)) for patch in slots.patches]
    return [*rows, ("  none", count(slots.unpatched, "request"))]


def _shares(slots: SlotsState) -> str:
    return ", ".join(f"{name} {share:.4g}" for name, share in sorted(slots.default.items()))


def _slot(patch: SlotPatch) -> str:
    words = [patch.id, count(patch.units, "unit"), count(patch.users, "request")]
    return ", ".join([*words, *(["leaving"] if patch.leaving else [])])


def _desired(state: ServerState) -> str:
    wanted = state.desired
    if wanted.error:
        return one_line(": ".join(filter(None, [wanted.id, wanted.error])))
    if wanted.id == state.active:
        return "the same; its files are followed"
    return f"{wanted.id}, by the followed files"


def _model(model: ModelSummary) -> str:
    parts = [
        model.name,
        " or ".join(model.architectures),
        count(model.layers, "layer") if model.layers is not None else "",
        f"{model.experts} routed experts a layer" if model.experts else "",
    ]
    return ", ".join(filter(None, parts))
