# SPDX-License-Identifier: Apache-2.0
"""One load of a model by vLLM's offline engine, timed, in a process of its own.

As a program it takes ``{"model": DIR, "patches": [...]}`` as JSON on stdin and writes a `Load` to the file named by its
argument.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.fresh_process import run_fresh

_KV_CACHE_BYTES = 1 << 26
"""Small, so that the peak memory is that of the load."""


@dataclass(frozen=True)
class Load:
    """What one load took.

    Attributes:
        id: of the patch set that is served; None without one.
        load_seconds: inside `Worker.load_model`, the plugin's hook around it included.
        start_seconds: the whole construction of `LLM`, imports not included.
        peak_bytes: the process's peak resident set, from its start to the end of the construction.
        plugin_seconds: what the plugin says that it spent on the weight stream.
    """

    id: str | None
    load_seconds: float
    start_seconds: float
    peak_bytes: int
    plugin_seconds: float


def load_once(model: Path, patches: list[dict[str, Any]]) -> Load:
    """Loads `model` with `patches` (plain data) in a fresh process.

    Raises:
        subprocess.CalledProcessError: it failed; the reason is on stderr.
    """
    data = {"model": str(model.resolve()), "patches": patches}
    return Load(**run_fresh("tests.benchmarks.load_once", data))


class _Stopwatch:
    """Adds up the seconds inside a function."""

    def __init__(self, function: Any) -> None:
        self.seconds = 0.0
        self._function = function

    def wrapped(self) -> Any:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return self._function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def _load_here(model: str, patches: list[dict[str, Any]]) -> Load:
    import vllm
    from vllm.plugins import load_general_plugins
    from vllm.v1.worker.gpu_worker import Worker

    load_general_plugins()  # First, so that the stopwatch lies around the plugin's hook.
    stopwatch = _Stopwatch(Worker.load_model)
    Worker.load_model = stopwatch.wrapped()
    started = time.perf_counter()
    llm = vllm.LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=_KV_CACHE_BYTES,
        max_model_len=256,
        additional_config={"vllm_surgery": {"patches": patches}} if patches else {},
    )
    start_seconds = time.perf_counter() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB.
    (report,) = llm.collective_rpc("vllm_surgery_report")
    return Load(report["id"], stopwatch.seconds, start_seconds, peak_bytes, report.get("milliseconds", 0.0) / 1000)


def main() -> None:
    load = _load_here(**json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
