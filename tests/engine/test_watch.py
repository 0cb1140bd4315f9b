# SPDX-License-Identifier: Apache-2.0
"""A server that follows its patch file, with an API key, in two API processes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.server import SMALL, running_server
from tests.models import patch_of
from tests.waiting import until
from vllm_surgery import Patch, UsageError
from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.client.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllm_surgery.client.protocol import ServerState

pytestmark = pytest.mark.engine

KEY = "secret"
FIRST, SECOND, THIRD = (patch_of({(0, index): -1.0}, name) for index, name in enumerate(("first", "second", "third")))
OPTIONS = ("--skip-tokenizer-init", "--max-model-len", "256", "--dtype", "float32", "--api-server-count", "2")


def id_of(patch: dict[str, Any]) -> str:
    return Patch.from_data(patch).id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Kubernetes mounts a ConfigMap."""
    made = tmp_path_factory.mktemp("config")
    publish(made, "1", FIRST)
    (made / "wanted.json").symlink_to("..data/wanted.json")
    return made


def publish(folder: Path, version: str, patch: object) -> None:
    """A new content of the ConfigMap: a new folder, to which the link is flipped."""
    (folder / f"..{version}").mkdir()
    (folder / f"..{version}" / "wanted.json").write_text(json.dumps(patch))
    (folder / "..data_tmp").symlink_to(f"..{version}")
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path], folder: Path
) -> Iterator[SurgeryClient]:
    watch = ("--patch", str(folder / "wanted.json"), "--watch", "--patch-dir", str(folder), "--api-key", KEY)
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, *watch)
    with running_server(tmp_path_factory.mktemp("watch"), *arguments) as server:
        yield SurgeryClient(server.url, KEY)


def await_state(client: SurgeryClient, reached: Callable[[ServerState], bool]) -> ServerState:
    return until(client.state, reached)


def states(client: SurgeryClient) -> list[ServerState]:
    """Asked often enough that both processes answer: each request comes over a new connection."""
    return [client.state() for _ in range(12)]


def test_it_starts_with_what_the_file_says(client: SurgeryClient) -> None:
    assert {(state.active, state.desired.id, state.epoch) for state in states(client)} == {(id_of(FIRST),) * 2 + (0,)}
    assert all(state.watching for state in states(client))


def test_nobody_gets_in_without_the_key(client: SurgeryClient) -> None:
    for key in (None, "wrong"):
        stranger = SurgeryClient(client.url, key)
        for ask in (stranger.state, stranger.patches, lambda stranger=stranger: stranger.swap([])):
            with pytest.raises(UsageError, match="API key"):
                ask()


def test_a_flipped_link_is_swapped_in_once(client: SurgeryClient, folder: Path) -> None:
    before = client.state()
    publish(folder, "2", SECOND)
    await_state(client, lambda state: state.active == id_of(SECOND))
    time.sleep(3)
    assert {(state.active, state.epoch) for state in states(client)} == {(id_of(SECOND), before.epoch + 1)}


def test_a_wrong_file_changes_nothing_and_is_told(client: SurgeryClient, folder: Path) -> None:
    before = client.state()
    publish(folder, "3", {"version": 1})
    after = await_state(client, lambda state: state.desired.error is not None)
    assert (after.active, after.epoch, after.desired.id) == (before.active, before.epoch, None)
    assert after.desired.error == "wanted.json is refused; the server's log says why"


def test_a_swap_by_hand_holds_until_the_file_changes(client: SurgeryClient, folder: Path) -> None:
    assert client.swap([THIRD]).id == id_of(THIRD)
    time.sleep(3)
    assert {state.active for state in states(client)} == {id_of(THIRD)}
    publish(folder, "4", FIRST)
    await_state(client, lambda state: state.active == id_of(FIRST))


def test_the_followed_file_can_be_asked_for_by_name_too(client: SurgeryClient) -> None:
    assert [(item.name, item.id) for item in client.patches().patches] == [("wanted", id_of(FIRST))]
    client.swap([])
    assert client.swap(["wanted"]).id == id_of(FIRST)


def test_swaps_of_both_processes_are_counted_together(client: SurgeryClient) -> None:
    done = [swaps for swaps in Traffic.of(client.metrics()).swaps if swaps.result == "done"]
    assert {swaps.patch: swaps.count for swaps in done} == {
        id_of(FIRST): 2,
        id_of(SECOND): 1,
        id_of(THIRD): 1,
        "none": 1,
    }
    assert all(swaps.mean_seconds is not None and swaps.mean_seconds > 0 for swaps in done)


def test_the_page_for_people_needs_no_key_since_it_tells_nothing(client: SurgeryClient) -> None:
    page = httpx.get(f"{client.url}/surgery", timeout=None)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert id_of(FIRST) not in page.text
