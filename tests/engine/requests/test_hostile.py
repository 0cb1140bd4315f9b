# SPDX-License-Identifier: Apache-2.0
"""Clients that mean no good: whatever they ask for, slots keep no more memory, no more names and no more labels."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.engine.requests.test_ledger import Engine, fill
from tests.engine.requests.test_openai import OFFER, Handler, check, request
from tests.engine.requests.test_swapper import A, slots
from tests.memory import held
from vllm_surgery import ConflictError, Patch, PatchError, UsageError
from vllm_surgery.api import patch_set
from vllm_surgery.client.protocol import CHOICE_KEY
from vllm_surgery.engine import requests
from vllm_surgery.engine.metrics import PATCHES_KEPT, Metrics
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offer, UnknownPatchError, check_shares
from vllm_surgery.engine.requests.ledger import Change, Ledger
from vllm_surgery.engine.requests.openai import check_model_hook
from vllm_surgery.engine.swap.engines import run_sync
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper

if TYPE_CHECKING:
    from collections.abc import Callable

ODD = (
    "",
    "@",
    "none ",
    "NONE",
    "a@b",
    "a+b",
    "../../etc/passwd",
    "a\r\nX-Surgery-Patch: b",
    "a\0",
    "\uff41",
    "\u202ea",
    "\ud800",
    "{}",
    "x" * 1_000_000,
)
"""Names that look like others, that break lines or encodings, or that are long."""
MANY = 10_000
GROWTH = 64 * 1024
"""Bytes that may be held after all those requests and weren't before: caches of the interpreter, no list of names."""


@pytest.fixture
def growth() -> Any:
    """Bytes that the package holds more after something was done than before."""
    tracemalloc.start()

    def measured(work: Callable[[], None]) -> int:
        before = held(requests)
        work()
        return held(requests) - before

    yield measured
    tracemalloc.stop()


def check_all(asked: list[Any], handler: Handler) -> list[int | None]:
    """The status by which each request is refused, in one loop of a server; None for those that aren't."""
    hook = check_model_hook(Handler._check_model)

    async def all_of_them() -> list[int | None]:
        return [getattr(await hook(handler, each), "status", None) for each in asked]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_an_odd_name_is_one_short_refusal(name: str) -> None:
    error = check(request(f"base@{name}"))
    if error != "unknown":  # vLLM's own refusal: before the last mark there is no model.
        assert error.status == 404
        assert len(error.message) < 400
        assert error.message.isprintable()
        error.message.encode()


@pytest.mark.parametrize("value", [*ODD, None, True, 1.5, [], ["a"], {"a": 1}, [[]] * 10_000], ids=lambda _: "")
def test_an_odd_argument_is_one_short_refusal(value: Any) -> None:
    error = check(request(vllm_xargs={CHOICE_KEY: value}))
    assert (error.status, len(error.message) < 200) == (400, True)
    assert error.message.isprintable()


def test_ten_thousand_unknown_models_leave_nothing(growth: Callable[..., int]) -> None:
    statuses: list[int | None] = []
    asked = [request(f"base@unknown-{number}") for number in range(MANY)]
    assert growth(lambda: statuses.extend(check_all(asked, Handler()))) < GROWTH
    assert {*statuses} == {404}


def test_ten_thousand_users_of_a_shared_default_leave_nothing(growth: Callable[..., int]) -> None:
    handler = Handler(Offer(OFFER.patches, {"a": 0.5, "none": 0.5}))
    statuses: list[int | None] = []

    def ask() -> None:
        statuses.extend(check_all([request(user=f"user-{number}") for number in range(MANY)], handler))

    assert growth(ask) < GROWTH
    assert {*statuses} == {None}


def test_ten_thousand_forged_pins_leave_nothing_in_the_engine(growth: Callable[..., int]) -> None:
    ledger = Ledger(2, Engine().call, lambda: ())

    def ask() -> None:
        for number in range(MANY):
            with pytest.raises(UnknownPatchError):
                ledger.admit(f"request-{number}", {PINNED_KEY: f"forged-{number}"})

    assert growth(ask) < GROWTH
    assert not ledger.users()


def test_a_thousand_swaps_in_a_row_keep_as_many_slots_as_there_are(growth: Callable[..., int]) -> None:
    ranks = Engine()
    ledger = Ledger(3, ranks.call, lambda: ranks.running)

    def swap() -> None:
        for number in range(1_000):
            ledger.prepare("token", Change((fill(f"p{number}", kept=False),), shares={f"p{number}": 1.0}))
            ledger.commit("token")

    swap()
    assert growth(swap) < GROWTH
    assert len(ranks.slots) <= 3
    assert ledger.offer.names == ["none", "p999"]


def test_a_thousand_fills_in_a_row_are_refused_once_all_slots_are_taken(growth: Callable[..., int]) -> None:
    server = slots(count=2)
    server.change(*(patch(number) for number in range(2)))

    def ask() -> None:
        for number in range(2, 1_002):
            with pytest.raises(ConflictError, match="all 2 slots are in use"):
                server.change(patch(number))

    assert growth(ask) < GROWTH
    assert server.board.offer().names == ["none", "p0", "p1"]


def patch(number: int) -> Any:
    edits = [{"op": "scale", "factor": 2.0 + number, "neurons": {"0": [1]}}]
    return patch_set(Patch.from_data({"version": 1, "name": f"p{number}", "edits": edits}))


def test_a_thousand_swaps_have_a_bounded_set_of_labels() -> None:
    registry = CollectorRegistry()
    server = InstrumentedSwapper(slots(count=2).swapper, Metrics(registry), "model")
    for number in range(1_000):
        run_sync(server.swap(patch(number)))
    samples = [sample for family in registry.collect() for sample in family.samples]
    patches = {sample.labels["patch"] for sample in samples if "patch" in sample.labels}
    assert len(patches) <= PATCHES_KEPT


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "none"]) | st.text(max_size=3),
        st.sampled_from([0.0, 0.25, 0.5, 1.0, 1 / 3]) | st.floats(),
    )
)
def test_shares_are_refused_or_draw_a_patch_for_everybody(shares: dict[str, float]) -> None:
    try:
        checked = check_shares(shares, OFFER.patches)
    except UsageError as error:
        assert str(error).startswith("default: ")
        assert str(error).isprintable()
        return
    assert sum(checked.values()) == pytest.approx(1.0)
    offer = Offer(OFFER.patches, checked)
    assert {offer.default(str(number)).name for number in range(50)} <= {*checked}


def test_ten_thousand_shares_of_nobody_are_refused_in_a_line() -> None:
    with pytest.raises(UsageError, match="no slot holds a patch named 'p0'"):
        check_shares({f"p{number}": 1 / MANY for number in range(MANY)}, OFFER.patches)


def test_a_patch_cannot_take_the_name_of_the_unpatched_model() -> None:
    with pytest.raises(PatchError, match="`none` stands for the model without a patch"):
        Patch.from_data({**A.members[0].patch.to_data(), "name": "none"})
