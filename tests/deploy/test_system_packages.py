# SPDX-License-Identifier: Apache-2.0
"""Programs for tests are installed where that may be done, and nothing fails where it can't. apt is played."""

from __future__ import annotations

import pytest

from deploy import system_packages

ALL = {"apt-get", "prometheus", "promtool", "kubectl", "chromium", "chromedriver"}


class Machine:
    """What is on a machine, and what its apt can do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, programs: set[str], user: int = 0) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.fails = lambda arguments: False
        monkeypatch.setattr(system_packages.shutil, "which", lambda name: name if name in programs else None)
        monkeypatch.setattr(system_packages.os, "geteuid", lambda: user)
        monkeypatch.setattr(system_packages, "apt", self.apt)

    def apt(self, *arguments: str) -> bool:
        self.commands.append((arguments[0], arguments[-1]))
        return not self.fails(arguments)


def test_nothing_is_done_where_all_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, ALL)
    system_packages.main()
    assert (machine.commands, capsys.readouterr().out) == ([], "")


def test_what_is_missing_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, ALL - {"prometheus", "promtool"})
    system_packages.main()
    assert machine.commands == [("install", "prometheus")]


def test_new_lists_are_fetched_where_the_old_ones_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, ALL - {"chromium"})
    machine.fails = lambda arguments: arguments[0] == "install" and len(machine.commands) == 1
    system_packages.main()
    assert machine.commands == [("install", "chromium"), ("update", "update"), ("install", "chromium")]


@pytest.mark.parametrize(
    ("programs", "user", "reason"),
    [({"apt-get"}, 1000, "since only root may"), (set(), 0, "since there is no apt")],
)
def test_it_says_why_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], programs: set[str], user: int, reason: str
) -> None:
    machine = Machine(monkeypatch, programs, user)
    system_packages.main()
    assert machine.commands == []
    assert capsys.readouterr().out == (
        "[system-packages] chromium and chromium-driver and kubernetes-client and prometheus not installed, "
        f"{reason}: tests that need them will be skipped\n"
    )


def test_a_package_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, {"apt-get"})
    machine.fails = lambda arguments: arguments[-1] == "chromium"
    system_packages.main()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "[system-packages] chromium can't be installed: tests that need them will be skipped"
    )
