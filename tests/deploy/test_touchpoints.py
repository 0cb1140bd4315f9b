# SPDX-License-Identifier: Apache-2.0
"""The static check of touch points: it tells what a vLLM has from its sources, and the stored table is right."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.touchpoints import __main__ as command
from deploy.touchpoints import columns, table
from deploy.touchpoints.columns import Finding, Spot, all_spots, column_of, compare, offered, spots
from deploy.touchpoints.sources import Definition, Outside, Sources, SourcesError
from deploy.touchpoints.table import minor_of, newest, read_table
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.touchpoints import TouchPoint

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {
    "__init__.py": "",
    "a.py": """
from vllm.b import helper, Base as Other
from .inner import *
if True:
    def branched(x): return x
try:
    import numpy
except ImportError:
    numpy = None
alias = helper
declared: int
class Owner(Other, torch.nn.Module):
    kind: str
    def __init__(self, size):
        self.size = self.both = size
        self.register_parameter("weight", None)
    async def work(self, first, second=None, *, third, fourth=4, **more):
        '''Says what it does.'''
        # why
        return first
    @property
    def shape(self): return 1
Owner.loose = 1
""",
    "b.py": """
def helper(x): return x
class Base:
    def inherited(self, x): return x
""",
    "inner/__init__.py": "from vllm.inner.deep import starred\n",
    "inner/deep.py": "def starred(): return 1\n",
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Sources]:
    def make(**changed: str) -> Sources:
        files = {**FILES, **{f"{name}.py": text for name, text in changed.items()}}
        place = tmp_path / f"{len([*tmp_path.iterdir()])}.whl"
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(f"vllm/{name}", text)
        return Sources(place)

    return make


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("helper", "def (x)"),
        ("alias", "def (x)"),
        ("branched", "def (x)"),
        ("starred", "def ()"),
        ("declared", "attribute"),
        ("Owner", "class"),
        ("Owner.work", "async def (self, first, second=, *, third, fourth=, **more)"),
        ("Owner.inherited", "def (self, x)"),
        ("Owner.shape", "property"),
        *((f"Owner.{name}", "attribute") for name in ("kind", "size", "both", "weight")),
    ],
)
def test_names_are_followed_as_python_would(make: Callable[..., Sources], path: str, told: str) -> None:
    assert columns._told(make(), Spot("vllm.a", path, of_objects=True)) == told


@pytest.mark.parametrize("path", ["absent", "helper.inside", "Owner.kind.inside", "Owner.forward"])
def test_what_is_not_there_is_told(make: Callable[..., Sources], path: str) -> None:
    assert make().find("vllm.a", path) is None
    assert make().find("vllm.absent", path) is None


def test_names_of_other_packages_lead_outside(make: Callable[..., Sources]) -> None:
    sources = make(c="from torch import Tensor\nfrom vllm.c import circle\n")
    assert sources.find("vllm.c", "Tensor") == Outside("torch.Tensor")
    assert sources.find("vllm.c", "circle") is None


WORK = TouchPoint("vllm.a", "Owner.work", "testing", ("first", "third"))


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One touch point and one attribute are all that is needed."""
    size = Attributes("vllm.a", "Owner", "testing", names=("size",))
    monkeypatch.setattr(columns, "all_spots", lambda: {each.key: each for p in (WORK, size) for each in spots(p)})


def verdict(sources: Sources, known: dict[str, str | None]) -> Finding:
    return next(finding for finding in compare(sources, known) if finding.key == "vllm.a.Owner.work")


@pytest.mark.usefixtures("needed")
@pytest.mark.parametrize(
    ("before", "after", "expected", "detail"),
    [
        ("", "", "same", ""),
        ("'''Says what it does.'''", "'''Says it anew.'''\n\n", "same", ""),
        ("return first", "return second", "body changed", ""),
        ("fourth=4", "fifth=5", "signature changed", "third, fourth=, **more) became async def (self, first"),
        ("third, ", "", "unfit", "takes no third"),
        ("def work", "def labour", "gone", ""),
        ("size = self.both", "both", "same", ""),
    ],
)
def test_a_touch_point_is_compared_with_what_is_known(
    make: Callable[..., Sources], before: str, after: str, expected: str, detail: str
) -> None:
    known = column_of(make())
    found = verdict(make(a=FILES["a.py"].replace(before, after)), known)
    assert found.verdict == expected
    assert detail in found.detail


@pytest.mark.usefixtures("needed")
def test_where_it_moved_to_is_told(make: Callable[..., Sources]) -> None:
    known = column_of(make())
    moved = make(a="", moved=FILES["a.py"].replace("from .inner", "from vllm.inner"))
    assert verdict(moved, known) == Finding("vllm.a.Owner.work", "moved", "to vllm.moved")


@pytest.mark.usefixtures("needed")
def test_a_lost_attribute_is_gone_and_one_that_was_unknown_is_back(make: Callable[..., Sources]) -> None:
    without = make(a=FILES["a.py"].replace("self.size = self.both", "self.both"))
    known = column_of(without)
    assert Finding("vllm.a.Owner.size", "gone") in compare(without, column_of(make()))
    assert known["vllm.a.Owner.size"] is None
    assert Finding("vllm.a.Owner.size", "back", "attribute") in compare(make(), known)


