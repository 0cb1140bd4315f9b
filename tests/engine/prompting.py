# SPDX-License-Identifier: Apache-2.0
"""Clients that ask models with planted loops for lists until they are told to stop."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import httpx

from tests.localization.chain import STARTS, prompt
from tests.localization.planted import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

_LATER = (36, 49, 62, 75) * 3
"""Starts of lists that never loop: three in eight."""


class Lists:
    """Keeps requests going at each server, most of them for lists that loop unless a patch prevents it.

    Args:
        urls: of the servers.
        model: as they call it.
        at_once: requests at each.
    """

    def __init__(self, urls: Sequence[str], model: str, at_once: int = 8) -> None:
        self._model, self._stop = model, threading.Event()
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(url, number), daemon=True)
            for url in urls
            for number in range(at_once)
        ]

    def __enter__(self) -> Lists:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, url: str, first: int) -> None:
        starts = itertools.islice(itertools.cycle([*STARTS, *_LATER]), first * 5, None)
        with httpx.Client(timeout=None) as client:
            while not self._stop.is_set():
                asked = {
                    "model": self._model,
                    "prompt": prompt(next(starts)),
                    "max_tokens": MAX_TOKENS,
                    "temperature": 0,
                }
                response = client.post(f"{url}/v1/completions", json=asked)
                if not response.is_success:
                    self.errors.append(response.text)
                    return
