# SPDX-License-Identifier: Apache-2.0
"""The board: an API server's process knows from it what is offered, and several of one server know the same.

A request's answer says its patch before the engine has seen it, so each process resolves names and defaults itself.
Where several share a server, they share a file: whoever changes the slots writes it before it answers, and each looks
at it before it admits a request. The engine has the last word: what is in no slot is refused there.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.engine.requests.choice import Offer
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

BOARD = "_vllm_surgery_board"
"""The attribute of vLLM's `InputProcessor` that keeps the `Board` of its process."""


class Board:
    """The offer as it is now.

    Args:
        offer: at the start.
        file: shared with the other processes of this server; None where there are none.
    """

    def __init__(self, offer: Offer, file: Path | None = None) -> None:
        self._offer, self._file = offer, file
        self._mark: tuple[int, int] | None = None

    def offer(self) -> Offer:
        """The offer, as far as this process can know."""
        if self._file is not None:
            self._read(self._file)
        return self._offer

    def publish(self, offer: Offer) -> None:
        """Tells this process and the others. Nothing happens where a later epoch is known already."""
        if offer.epoch < self.offer().epoch:
            return
        self._offer = offer
        if self._file is not None:
            atomic_write(self._file, json.dumps(offer.to_data()))

    def _read(self, file: Path) -> None:
        try:
            status = file.stat()
        except FileNotFoundError:  # Nobody has changed anything yet.
            return
        mark = (status.st_ino, status.st_mtime_ns)
        if mark == self._mark:
            return
        found = Offer.from_data(json.loads(file.read_bytes()))
        if found.epoch >= self._offer.epoch:
            self._offer = found
        self._mark = mark


def shared_file(processes: int, started_by: Callable[[], str]) -> Path | None:
    """The file that the API processes of one server share, in a folder of this user alone; None for a single process.

    Args:
        processes: how many there are.
        started_by: names what started them all, differently for each start of a server.

    Raises:
        EngineError: the folder is somebody else's.
    """
    if processes == 1:
        return None
    folder = Path(tempfile.gettempdir()) / f"vllm-surgery-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise EngineError("the folder that API processes share their slots through isn't this user's alone")
    return folder / f"{started_by()}.json"


def launcher() -> str:
    """The process that started this one, and when it was started itself."""
    psutil = importlib.import_module("psutil")  # vLLM brings it.
    parent = psutil.Process(os.getppid())
    return f"{parent.pid}-{parent.create_time():.2f}"
