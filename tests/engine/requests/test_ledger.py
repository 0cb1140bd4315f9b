# SPDX-License-Identifier: Apache-2.0
"""The life of a slot: filled, shared, in use, leaving, free; and changes that are carried out whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_surgery import CannotSwapError, ConflictError, UsageError
from vllm_surgery.client.protocol import CHOICE_KEY
from vllm_surgery.engine.requests import ledger as ledger_module
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offered, UnknownPatchError, salted
from vllm_surgery.engine.requests.content import LayerGains, SlotContent
from vllm_surgery.engine.requests.core import attach_ledger
from vllm_surgery.engine.requests.ledger import Change, Fill, Ledger


def fill(name: str, *, kept: bool = True, digest: str | None = None) -> Fill:
    digest = digest or f"digest of {name}"
    content = SlotContent(name, digest, 1, {0: LayerGains(8, (1,), (0.0,), (-0.0,))}).to_data()
    return Fill(Offered(name, f"{name}@01234567", digest), content, kept)


@dataclass
class Engine:
    """The ranks and the requests of an engine.

    Attributes:
        running: digests.
        slots: what the ranks hold.
        refuses: the digest that they can't hold.
        held: what they say that they hold.
    """

    running: list[str] = field(default_factory=list)
    slots: dict[int, str | None] = field(default_factory=dict)
    refuses: str | None = None
    held: list[list[Any]] = field(default_factory=lambda: [["neurons", 0]])

    def call(self, _method: str, slot: int, content: dict[str, Any] | None) -> list[dict[str, Any]]:
        if content is not None and content["digest"] == self.refuses:
            return [{"ok": True, "held": []}, {"ok": False, "kind": "CannotSwapError", "error": "no place"}]
        self.slots[slot] = None if content is None else content["digest"]
        return [{"ok": True, "held": self.held}, {"ok": True, "held": []}]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(2, engine.call, lambda: engine.running)


def change(ledger: Ledger, *fills: Fill, **more: Any) -> dict[str, Any]:
    ledger.prepare("token", Change(fills, **more))
    return ledger.commit("token")


def names(ledger: Ledger) -> list[str]:
    return [slot["name"] for slot in ledger.state()["slots"]]


def test_a_filled_slot_is_offered(ledger: Ledger, engine: Engine) -> None:
    state = change(ledger, fill("a"))
    assert ledger.offer.names == ["none", "a"]
    assert engine.slots == {1: "digest of a"}
    assert [(slot["slot"], slot["name"], slot["users"], slot["leaving"]) for slot in state["slots"]] == [
        (1, "a", 0, False)
    ]


def test_nobody_sees_what_is_only_prepared(ledger: Ledger) -> None:
    ledger.prepare("token", Change((fill("a"),)))
    assert ledger.offer.names == ["none"]


def test_what_is_discarded_leaves_its_slot(ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        ledger.prepare("token", Change((fill(name),)))
        ledger.discard("token")
    assert ledger.offer.epoch == 0
    change(ledger, fill("d"), fill("e"))


@pytest.mark.parametrize(
    "fills",
    [(fill("b"),), (fill("again", digest="digest of a"),), (fill("b"), fill("refused"))],
    ids=["rehearsed", "known by another name", "refused halfway"],
)
def test_what_is_rehearsed_or_refused_leaves_no_trace(ledger: Ledger, engine: Engine, fills: tuple[Fill, ...]) -> None:
    before = change(ledger, fill("a"))
    engine.refuses = "digest of refused"
    ledger.answer("rehearse", "other", Change(fills).to_data())
    assert {**ledger.state(), "before": before["before"]} == before


def test_the_same_content_under_another_name_shares_a_slot(ledger: Ledger, engine: Engine) -> None:
    change(ledger, fill("a"), fill("b", digest="digest of a"))
    assert len(engine.slots) == 1
    assert ledger.offer.names == ["none", "a", "b"]


def test_without_a_free_slot_nothing_is_thrown_out(ledger: Ledger) -> None:
    change(ledger, fill("a"), fill("b"))
    with pytest.raises(ConflictError, match=r"^all 2 slots are in use; free a patch that isn't needed$"):
        change(ledger, fill("c"))
    assert ledger.offer.names == ["none", "a", "b"]


def test_a_thousand_fills_take_no_more_than_there_is(ledger: Ledger, engine: Engine) -> None:
    refused = 0
    for number in range(1_000):
        answer = ledger.answer("prepare", "token", Change((fill(f"p{number}"),)).to_data())
        refused += not answer["ok"]
        if answer["ok"]:
            ledger.answer("commit", "token")
    assert (refused, len(engine.slots), len(ledger.slots)) == (998, 2, 2)


def test_a_freed_patch_stays_as_long_as_a_request_has_it(ledger: Ledger, engine: Engine) -> None:
    change(ledger, fill("a"), fill("b"))
    engine.running = ["digest of a"]
    change(ledger, free=("a",))
    assert ledger.state()["slots"][0] | {"users": 1, "leaving": True} == ledger.state()["slots"][0]
    with pytest.raises(ConflictError, match="in use"):
        change(ledger, fill("c"))
    engine.running = []
    change(ledger, fill("c"))
    assert engine.slots == {1: "digest of c", 2: "digest of b"}


def test_a_request_that_is_not_queued_yet_counts(ledger: Ledger) -> None:
    change(ledger, fill("a"), fill("b"))
    assert ledger.admit("request", {CHOICE_KEY: "a"}) == "digest of a"
    change(ledger, free=("a",))
    with pytest.raises(ConflictError, match="in use"):
        change(ledger, fill("c"))
    ledger.scheduled("request")
    change(ledger, fill("c"))


def test_what_was_the_default_of_a_swap_leaves_with_it(ledger: Ledger) -> None:
    for name in ("a", "b", "c", "d"):
        change(ledger, fill(name, kept=False), shares={name: 1.0})
    assert ledger.offer.names == ["none", "d"]


def test_what_was_filled_by_name_stays(ledger: Ledger) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    change(ledger, fill("b", kept=False), shares={"b": 1.0})
    change(ledger, shares={"none": 1.0})
    assert ledger.offer.names == ["none", "a"]


def test_a_new_content_of_a_name_leaves_running_requests_the_old(ledger: Ledger, engine: Engine) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    engine.running = ["digest of a"]
    change(ledger, fill("a", digest="newer"))
    assert ledger.admit("request", None) == "newer"
    assert engine.slots == {1: "digest of a", 2: "newer"}


def test_a_default_that_is_freed_is_refused(ledger: Ledger) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    with pytest.raises(UsageError, match="default: no slot holds a patch named 'a'"):
        change(ledger, free=("a",))


def test_freeing_what_is_not_there_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="free: no slot holds a patch named 'absent'"):
        change(ledger, free=("absent",))


def test_a_stale_epoch_is_refused(ledger: Ledger) -> None:
    change(ledger, fill("a"))
    with pytest.raises(ConflictError, match="the epoch is 1, not 0"):
        change(ledger, fill("b"), if_epoch=0)


def test_two_changes_at_once_are_refused_until_one_is_given_up(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.prepare("first", Change((fill("a"),)))
    with pytest.raises(ConflictError, match="another swap is running"):
        ledger.prepare("second", Change((fill("b"),)))
    monkeypatch.setattr(ledger_module, "LEASE_SECONDS", 0.0)
    ledger.prepare("second", Change((fill("b"),)))
    with pytest.raises(ConflictError, match="not the one that was prepared"):
        ledger.commit("first")


def test_a_rank_that_cannot_hold_it_leaves_all_ranks_without(ledger: Ledger, engine: Engine) -> None:
    engine.refuses = "digest of a"
    with pytest.raises(CannotSwapError, match="no place"):
        change(ledger, fill("a"))
    assert engine.slots == {1: None}
    assert not ledger.slots
    change(ledger, fill("b"), fill("c"))


def test_a_layer_that_no_rank_holds_is_refused(ledger: Ledger, engine: Engine) -> None:
    engine.held = []
    with pytest.raises(CannotSwapError, match="no rank has a place for the gains of neurons in layer 0"):
        change(ledger, fill("a"))


def test_errors_cross_processes_as_data(ledger: Ledger) -> None:
    answer = ledger.answer("commit", "never prepared")
    assert (answer["ok"], answer["kind"]) == (False, "ConflictError")


@pytest.mark.parametrize("given", [{CHOICE_KEY: "absent"}, {PINNED_KEY: "gone"}])
def test_a_request_for_what_is_in_no_slot_is_refused(ledger: Ledger, given: dict[str, Any]) -> None:
    with pytest.raises(UnknownPatchError):
        ledger.admit("request", given)
    assert not ledger.users()


def core(engine: Engine) -> Any:
    """As much of vLLM's engine as slots touch."""

    def preprocess(request: Any) -> Any:
        if request.request_id == "broken":
            raise ValueError
        return request

    return SimpleNamespace(
        model_executor=SimpleNamespace(collective_rpc=lambda method, args: engine.call(method, *args)),
        scheduler=SimpleNamespace(requests={}),
        preprocess_add_request=preprocess,
        add_request=lambda request, wave=0: (request, wave),
    )


