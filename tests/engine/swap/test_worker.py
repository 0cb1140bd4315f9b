# SPDX-License-Identifier: Apache-2.0
"""A worker answers every step with plain data; whatever goes wrong in it, it never raises."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.models import patch_of
from tests.waiting import until
from vllm_surgery import (
    CannotSwapError,
    CheckpointError,
    ConflictError,
    EngineError,
    MismatchError,
    MixedWeightsError,
    Patch,
    PatchError,
    PatchSet,
    SurgeryError,
)
from vllm_surgery.api import patch_set
from vllm_surgery.engine.rpc_errors import error_of, failure_of
from vllm_surgery.engine.swap import worker as remote
from vllm_surgery.engine.swap.rank import Active, Verified
from vllm_surgery.engine.swap.worker import STATE, WorkerSurgery, report, step
from vllm_surgery.planning.planner import Plan

WANTED = patch_set(Patch.from_data(patch_of({(0, 0): -1.0}), "wanted"))


class FakeSwap:
    """Stands for a swap that is staged."""

    def __init__(self, old: Active, patches: PatchSet, *_: Any) -> None:
        self.old = old
        self.new = Active(patches, Plan(patches.id, (), 1), old.epoch + 1, before=old.patches)
        self.modules, self.changed, self.done = 1, ["tensor"], list[str]()

    def covered(self) -> list[str]:
        return self.changed

    def apply(self) -> None:
        self.done.append("apply")

    def verify(self) -> Verified:
        return Verified(3, {"no kernel": 1})

    def settle(self) -> None:
        self.done.append("settle")

    def restore(self) -> None:
        self.done.append("restore")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(remote, "Swap", FakeSwap)
    vllm_worker = SimpleNamespace(get_model=lambda: None)
    active = Active(PatchSet(), Plan("none", (), 0))
    surgery = WorkerSurgery(vllm_worker, active, writer=None, checkpoint=object(), cannot_swap=None)
    setattr(vllm_worker, STATE, surgery)
    return vllm_worker


def begin(worker: Any, token: str = "mine", **options: Any) -> dict[str, Any]:
    return step(worker, "begin", token, patches=WANTED.to_data(), **{"if_epoch": None, **options})


def staged(worker: Any, token: str = "mine") -> dict[str, Any]:
    begin(worker, token)
    return until(lambda: step(worker, "poll", token), lambda told: told.get("done") is not False, every=0.001)


def test_a_swap_from_begin_to_commit(worker: Any) -> None:
    told = staged(worker)
    assert {key: told[key] for key in ("ok", "previous", "epoch", "units", "modules")} == {
        "ok": True, "previous": "none", "epoch": 0, "units": 1, "modules": 1,
    }  # fmt: skip
    assert step(worker, "apply", "mine")["ok"]
    told = step(worker, "verify", "mine")
    assert (told["verified"], told["unverified"]) == (3, {"no kernel": 1})
    assert step(worker, "commit", "mine")["ok"]
    assert (report(worker)["id"], report(worker)["epoch"]) == (WANTED.id, 1)


def test_every_answer_is_plain_data(worker: Any) -> None:
    answers = [staged(worker), step(worker, "apply", "mine"), report(worker), step(worker, "nothing", "mine")]
    assert json.loads(json.dumps(answers)) == answers


def test_until_the_commit_the_old_patches_are_active(worker: Any) -> None:
    staged(worker)
    step(worker, "apply", "mine")
    assert report(worker)["id"] == "none"
    step(worker, "restore", "mine")
    assert (report(worker)["id"], report(worker)["epoch"]) == ("none", 0)


def test_a_commit_can_be_undone_until_the_next_swap(worker: Any) -> None:
    staged(worker)
    step(worker, "commit", "mine")
    assert step(worker, "restore", "mine")["ok"]
    assert (report(worker)["id"], report(worker)["epoch"]) == ("none", 0)


def test_after_a_commit_the_next_swap_may_begin(worker: Any) -> None:
    staged(worker)
    step(worker, "commit", "mine")
    assert begin(worker, "yours")["ok"]
    assert not step(worker, "restore", "mine")["ok"]


def test_two_swaps_at_once_are_a_conflict(worker: Any) -> None:
    staged(worker)
    assert begin(worker, "yours") == {"ok": False, "kind": "ConflictError", "error": "another swap is running"}
    step(worker, "discard", "yours")
    assert step(worker, "apply", "mine")["ok"], "a stranger's discard must not end a swap"


def forgotten(worker: Any, seconds: float = remote.LEASE_SECONDS) -> FakeSwap:
    """Nobody has been heard of for so long; the swap that they led."""
    staging = getattr(worker, STATE)._staging
    staging.used -= seconds
    made: FakeSwap = staging.swap()
    return made


def test_a_swap_whose_leader_is_gone_makes_room(worker: Any) -> None:
    staged(worker)
    forgotten(worker)
    assert begin(worker, "yours")["ok"]
    assert not step(worker, "apply", "mine")["ok"]
    assert step(worker, "restore", "mine")["ok"], "nothing was written, so nothing is mixed"


def test_what_a_leader_that_is_gone_had_written_is_undone_first(worker: Any) -> None:
    staged(worker)
    step(worker, "apply", "mine")
    swap = forgotten(worker)
    assert begin(worker, "yours")["ok"]
    assert swap.done == ["apply", "restore"]


def test_a_leader_that_is_heard_of_keeps_its_swap(worker: Any) -> None:
    staged(worker)
    forgotten(worker, remote.LEASE_SECONDS - 1)
    step(worker, "poll", "mine")
    forgotten(worker, remote.LEASE_SECONDS - 1)
    assert begin(worker, "yours")["error"] == "another swap is running"


def test_a_halted_worker_says_why_it_takes_no_swap(worker: Any) -> None:
    staged(worker)
    step(worker, "apply", "mine")
    step(worker, "halt", "mine")
    assert begin(worker, "yours")["error"] == remote.MIXED


def test_a_discarded_swap_makes_room(worker: Any) -> None:
    staged(worker)
    step(worker, "discard", "mine")
    assert begin(worker, "yours")["ok"]


@pytest.mark.parametrize("name", ["poll", "apply", "verify", "commit", "restore"])
def test_no_step_without_a_begin(worker: Any, name: str) -> None:
    assert step(worker, name, "mine")["error"] == "this swap is not the one that is staged here"


def test_a_stale_epoch_is_a_conflict(worker: Any) -> None:
    told = begin(worker, if_epoch=3)
    assert (told["kind"], told["error"]) == (
        "ConflictError", "the epoch is 0, not 3: patches were swapped in between",
    )  # fmt: skip
    assert begin(worker, if_epoch=0)["ok"]


def test_what_can_not_swap_says_why(worker: Any) -> None:
    getattr(worker, STATE).cannot_swap = "weights are offloaded"
    assert begin(worker) == {"ok": False, "kind": "CannotSwapError", "error": "weights are offloaded"}


def test_a_worker_without_the_plugin_says_so() -> None:
    told = step(object(), "begin", "mine", patches=[], if_epoch=None)
    assert told["error"] == "the plugin did not see this model being loaded"


def test_what_staging_failed_with_is_told_when_asked(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MismatchError("wanted", "edits[0]", "out of range")

    monkeypatch.setattr(remote, "Swap", fails)
    told = staged(worker)
    assert (told["ok"], told["kind"], told["error"]) == (False, "MismatchError", "wanted: edits[0]: out of range")


def test_a_step_of_no_name_does_not_raise(worker: Any) -> None:
    assert step(worker, "dance", "mine") == {"ok": False, "kind": "failed", "error": "KeyError: 'dance'"}


def test_halted_in_a_process_that_is_not_vllms_it_computes_no_more(worker: Any) -> None:
    assert step(worker, "halt", "mine")["ok"]
    with pytest.raises(MixedWeightsError, match=r"^weights are mixed after a failed swap$"):
        worker.execute_model("a batch")
    assert report(worker)["cannot_swap"] == "weights are mixed after a failed swap"


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("another"),
        CannotSwapError("why"),
        MismatchError("file", "place", "detail"),
        PatchError("file", "place", "detail"),
        CheckpointError("gone"),
        SurgeryError("too large"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_user_caused_crosses_processes_unchanged(error: SurgeryError) -> None:
    back = error_of(json.loads(json.dumps(failure_of(error))), "rank 1")
    assert (type(back), str(back)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("disk\non fire"), "rank 1: OSError: disk on fire"),
        (EngineError("only part was loaded"), "rank 1: only part was loaded"),
    ],
    ids=["unforeseen", "engine"],
)
def test_what_a_machine_caused_names_the_rank(error: Exception, message: str) -> None:
    assert str(error_of(failure_of(error), "rank 1")) == message


def test_a_worker_remembers_what_it_held_before(worker: Any) -> None:
    assert step(worker, "before", "")["patches"] is None
    staged(worker)
    for name in ("apply", "verify", "commit"):
        step(worker, name, "mine")
    told = step(worker, "before", "")
    assert (told["patches"], told["epoch"]) == ([], 1)
    step(worker, "restore", "mine")
    assert step(worker, "before", "")["patches"] is None
