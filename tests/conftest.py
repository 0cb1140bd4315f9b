# SPDX-License-Identifier: Apache-2.0
"""What tests share: the demo model, and one random model of each family."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.cpu_library import sitecustomize  # noqa: F401 - so that these processes too have the library that is asked for
from tests.engine import processes
from vllm_surgery.demo.model import _download, default_folder, make_demo_model
from vllm_surgery.demo.sources import SOURCES
from vllm_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = [
    "tests.crashed_workers",
    "tests.environment_per_file",
    "tests.longest_first",
    "tests.watchdog",
]

# Tests run side by side, and threads of several processes that wait for each other spin. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

processes.begin_tests()

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

PATCHES = Path(__file__).parents[1] / "patches"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model in float32; made now if `make` hasn't made it before."""
    folder = Path(os.environ.get("VLLM_SURGERY_DEMO_MODEL") or default_folder()).absolute()
    make_demo_model(folder)
    return folder


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file that the demo model is made of, fetched anew: the folder holds its weights dequantised."""
    try:
        return _download(SOURCES["smollm2"], tmp_path_factory.mktemp("gguf"))
    except SurgeryError as error:
        pytest.skip(f"the demo model's GGUF file can't be had here: {error}")


@pytest.fixture(scope="session")
def shipped_patch() -> Path:
    """The patch that `make serve` serves the demo model with."""
    return PATCHES / "smollm2-135m-instruct-lists.yaml"


@pytest.fixture(scope="session")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model of a family, made once."""
    from tests.models import make_model

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_model(tmp_path_factory.mktemp("models") / family, family)
        return made[family]

    return make
