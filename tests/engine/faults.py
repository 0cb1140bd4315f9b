# SPDX-License-Identifier: Apache-2.0
"""A vLLM plugin that makes workers fail where a test says so, on a real server.

A file of JSON tells what happens: ``{"apply": {"rank": 1, "how": "raise"}}``. `Faults.environment` puts the plugin
where vLLM looks. Ranks are forked, as on GPUs, which spares each the imports that a rank of the CPU backend repeats.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.waiting import until

VARIABLE = "VLLM_SURGERY_TEST_FAULTS"
NAME = "vllm_surgery_faults"

_rank = 0
"""Of this process, as its last swap began."""


class Faults:
    """What is to go wrong, as the test sees it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faults.json"
        self.clear()
        site = folder / "site" / f"{NAME}-1.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
        (site / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = tests.engine.faults:register\n")
        search = os.pathsep.join(filter(None, [str(site.parent), str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        self.environment = {VARIABLE: str(self._file), "PYTHONPATH": search, "VLLM_PLUGINS": f"vllm_surgery,{NAME}"}

    def set(self, step: str, how: str, rank: int = 1, **more: Any) -> None:
        """From now on `step` goes wrong on `rank`; what was set before for other steps stays."""
        now = json.loads(self._file.read_text())
        self._write({**now, step: {"rank": rank, "how": how, **more}})

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._write({})

    def holds(self, step: str) -> bool:
        """Whether a rank has come to a step in which it is held until `clear`."""
        return self._file.with_name(step).exists()

    def _write(self, faults: dict[str, Any]) -> None:
        aside = self._file.with_suffix(".new")
        aside.write_text(json.dumps(faults))
        aside.replace(self._file)


def register() -> None:
    """vLLM calls this in every process."""
    from vllm.v1.executor import multiproc_executor

    from vllm_surgery.engine.swap import worker as remote

    multiproc_executor.get_mp_context = functools.partial(multiprocessing.get_context, "fork")
    if hasattr(remote.Swap, "__wrapped__"):
        return
    for name, original in remote._STEPS.items():
        remote._STEPS[name] = _faulty(name, original)
    remote._STEPS["begin"] = _noting_rank(remote._STEPS["begin"])
    remote.Swap = _faulty_stage(remote.Swap)


def _fault(step: str, rank: int) -> dict[str, Any] | None:
    fault = json.loads(Path(os.environ[VARIABLE]).read_text()).get(step)
    return fault if fault and fault["rank"] == rank else None


def _hold(step: str, rank: int) -> None:
    reached = Path(os.environ[VARIABLE]).with_name(step)
    reached.touch()
    until(lambda: _fault(step, rank) is None)
    reached.unlink()


def _noting_rank(begin: Any) -> Any:
    @functools.wraps(begin)
    def step(surgery: Any, token: str, **payload: Any) -> Any:
        global _rank  # noqa: PLW0603 - a process is one rank
        _rank = surgery.worker.rank
        return begin(surgery, token, **payload)

    return step


def _faulty_stage(swap: Any) -> Any:
    @functools.wraps(swap, updated=())
    def stage(*arguments: Any) -> Any:
        fault = _fault("stage", _rank)
        if fault is not None and fault["how"] == "raise":
            raise RuntimeError("a test made stage fail")
        if fault is not None and fault["how"] == "hold":
            _hold("stage", _rank)
        if fault is not None and fault["how"] == "sleep":
            time.sleep(fault["seconds"])
        return swap(*arguments)

    return stage


def _faulty(name: str, original: Any) -> Any:
    @functools.wraps(original)
    def step(surgery: Any, token: str, **payload: Any) -> Any:
        fault = _fault(name, surgery.worker.rank)
        if fault is None:
            return original(surgery, token, **payload)
        if fault["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["how"] == "hold":
            _hold(name, surgery.worker.rank)
            return original(surgery, token, **payload)
        if fault["how"] == "halfway":
            parts, swap = surgery._of(token).swap().parts, surgery._of(token).swap()
            swap.parts = parts[: len(parts) // 2]
            original(surgery, token, **payload)
            swap.parts = parts
        raise RuntimeError(f"a test made {name} fail")

    return step
