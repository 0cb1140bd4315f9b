# SPDX-License-Identifier: Apache-2.0
"""Runs a few lines that a model wrote, in processes with limits. Only where the user asked for it.

- Time, memory and output are bounded; what the code started is ended with it, in whatever session it hides.
- Where the kernel has Landlock (Linux 5.13), nothing can be written, made, cut or removed anywhere, and no TCP
  connection opened. Without it files can be cut that the user may write.
- Where the kernel lets anybody make namespaces, it has a network of its own in which nothing is to be reached, and no
  rights of root's, should the user be root.
- The value comes with a mark that the code can only know by looking for it.

It is no wall against code that means harm: it can read what the user can read, and look for the mark.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 2
"""Of processor time: a small function needs milliseconds, Python's own start some hundredths of a second. By the clock
it may be `WAIT` times as much, since the machine may be busy with the server."""
WAIT = 10
MEMORY_BYTES = 512 << 20
PROCESSES = 64
"""Of the user, unless that is root in no namespace: a bomb of forks ends here."""
MOST_OUTPUT = 1 << 20
"""Bytes of output after which a run is ended."""

_TOKEN_VARIABLE = "VLLM_SURGERY_RUN"  # noqa: S105 - the name of a variable, by which our processes are found
_ROUNDS = 20

# Of linux/landlock.h; the numbers of its system calls are the same on every architecture.
_CREATE_RULESET, _RESTRICT_SELF, _VERSION_FLAG = 444, 446, 1
_WRITING = 0b1_1111_1111_0010  # WRITE_FILE and the rights to make and to remove, of its first version.
_REFER, _TRUNCATE, _NETWORK = 1 << 13, 1 << 14, 0b11
_NO_NEW_PRIVILEGES = 38

# Of linux/sched.h.
_NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x0800_0000, 0x1000_0000, 0x4000_0000


def run_code(code: str, call: str) -> str | None:
    """The value of `call` after `code`, as JSON; None where there is none: an error, a limit, or no JSON for it."""
    mark, token = secrets.token_hex(16), secrets.token_hex(16)
    program = (
        f"{code}\nimport json as _json, os as _os\n"
        f"_os.write(1, ('\\n' + {mark!r} + _json.dumps({call}) + '\\n').encode())\n_os._exit(0)\n"
    )
    with tempfile.TemporaryDirectory() as work:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                cwd=work,
                env={_TOKEN_VARIABLE: token},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_limit,  # noqa: PLW1509 - it takes no lock
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        with process:
            try:
                output = _output(process)
            finally:
                _end_all(process, token)
    if output is None or process.returncode != 0:
        return None
    lines = output.decode(errors="replace").splitlines()
    return next((line.removeprefix(mark) for line in reversed(lines) if line.startswith(mark)), None)


def _output(process: subprocess.Popen[bytes]) -> bytes | None:
    """What a process writes until it ends; None where it takes too long or writes too much."""
    assert process.stdout is not None
    ends, output = time.monotonic() + WAIT * SECONDS, bytearray()
    while (left := ends - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], min(left, 0.1))[0]:
            if process.poll() is not None:  # A child of its keeps the pipe.
                return bytes(output)
            continue
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        output += chunk
        if len(output) > MOST_OUTPUT:
            return None
        if not chunk:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, ends - time.monotonic()))
                return bytes(output)
    return None


def _end_all(process: subprocess.Popen[bytes], token: str) -> None:
    """Ends a process and all that it started: its group, and what left that but not its environment."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(_ROUNDS):
        found = _carrying(token)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _carrying(token: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if token.encode() in (folder / "environ").read_bytes() and (folder / "stat").read_text().split()[2] != "Z":
                found.append(int(folder.name))
    return found


def _limit() -> None:
    ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC)  # It fails where this isn't allowed: see above.
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    _write_nothing()


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 where it has none."""
    found = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(0, int(found))


def _write_nothing() -> None:
    """Takes from this process, for good, all rights to write files and to open connections, where the kernel can."""
    version = landlock_version()
    if not version:
        return
    files = _WRITING | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)  # noqa: PLR2004
    rules = (ctypes.c_uint64 * 2)(files, _NETWORK)
    size = 16 if version >= 4 else 8  # noqa: PLR2004 - the first with rules for the network
    libc = ctypes.CDLL(None)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0 or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise OSError("the kernel has Landlock and doesn't apply it")