def request(name: str = "request", salt: str | None = None, **extra: Any) -> Any:
    return SimpleNamespace(request_id=name, cache_salt=salt, sampling_params=SimpleNamespace(extra_args=extra or None))


def test_an_engine_that_starts_has_its_default_before_it_has_a_scheduler(engine: Engine) -> None:
    served = core(engine)
    del served.scheduler
    ledger = attach_ledger(served, 2, fill("a", kept=False))
    assert ledger.offer.only_default is not None
    assert (ledger.offer.only_default.name, ledger.offer.epoch) == ("a", 0)
    assert served.vllm_surgery_ledger("state")["ok"]


def test_a_request_is_pinned_and_its_blocks_are_keyed(engine: Engine) -> None:
    served = core(engine)
    attach_ledger(served, 2, fill("a"))
    given = request(salt="mine")
    params = given.sampling_params
    taken = served.preprocess_add_request(given)
    assert taken.sampling_params.extra_args == {PINNED_KEY: "digest of a"}
    assert taken.cache_salt == salted("digest of a", "mine")
    assert params.extra_args is None, "parameters may be shared among requests"


def test_an_unpatched_request_keeps_its_blocks(engine: Engine) -> None:
    served = core(engine)
    attach_ledger(served, 2, None)
    for salt in (None, "mine"):
        taken = served.preprocess_add_request(request(salt=salt))
        assert (taken.sampling_params.extra_args, taken.cache_salt) == ({PINNED_KEY: ""}, salted("", salt))


