# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery status`: what a running server serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_server, as_json, client_of, in_columns
from vllm_surgery.errors import one_line
from vllm_surgery.patch.describe import count

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.protocol import ModelSummary, ServerState, SlotPatch, SlotsState


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "status", run, "Say what a running server serves.")
    add_server(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    state = client_of(args).state()
    print(as_json(state) if args.json else _in_words(state))
    return 0


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
    shares = ", ".join(f"{name} {share:.4g}" for name, share in slots.default.items())
    free = slots.count - len(slots.patches)
    rows = [("slots", f"{len(slots.patches)} of {slots.count} filled, {free} free"), ("default", shares)]
    rows += [(f"  {patch.name}", _slot(patch)) for patch in slots.patches]
    return [*rows, ("  none", count(slots.unpatched, "request"))]


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
