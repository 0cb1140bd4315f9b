# SPDX-License-Identifier: Apache-2.0
"""Every command of the pages for people who bring something, run in order on small models; its output where one is shown.

``cat FILE`` writes the file that the page shows. Servers aren't started: what `serve` would serve is planned for the
model, and `swap` talks to a stand-in. Eight digits of an id, and the models' folders, differ from machine to machine.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.test_client import REPORT, FakeServer
from tests.hub import Hub, serving
from tests.models import edit_by_hand
from tests.offline.test_pruned import pruned
from vllm_surgery import ModelFolder
from vllm_surgery.cli import main
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
COUNTS = {"noloop-checkpoint.md": 10, "expert-profile.md": 18}
"""How many commands each page has, so that none is overlooked."""


def steps(page: str) -> list[tuple[str, str]]:
    """The commands of a page, each with what it shows as its output."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall((DOCS / page).read_text()):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            found.append((command, output))
    return found


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    made.answers["/v1/surgery"] = (200, REPORT)
    yield made
    made.stop()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(repository="ORG/NAME", files={"README.md": b"# A model\n"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of what `serve` was asked for, each of which fits its model."""
    ids: list[str] = []

    def serve(patches: Any, rest: list[str], **_: Any) -> None:
        check_patches(patches, ModelFolder(rest[0]))
        ids.append(patches.id)

    monkeypatch.setattr("vllm_surgery.engine.serve.serve", serve)
    monkeypatch.setattr("vllm_surgery.cli.serve.require_vllm", lambda _command: None)
    return ids


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family_model: Callable[[str], Path]) -> Path:
    """A folder with the models that the pages name."""
    monkeypatch.chdir(tmp_path)
    base, experts = family_model("Llama"), family_model("Qwen3Moe")
    (tmp_path / "BASE").symlink_to(base)
    (tmp_path / "MODEL").symlink_to(experts)
    edit_by_hand(base, tmp_path / "EDITED", {(3, 1): 0.5, (11, 7): -1.0})
    pruned(experts, tmp_path / "PRUNED")
    return tmp_path


@pytest.mark.parametrize("page", COUNTS)
@pytest.mark.usefixtures("work", "hub")
def test_every_command_does_what_the_page_says(
    page: str, server: FakeServer, served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = steps(page)
    assert len(commands) == COUNTS[page]
    for command, shown in commands:
        if command.startswith("cat "):
            Path(command.removeprefix("cat ")).write_text(shown)
            continue
        words = shlex.split(command)
        assert words[0] == "vllm-surgery"
        more = ["--url", server.url] if words[1] == "swap" else []
        assert main([*words[1:], *more]) == 0, (command, capsys.readouterr().err)
        printed = re.sub(r"@[0-9a-f]{8}\b", "@ID", capsys.readouterr().out)
        assert not shown or printed == shown, command
    assert all(served)
    assert len(served) == sum(command.startswith("vllm-surgery serve") for command, _ in commands)
