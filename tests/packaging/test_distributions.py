# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist: what is in them, and that an environment with the declared dependencies alone runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.requirements import link_packages, required
from vllm_surgery import Patch

pytestmark = pytest.mark.slow  # Builds three times, and makes an environment.

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "patches"


def build(target: str, source: Path, out: Path) -> Path:
    """Calls the backend that pyproject.toml names, as `pip wheel` and `python -m build` do, but without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sdist = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, what it declares to need, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    link_packages(required("vllm-surgery"), packages)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder)]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def call(environment: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of the environment outside of the checkout, and without what leads Python back to it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(environment / "bin" / program), *map(str, arguments)]
    return subprocess.run(command, cwd=environment, env=clean, capture_output=True, text=True, check=False)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    package = (ROOT / "vllm_surgery").rglob("*")
    source = {str(path.relative_to(ROOT)) for path in package if path.is_file() and "__pycache__" not in path.parts}

    assert {name for name in names_in(wheel) if ".dist-info/" not in name} == source


@pytest.mark.parametrize(
    "name",
    [
        "vllm_surgery/py.typed",
        "vllm_surgery/engine/http/page/page.html",
        "vllm_surgery/evaluation/data/protocols/default.yaml",
        "vllm_surgery/evaluation/data/report.html.jinja",
    ],
)
def test_the_wheel_has_files_that_are_not_code(wheel: Path, name: str) -> None:
    assert name in names_in(wheel)


def test_the_sdist_has_what_the_commands_of_the_readme_need(unpacked_sdist: Path) -> None:
    names = {path.name for path in unpacked_sdist.iterdir()}

    assert {"Makefile", "deploy", "docs", "patches", "tests", "LICENSE", "CHANGELOG.md"} <= names


def test_the_sdist_builds_the_same_wheel(wheel: Path, unpacked_sdist: Path, tmp_path: Path) -> None:
    again = build("wheel", unpacked_sdist, tmp_path / "wheel")

    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


def test_an_installed_wheel_checks_a_shipped_patch(environment: Path) -> None:
    file = PATCHES / "smollm2-135m-instruct-lists.yaml"

    done = call(environment, "vllm-surgery", "check", file)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ok: {file} is {Patch.parse(file.read_text()).id}\n"


def test_an_installed_wheel_prints_the_schema(environment: Path) -> None:
    done = call(environment, "vllm-surgery", "schema")

    assert json.loads(done.stdout) == json.loads((PATCHES / "schema.json").read_text())


def test_the_environment_has_the_wheel_and_not_the_checkout(environment: Path) -> None:
    program = "import importlib.util as u, vllm_surgery as v; print(v.__file__, u.find_spec('pytest'))"

    where, pytest_there = call(environment, "python", "-c", program).stdout.split()

    assert environment in Path(where).parents
    assert pytest_there == "None"