def test_a_request_that_fails_on_the_way_leaves_its_slot(engine: Engine) -> None:
    served = core(engine)
    ledger = attach_ledger(served, 2, fill("a"))
    with pytest.raises(ValueError):
        served.preprocess_add_request(request("broken"))
    served.preprocess_add_request(request("queued"))
    assert ledger.users() == {"digest of a": 1}
    assert served.add_request(request("queued"), 3)[1] == 3
    assert not ledger.users()


def test_the_scheduler_tells_of_queued_and_running_requests(engine: Engine) -> None:
    served = core(engine)
    ledger = attach_ledger(served, 2, fill("a"))
    pinned = served.preprocess_add_request(request("queued"))
    served.scheduler.requests["queued"] = pinned
    served.scheduler.requests["pooling"] = SimpleNamespace(sampling_params=None)
    served.add_request(pinned)
    assert ledger.users() == {"digest of a": 1, "": 1}


def test_requests_without_tokens_to_make_pass(engine: Engine) -> None:
    served = core(engine)
    attach_ledger(served, 2, fill("a"))
    pooling = SimpleNamespace(request_id="pooling", sampling_params=None, cache_salt=None)
    assert served.preprocess_add_request(pooling) is pooling


def test_while_the_weights_hold_a_patch_no_request_is_without_it(ledger: Ledger) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    change(ledger, unpatched=False)
    with pytest.raises(UnknownPatchError, match="the weights hold a, so no request can do without it"):
        ledger.admit("request", {CHOICE_KEY: "none"})
    with pytest.raises(UnknownPatchError, match="the weights hold a"):
        ledger.admit("request", {PINNED_KEY: ""})
    assert ledger.admit("request", None) == "digest of a"
    assert ledger.offer.names == ["a"]


