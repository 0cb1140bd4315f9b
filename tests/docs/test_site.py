# SPDX-License-Identifier: Apache-2.0
"""The documentation builds as a site without a warning, and all that it refers to exists."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.docs import prose
from tests.docs.prose import AT_THE_ROOT, PAGES, ROOT
from vllm_surgery.cli import _COMMANDS
from vllm_surgery.engine.metric_catalog import SPECS
from vllm_surgery.engine.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(out),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "serve" / "index.html").is_file()


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("[gone](gone.md)", "contains a link 'gone.md', but the target is not found"),
        ("[there](index.md#gone)", "contains a link 'index.md#gone', but there is no such anchor"),
    ],
)
def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path, line: str, warning: str) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Here\n\n{line}\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(yaml.safe_dump({**settings, "nav": [{"Home": "index.md"}]}))

    done = build(config, tmp_path / "site")

    assert done.returncode != 0
    assert warning in done.stderr


def test_what_a_page_refers_to_in_vain_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests.py").write_text("def here() -> None: ...\n")
    text = "# A B\n[1](page.md#a-b) [2](page.md#c) [3](gone.md) `tests/gone.py` tests.here tests.gone https://x.y/z\n"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(prose, "ROOT", tmp_path)

    assert prose.broken_links("page.md") == ["page.md#c", "gone.md"]
    assert prose.missing_paths("page.md") == ["tests/gone.py"]
    assert list(prose.missing_modules("page.md")) == ["tests.gone"]


@pytest.mark.parametrize("page", AT_THE_ROOT)
def test_links_of_pages_outside_of_the_site_lead_somewhere(page: str) -> None:
    assert prose.broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_are_there(page: str) -> None:
    assert [*prose.missing_paths(page), *prose.missing_modules(page)] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_the_examples_of_a_page_import_is_there(page: str) -> None:
    names = prose.imported_names(page)

    assert [(module, name) for module, name in names if not hasattr(import_module(module), name)] == []


def test_the_reference_has_every_command() -> None:
    rows = (ROOT / "docs" / "commands.md").read_text()
    names = [command.__name__.rpartition(".")[2].replace("_", "-").strip("-") for command in _COMMANDS]

    assert [name for name in names if f"| `vllm-surgery {name}" not in rows] == []


def test_the_reference_has_every_setting() -> None:
    rows = (ROOT / "docs" / "commands.md").read_text()

    assert [name for name in Settings.model_fields if name != "sources" and f"| `{name}` |" not in rows] == []


def test_the_page_on_metrics_has_every_metric() -> None:
    text = (ROOT / "docs" / "watch.md").read_text()

    assert [spec.name for spec in SPECS if spec.name not in text] == []
