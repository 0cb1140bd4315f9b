# SPDX-License-Identifier: Apache-2.0
"""The pages for people who bring a direction or a GGUF file: their commands run, and do what the pages say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.directions import unit
from tests.gguf_files import BLOCKS, FLOATS, WITHOUT_SCALE, write_gguf
from tests.models import HIDDEN, WIDTH, patch_of
from vllm_surgery import Patch
from vllm_surgery.cli import main
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parents[2] / "docs"
NEED_A_SERVER = {"serve", "swap"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of every command on a page but those that need a server."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    found = [shlex.split(line.removeprefix("$ vllm-surgery "), comments=True) for line in lines]
    return [words for words in found if words[0] not in NEED_A_SERVER]


def test_the_page_on_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    family_model: Callable[[str], Path],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save("direction.npy", 3 * unit(HIDDEN))
    (code,), (patch,) = blocks("directions.md", "python"), blocks("directions.md", "yaml")
    names: dict[str, Any] = {}
    exec(compile(code, "directions.md", "exec"), names)
    Path("loops.yaml").write_text(patch.replace("SHA256", capsys.readouterr().out.strip()))
    before = load_patch("loops.yaml")

    found = commands("directions.md")
    assert [words[0] for words in found] == ["check", "seal", "bake", "diff", "export-lora"]
    model = str(family_model("Llama"))
    for words in found:
        assert main([model if word == "MODEL" else word for word in words]) == 0, words
    assert columns(load_patch("found.yaml")) == columns(before)


def columns(patch: Patch) -> dict[tuple[int, int], Any]:
    """What becomes of each neuron."""
    return {(item.layer, index): item.effect for item in patch.assignments() for index in item.resolve(WIDTH)}


def test_the_page_on_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the gguf package writes the file")
    monkeypatch.chdir(tmp_path)
    write_gguf(Path("model.gguf"))
    wanted = patch_of({(0, 3): -1.0, (1, 4): 0.0})
    Path("my.yaml").write_text(Patch.from_data(wanted).to_yaml())
    Path("sealed.yaml").write_text(Patch.from_data({**wanted, "seal": {"neurons/0/3": "3f" * 32}}).to_yaml())

    found = commands("gguf.md")
    assert [words[0] for words in found] == ["bake", "diff", "bake"]
    for words in found:
        assert main(words) == 0, words
    assert load_patch("found.yaml").to_data()["edits"] == wanted["edits"]
    assert Path("other.gguf").read_bytes() == Path("patched.gguf").read_bytes()


def test_the_table_of_types_names_those_that_are_tested() -> None:
    section = (DOCS / "gguf.md").read_text().split("## Which types hold what")[1].split("## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    held = {word for row in rows[:-1] for word in row.split("|")[1].strip().split(", ")}
    refused = set(rows[-1].split("|")[1].strip().split(", "))
    assert held == {*FLOATS, *BLOCKS}
    assert refused >= {*WITHOUT_SCALE}
