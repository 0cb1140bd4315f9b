# SPDX-License-Identifier: Apache-2.0
"""Python programs as copies of a process that has imported vLLM: that takes seconds, and is the same for all of them.

In a run of tests each process of pytest has one such process, a `Nursery`, from its first program on; without pytest
there is none. A program that needs another environment than the nursery's, in what is read while vLLM is imported, is
started as any other is.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("vllm-surgery"))
"""The first word of a program that is the command; any other is for Python."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",  # Numba's threads spin too once there are any: vLLM finds n-grams by it.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    **dict.fromkeys(("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"), "86400"),
}
"""One thread, since spinning threads of two processes starve each other; nothing from outside; vLLM waits for its own
processes as long as they need."""

SPAWNED = "VLLM_WORKER_MULTIPROC_METHOD"
"""With the value `spawn` a copy's engines and ranks are started as vLLM's CPU backend starts them: they import vLLM anew."""

READ_LATE = {
    "PYTEST_CURRENT_TEST",
    SPAWNED,
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    "VLLM_SURGERY_DISABLE",
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
}
"""What is read after vLLM is imported, so that a copy may have another value of it."""


def environment(**more: str) -> dict[str, str]:
    """That of programs that tests start. One process for engine and worker halves the time to start."""
    return _with(os.environ, **more)


def _with(begun: Mapping[str, str], **more: str) -> dict[str, str]:
    return {**begun, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **ENVIRONMENT, **more}


class Process(Protocol):
    """What tests use of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def terminate(self) -> None: ...


def start(
    words: list[str], wanted: Mapping[str, str], *, out: Path, err: Path | None = None, given: Path | None = None
) -> Process:
    """Starts a program at the head of a group of processes.

    Args:
        words: `COMMAND` and its arguments, or what Python is asked to run.
        wanted: its environment, whole.
        out: the file for what it writes to stdout.
        err: likewise for stderr; None for the same file.
        given: the file that it reads from stdin; None for nothing.
    """
    with _one_at_a_time:
        nursery = _nursery() if _begun else None
    if nursery is not None and nursery.has(wanted):
        return nursery.start(words, wanted, out=out, err=err, given=given or Path(os.devnull))
    nothing = Path(os.devnull)
    with out.open("w") as stdout, (err or nothing).open("w") as stderr, (given or nothing).open() as stdin:
        return subprocess.Popen(
            words if words[0] == COMMAND else [sys.executable, *words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr if err else subprocess.STDOUT,
            env=wanted,
            cwd=None if words[0] == COMMAND else ROOT,
            start_new_session=True,
        )


def kill(process: Process) -> None:
    """Ends a process that leads a group, and all of its group, as a machine goes that loses its power."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


_begun: dict[str, str] = {}
"""The environment that tests began with, empty where there are none. The nursery begins with it: what is imported while tests
are collected adds to it, and would add the same once more (OpenCV puts its folder in front of `LD_LIBRARY_PATH`)."""
_one_at_a_time = threading.Lock()
"""Servers that are started together share the nursery that the first of them makes."""


def begin_tests() -> None:
    """From now on programs of this process are copies of one, where they can be."""
    _begun.update(os.environ)


@cache
def _nursery() -> Nursery:
    made = Nursery()
    atexit.register(made.end)
    return made