def test_a_function_that_moved_is_found(make: Callable[..., Sources]) -> None:
    sources = make(b="class Base: ...\n", c="def helper(y): return y\n")
    assert columns._lost(sources, Spot("vllm.b", "helper")) == Finding("vllm.b.helper", "moved", "to vllm.c")


def installed() -> Sources:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    return Sources(Path(found.origin).parents[1])


def test_the_installed_vllm_agrees_with_its_column() -> None:
    from vllm import __version__

    column = read_table().get(minor_of(__version__))
    assert column is not None, f"the table knows no {minor_of(__version__)}: python -m deploy.touchpoints WHEEL --store"
    assert column_of(installed()) == column


def test_the_static_check_finds_what_python_finds() -> None:
    sources = installed()
    for offer in OFFERS.values():
        for point in offer.points():
            found = all(columns._fits(sources, spot) for spot in spots(point))
            assert found == point.there, f"{point.module}.{point.path}"


def test_the_table_knows_every_touch_point_of_every_version() -> None:
    for minor, column in read_table().items():
        assert {*column} == {*all_spots()}, f"{minor}: python -m deploy.touchpoints WHEEL --store {minor}"


def test_of_the_newest_version_nothing_is_lost() -> None:
    stored = read_table()
    assert newest(stored) == "0.33"
    assert [key for key, told in stored["0.33"].items() if told is None] == []


def test_versions_are_in_order_of_their_numbers() -> None:
    assert newest({"0.9": {}, "0.10": {}}) == "0.10"
    assert minor_of("0.32.1rc1") == "0.32"
    with pytest.raises(SourcesError, match=r"^main is no version such as 0\.32$"):
        minor_of("main")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["touchpoints", *words])
        code = command.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def wheel_of(sources: Sources) -> str:
    return str(sources._root.root.filename)  # type: ignore[union-attr]


def test_a_vllm_that_lacks_everything_is_told_by_the_exit_code(
    make: Callable[..., Sources], run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = run(wheel_of(make()))
    assert code == 1
    assert "gone               vllm.engine.arg_utils.EngineArgs.create_engine_config" in out
    assert "against 0.33: " in out
    assert {f"lost: {name}" for name in OFFERS} <= {*out.splitlines()}


def test_the_installed_vllm_is_the_one_that_it_is(run: Callable[..., tuple[int, str, str]]) -> None:
    from vllm import __version__

    found = importlib.util.find_spec("vllm")
    assert found is not None
    folder = str(Path(str(found.origin)).parents[1])
    code, out, _ = run(folder, "--against", minor_of(__version__), "--json")
    told: dict[str, Any] = json.loads(out)
    assert code == 0
    assert {verdict for verdict, _ in told["touch_points"].values()} == {"same"}
    assert told["offers"] == dict.fromkeys(OFFERS, True)


def test_a_column_is_stored(
    make: Callable[..., Sources],
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = make()
    monkeypatch.setattr(table, "TABLE", tmp_path / "table.json")
    assert run(wheel_of(sources), "--store", "9.10.1")[0] == 0
    assert run(wheel_of(sources), "--store", "9.9.0")[0] == 0
    assert [*read_table()] == ["9.9", "9.10"]
    assert read_table()["9.9"] == column_of(sources)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.whl"], r"error: .*absent\.whl"),
        ([__file__], "File is not a zip file"),
        ([str(Path(__file__).parent)], "has no package vllm"),
    ],
)
def test_what_can_not_be_read_is_told_in_a_line(
    run: Callable[..., tuple[int, str, str]], words: list[str], said: str
) -> None:
    import re

    code, out, error = run(*words)
    assert (code, out) == (2, "")
    assert re.search(said, error)
    assert error.count("\n") == 1


def test_an_unknown_version_to_compare_with_is_refused(
    make: Callable[..., Sources], run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, error = run(wheel_of(make()), "--against", "0.1")
    assert (code, error) == (2, f"error: 0.1 is not in the table, which has {', '.join(read_table())}\n")


def test_a_version_is_downloaded_without_what_it_needs(
    make: Callable[..., Sources], run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = Path(wheel_of(make()))
    asked: list[list[str]] = []

    class Done:
        returncode = 0

    def pip(arguments: list[str], **_: Any) -> Done:
        asked.append(arguments)
        Path(arguments[arguments.index("--dest") + 1], "vllm-9.9.9.whl").write_bytes(wheel.read_bytes())
        return Done()

    monkeypatch.setattr(command.subprocess, "run", pip)
    assert run("9.9.9")[0] == 1
    assert asked[0][-1] == "vllm==9.9.9"
    assert "--no-deps" in asked[0]


def test_one_that_can_not_be_downloaded_is_told(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done:
        returncode = 1

    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: Done())
    code, _, error = run("9.9.9")
    assert code == 2
    assert error.splitlines()[-1] == "error: vllm==9.9.9 can't be downloaded; pip's own words are above"


def test_definitions_name_their_module(make: Callable[..., Sources]) -> None:
    found = make().find("vllm.a", "Owner.inherited")
    assert isinstance(found, Definition)
    assert (found.module, found.owner) == ("vllm.b", "Base")
    assert offered(make()) == dict.fromkeys(OFFERS, False)
