# SPDX-License-Identifier: Apache-2.0
"""A server that follows files: what it swaps to, when, and what it says when it can't."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, zero
from vllm_surgery.engine.file_watcher import LONGEST_WAIT_SECONDS, FileWatcher
from vllm_surgery.errors import (
    CannotSwapError,
    ConflictError,
    EngineError,
    MismatchError,
    MixedWeightsError,
    SwapFailedError,
)
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.watched_files import WatchedFiles

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.patch.patch_set import PatchSet

A, B, C = (patch_data(zero({"1": [index]}), name=name) for index, name in enumerate("abc"))


def id_of(patch: dict[str, Any]) -> str:
    return Patch.from_data(patch).id


@dataclass
class Server:
    """Serves whatever it is swapped to, or fails as it is told to."""

    active: str
    fails: list[Exception] = field(default_factory=list)
    status_fails: list[Exception] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    async def status(self) -> Server:
        if self.status_fails:
            raise self.status_fails.pop(0)
        return self

    async def swap(self, patches: PatchSet) -> None:
        self.tried.append(patches.id)
        if self.fails:
            raise self.fails.pop(0)
        self.active = patches.id


class Following:
    """A watcher, the file that it follows, and the time of which it knows."""

    def __init__(self, file: Path) -> None:
        self.file, self.time = file, 0.0
        self.write(A)
        self.files, self.server = WatchedFiles([file]), Server(id_of(A))
        self.watcher = FileWatcher(self.files, self.server, logging.getLogger("test"), 1.0, lambda: self.time)

    def write(self, patch: object) -> None:
        self.file.write_text(patch if isinstance(patch, str) else json.dumps(patch))

    def look(self, times: int = 2, seconds: float = 0.0) -> None:
        async def repeatedly() -> None:
            for _ in range(times):
                self.time += seconds
                await self.watcher.look()

        asyncio.run(repeatedly())

    @property
    def error(self) -> str | None:
        return self.watcher.error_of(self.files.read())


@pytest.fixture
def following(tmp_path: Path) -> Following:
    made = Following(tmp_path / "p.yaml")
    made.look(3)
    return made


def test_what_the_server_was_started_with_needs_no_swap(following: Following) -> None:
    assert following.server.tried == []


def test_an_edit_made_while_the_model_was_loading_is_swapped_in(tmp_path: Path) -> None:
    following = Following(tmp_path / "p.yaml")
    following.write(B)
    following.look()
    assert following.server.active == id_of(B)


def test_an_edit_is_swapped_in_once(following: Following) -> None:
    following.write(B)
    following.look(5)
    assert (following.server.active, following.server.tried) == (id_of(B), [id_of(B)])


def test_content_counts_once_it_stays(following: Following) -> None:
    """Whoever saves a file in two steps may leave a sound patch in between, with half of the edits."""
    following.write(B)
    following.look(1)
    following.write(C)
    following.look(1)
    assert following.server.tried == []
    following.look(1)
    assert following.server.tried == [id_of(C)]


def test_a_refused_file_changes_nothing_and_is_logged_once(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.write("version: 2\n")
    following.look(5)
    assert following.server.tried == []
    assert len(caplog.records) == 1
    assert "the watched files are refused, so nothing was changed: " in caplog.text


def test_another_wrong_content_is_logged_again(following: Following, caplog: pytest.LogCaptureFixture) -> None:
    for content in ("version: 2\n", "version: 3\n"):
        following.write(content)
        following.look(3)
    assert len(caplog.records) == 2


def test_a_missing_file_is_no_wish_for_no_patch(following: Following, caplog: pytest.LogCaptureFixture) -> None:
    following.file.unlink()
    following.look(5)
    assert (following.server.active, following.server.tried) == (id_of(A), [])
    assert len(caplog.records) == 1


def test_a_file_that_is_replaced_in_two_steps_makes_no_noise(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.file.unlink()
    following.look(1)
    following.write(B)
    following.look(2)
    assert (following.server.active, caplog.records) == (id_of(B), [])


def test_other_prose_is_no_other_patch(following: Following) -> None:
    following.write(A | {"description": "said better"})
    following.look(3)
    assert following.server.tried == []


def test_what_someone_else_swaps_in_stays_until_the_files_ask_for_something_new(following: Following) -> None:
    following.server.active = id_of(C)
    following.look(3)
    following.write("broken: [")
    following.look(3)
    following.write(A | {"description": "as before"})
    following.look(3)
    assert following.server.active == id_of(C)
    following.write(B)
    following.look(3)
    assert following.server.active == id_of(B)


@pytest.mark.parametrize(
    "error",
    [
        MismatchError("p.yaml", "edits[0]", "index 9 is out of range"),
        CannotSwapError("experts are balanced"),
        SwapFailedError("rank 1 failed"),
        MixedWeightsError("rank 1 failed twice"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_swap_that_is_refused_is_tried_once(
    following: Following, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    following.server.fails = [error]
    following.write(B)
    following.look(50, seconds=100)
    assert following.server.tried == [id_of(B)]
    assert (following.error, len(caplog.records)) == (str(error), 1)


def test_a_refused_seal_is_tried_again_when_it_alone_is_mended(following: Following) -> None:
    following.server.fails = [MismatchError("p.yaml", "seal", "doesn't match")]
    following.write(B | {"seal": {"neurons/1/1": "0" * 64}})
    following.look(3)
    following.write(B | {"seal": {"neurons/1/1": "1" * 64}})
    following.look(3)
    assert (following.server.active, following.error) == (id_of(B), None)


@pytest.mark.parametrize(
    "error", [ConflictError("another swap runs"), TimeoutError("no answer")], ids=lambda error: type(error).__name__
)
def test_a_swap_that_something_is_in_the_way_of_is_tried_again_and_logged_once(
    following: Following, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    following.server.fails = [error] * 3
    following.write(B)
    following.look(2)
    assert str(error) in (following.error or "")
    following.look(20, seconds=1)
    assert (following.server.active, following.error) == (id_of(B), None)
    assert (len(following.server.tried), len(caplog.records)) == (4, 1)


def test_an_engine_whose_state_is_unclear_is_asked_again(following: Following) -> None:
    following.server.status_fails = [EngineError("rank 1 serves other than rank 0")]
    following.write(B)
    following.look(10, seconds=1)
    assert following.server.active == id_of(B)


def test_the_waits_grow_up_to_a_bound(following: Following) -> None:
    following.server.fails = [ConflictError("another swap runs")] * 1000
    following.write(B)
    following.look(int(10 * LONGEST_WAIT_SECONDS), seconds=1)
    doublings = 6  # 2, 4, 8, 16, 32 and the bound's 60 seconds.
    assert len(following.server.tried) <= 10 + doublings
    before = len(following.server.tried)
    following.look(int(2 * LONGEST_WAIT_SECONDS), seconds=1)
    assert len(following.server.tried) >= before + 1


def test_new_content_need_not_wait(following: Following) -> None:
    following.server.fails = [ConflictError("another swap runs")]
    following.write(B)
    following.look(2)
    following.write(C)
    following.look(2)
    assert following.server.active == id_of(C)


def test_files_that_go_back_after_a_failure_are_served_whoever_swapped_meanwhile(following: Following) -> None:
    following.server.fails = [SwapFailedError("rank 1 failed")]
    following.write(B)
    following.look(2)
    following.server.active = id_of(C)
    following.write(A)
    following.look(2)
    assert following.server.active == id_of(A)


def test_an_error_belongs_to_its_content(following: Following) -> None:
    following.server.fails = [SwapFailedError("rank 1 failed")]
    following.write(B)
    following.look(2)
    assert following.error == "rank 1 failed"
    following.write(C)
    assert following.error is None


def test_it_runs_until_it_is_cancelled(following: Following) -> None:
    following.write(B)
    following.watcher._interval = 0.001

    async def run() -> None:
        task = asyncio.create_task(following.watcher.run())
        while following.server.active != id_of(B):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