class Nursery:
    """A process that has imported vLLM and starts copies of itself."""

    def __init__(self) -> None:
        self._given = _with(_begun)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.processes"],
            env=self._given,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._over = False
        self._news = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._there: dict[str, str] = json.loads(self._read() or "{}")
        threading.Thread(target=self._listen, daemon=True).start()

    def has(self, wanted: Mapping[str, str]) -> bool:
        """Whether a program with this environment may be a copy."""
        return {*self._differing(wanted), *(self._given.keys() - wanted.keys())} <= READ_LATE

    def start(self, words: list[str], wanted: Mapping[str, str], **files: Path | None) -> Copy:
        """Starts a copy, which runs a program. The arguments are those of `start`."""
        asked = {
            "words": words,
            "environment": {name: wanted[name] for name in self._differing(wanted)},
            "folder": str(Path.cwd() if words[0] == COMMAND else ROOT),
            "files": {name: file and str(file) for name, file in files.items()},
        }
        with self._one_at_a_time, self._news:
            assert self._process.stdin is not None
            print(json.dumps(asked), file=self._process.stdin, flush=True)
            self._news.wait_for(lambda: self._started or self._over)
            return Copy(self, self._started.pop())

    def code(self, pid: int, *, wait: bool = False) -> int | None:
        """How a copy ended; None if it hasn't."""
        with self._news:
            if wait:
                self._news.wait_for(lambda: pid in self._codes or self._over)
            return self._codes.get(pid)

    def end(self) -> None:
        """Ends the process, and none of its copies."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _differing(self, wanted: Mapping[str, str]) -> list[str]:
        return [name for name, value in wanted.items() if self._there.get(name) != value]

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _listen(self) -> None:
        while line := self._read():
            with self._news:
                match json.loads(line):
                    case [pid]:
                        self._started.append(pid)
                    case [pid, code]:
                        self._codes[pid] = code
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


class Copy:
    """A program that a nursery started."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self._nursery = pid, nursery

    def poll(self) -> int | None:
        return self._nursery.code(self.pid)

    def wait(self) -> int:
        code = self._nursery.code(self.pid, wait=True)
        assert code is not None
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def main() -> None:
    """Starts a copy for each line of JSON on stdin. Writes its environment; then, for each copy, its pid, and at its
    end its pid and exit code.
    """
    news = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What is said while vLLM is imported isn't news.
    _import_vllm()

    def tell(what: Any) -> None:
        print(json.dumps(what), file=news, flush=True)

    tell(dict(os.environ))
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                if ready.data is not None:
                    selector.unregister(ready.fd)
                    os.close(ready.fd)
                    _, status = os.waitpid(ready.data, 0)
                    tell([ready.data, os.waitstatus_to_exitcode(status)])
                elif line := sys.stdin.readline():
                    asked = json.loads(line)
                    if (pid := _fork()) == 0:
                        selector.close()
                        news.close()
                        return _run(**asked)
                    tell([pid])
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                else:
                    return None


def _import_vllm() -> None:
    import vllm.entrypoints.openai.api_server  # noqa: F401 - here and not in each process

    import vllm_surgery.engine.serve  # noqa: F401
    from tests.engine.circumstances import register_kernels_once

    register_kernels_once()
    for name in _WHEN_ENGINES_START:
        with suppress(ImportError):  # Older vLLMs lack some.
            import_module(name)
    gc.collect()
    gc.freeze()


_WHEN_ENGINES_START = (
    "vllm.entrypoints.llm",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "vllm.v1.worker.cpu_worker",
    "vllm_surgery.engine.install",
    "vllm_surgery.engine.monitoring.detectors",
)
"""What else is imported once an engine starts, and takes longest."""


def _fork() -> int:
    """As `os.fork`; the copy is at the head of a group by then, so that it can be killed with it."""
    waits, leads = os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
        os.close(waits)
    os.close(leads)
    if pid:
        os.read(waits, 1)
        os.close(waits)
    return pid


def _fork_engines() -> None:
    """Engines and ranks of this process are copies of it, as by default on GPUs: that they import vLLM anew is what most of
    a server's start takes on few cores. vLLM's CPU backend sets the method itself, whatever the environment says."""
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    for module in (coordinator, utils, multiproc_executor):
        module.get_mp_context = partial(get_context, "fork")
    # A signal to an engine would else be told to the event loop of the server that it is a copy of.
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


def _run(words: list[str], environment: dict[str, str], folder: str, files: dict[str, str | None]) -> None:
    """Does in this process what a new one would."""
    os.environ.update(environment)
    os.chdir(folder)
    if os.environ.get(SPAWNED) != "spawn":
        _fork_engines()
    for descriptor, name, flags in ((0, "given", os.O_RDONLY), (1, "out", _NEW), (2, "err", _NEW)):
        if file := files.get(name):
            opened = os.open(file, flags, 0o666)
            os.dup2(opened, descriptor)
            os.close(opened)
    if not files.get("err"):
        os.dup2(1, 2)
    match words:
        case [first, *arguments] if first == COMMAND:
            from vllm_surgery.cli import main as command

            sys.argv = words
            sys.exit(command(arguments))
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", program, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        case _:
            raise ValueError(f"not a program: {words}")


if __name__ == "__main__":
    main()
