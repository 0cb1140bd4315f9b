# SPDX-License-Identifier: Apache-2.0
"""What is written aside is there whole, or as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.examples import refusal
from vllm_surgery import SurgeryError, UsageError
from vllm_surgery.atomic_files import atomic_folder, atomic_write, check_target, locked_folder


def test_it_takes_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with atomic_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "x"


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_folders_above_are_gone_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "a" / "b" / "out"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_folders_above_that_somebody_uses_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "other").write_text("x")
        raise ValueError("mine")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_what_another_process_writes_now_is_not_cleared(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "out"):
            raise ValueError("mine")
        assert (folder / "file").exists()


def test_what_a_killed_process_left_behind_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished-x"
    (left / "folder").mkdir(parents=True)
    (left / "lock").write_bytes(b"")
    with atomic_folder(tmp_path / "out"):
        assert not left.exists()


def test_a_place_that_cant_be_looked_at_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(SurgeryError, match=r"out: can't be written: Permission denied; nothing was left behind$"):
        check_target(tmp_path / "out", tmp_path / "model", "why")


def test_a_file_written_whole_takes_the_place_of_the_old_one_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, "old")
    assert file.stat().st_mode & 0o777 == 0o644
    file.chmod(0o600)
    atomic_write(file, "new \u00e9")
    assert file.read_text(encoding="utf-8") == "new \u00e9"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "link", tmp_path / "far" / "file"
    link.symlink_to("far/file")
    for content in ("new", "newer"):
        atomic_write(link, content)
        assert link.is_symlink()
        assert file.read_text() == content
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_pipe_stays_one_and_is_written_to(tmp_path: Path) -> None:
    """As does a device: a file in place of ``/dev/null`` would be everybody's loss."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        atomic_write(pipe, "content")
        assert read.result(timeout=60) == "content"
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_one_writers_at_a_time(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "out", "mine"):
        other = locked_folder(tmp_path / "out", "another evaluation writes into it")
        assert refusal(other.__enter__, UsageError) == f"{tmp_path}/out: another evaluation writes into it"
    with locked_folder(tmp_path / "out", "nobody does any more"):
        pass


def test_a_lock_ends_with_its_process_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys, time\n"
        "from vllm_surgery.atomic_files import locked_folder\n"
        "with locked_folder(pathlib.Path(sys.argv[1]), 'mine'):\n"
        "    if not os.fork():\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            other = locked_folder(tmp_path, "the parent has it")
            assert refusal(other.__enter__, UsageError).endswith("the parent has it")
            parent.kill()
            parent.wait()
            with locked_folder(tmp_path, "the child has it"):
                pass
        finally:
            parent.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cant_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/out: Not a directory"), locked_folder(tmp_path / "file" / "out", ""):
        pass


def test_a_circle_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(SurgeryError, match=r"out: can't be written: .*loop"):
        check_target(tmp_path / "out", tmp_path / "model", "why")


def test_a_file_that_cant_take_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        atomic_write(tmp_path / "taken", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