def test_the_ranks_heed_what_the_weights_hold(ledger: Ledger, engine: Engine) -> None:
    held: list[str] = []
    change(ledger, fill("a"), shares={"a": 1.0})
    change(ledger, unpatched=False)
    ledger.call = lambda _method, digest: held.append(digest) or [{"ok": True}]  # type: ignore[func-returns-value]
    assert ledger.answer("hold", "", {"digest": "digest of a"}) == {"ok": True}
    assert (held, ledger.state()["held"]) == (["digest of a"], "digest of a")
    ledger.call = lambda _method, _digest: [{"ok": False, "kind": "EngineError", "error": "gone"}]
    assert ledger.answer("hold", "", {"digest": ""})["error"] == "rank 0: gone"
    assert ledger.held == "digest of a"


def test_weights_do_not_come_to_hold_one_of_several_choices(ledger: Ledger) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    with pytest.raises(ConflictError, match="slots were changed while the weights were written; they offer none, a"):
        ledger.hold("digest of a")
    change(ledger, fill("b"), unpatched=False)
    with pytest.raises(ConflictError, match="they offer a, b"):
        ledger.hold("digest of a")
    assert not ledger.held


def test_while_weights_hold_a_patch_nothing_else_can_be_offered(ledger: Ledger) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    ledger.held = "digest of a"
    with pytest.raises(ConflictError, match="the weights hold a patch"):
        change(ledger, unpatched=True)


# Claims: whoever writes weights has the slots to itself.


def test_only_its_owner_changes_what_is_claimed(ledger: Ledger) -> None:
    ledger.claim("mine")
    ledger.claim("mine")
    with pytest.raises(ConflictError, match="another swap is running"):
        ledger.claim("other")
    for refused in (Change((fill("a"),)), Change((fill("a"),), claim="other"), Change(unpatched=True)):
        with pytest.raises(ConflictError, match="another swap is running"):
            ledger.rehearse("token", refused)
    change(ledger, fill("a"), claim="mine")
    ledger.release("other")
    with pytest.raises(ConflictError):
        change(ledger, fill("b"))
    ledger.release("mine")
    change(ledger, fill("b"))


def test_nothing_is_claimed_in_the_middle_of_a_change(ledger: Ledger) -> None:
    ledger.prepare("first", Change((fill("a"),)))
    with pytest.raises(ConflictError, match="another swap is running"):
        ledger.claim("mine")


def test_a_claim_whose_owner_died_runs_out_and_requests_can_choose_no_patch_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(ledger, fill("a"), shares={"a": 1.0})
    ledger.claim("dead")
    change(ledger, unpatched=False, claim="dead")
    change(ledger, shares={"a": 1.0}, claim="dead")
    assert ledger.offer.names == ["a"]
    monkeypatch.setattr(ledger_module, "LEASE_SECONDS", 0.0)
    change(ledger, shares={"a": 1.0})
    assert ledger.offer.names == ["none", "a"]


def test_what_was_filled_can_be_had_back(ledger: Ledger) -> None:
    change(ledger, fill("a"))
    assert ledger.patches("digest of a") == {"patches": []}
    with pytest.raises(ConflictError, match="in no slot any more"):
        ledger.patches("absent")
