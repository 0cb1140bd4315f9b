# SPDX-License-Identifier: Apache-2.0
"""Servers on a vLLM that has moved some of what is touched: they go on without what is lost, and say so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.engine.server import COMMAND, SMALL, Server, environment, running_server
from tests.engine.streams import MODEL, ask
from tests.engine.test_live import OPTIONS, PROMPT
from tests.engine.test_load import GAINS
from tests.models import patch_of
from vllm_surgery import Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parent / "lacking"
PATCH = patch_of(GAINS, "some")
SPARED = "RELOAD_BEGIN,SET_WEIGHT_VERSION,PROCESS_OUTPUTS,MASKING,CONFIG_HASH"
"""Of swaps, of weight versions, of watching, of masks, of the compile cache."""


def lacking(names: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(FOLDER), str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    return {"VLLM_SURGERY_TEST_LACKS": names, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def patch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patch") / "some.yaml"
    path.write_text(yaml.safe_dump(PATCH))
    return path


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path], patch_file: Path
) -> Iterator[Server]:
    """A server with a patch, on a vLLM that lacks what the rest takes."""
    arguments = (str(family_model("Llama")), "--patch", str(patch_file), *OPTIONS, *SMALL)
    with running_server(tmp_path_factory.mktemp("lacking"), *arguments, **lacking(SPARED)) as running:
        yield running


def test_the_patch_is_served(server: Server) -> None:
    told = httpx.get(f"{server.url}/v1/surgery", timeout=None).json()
    assert (told["active"], told["units"]) == (Patch.from_data(PATCH).id, len(GAINS))
    assert len(ask(server.url, PROMPT)["token_ids"]) > 0


def test_swaps_are_refused_with_what_is_missing(server: Server) -> None:
    reply = httpx.put(f"{server.url}/v1/surgery", json={"patches": []}, timeout=None)
    assert reply.status_code == 501
    reason = reply.json()["error"]["message"]
    assert "initialize_layerwise_reload_moved (swapping patches while serving)" in reason
    assert httpx.get(f"{server.url}/v1/surgery", timeout=None).json()["cannot_swap_reason"] in reason
    assert "vllm-surgery: patches can't be swapped: this vLLM has no" in server.log


def test_nothing_is_watched_and_the_log_says_so(server: Server) -> None:
    ask(server.url, PROMPT)
    assert "vllm_surgery_requests_total" not in httpx.get(f"{server.url}/metrics", timeout=None).text
    assert "vllm-surgery: requests are not watched for loops: this vLLM has no" in server.log


def serve(model: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "serve", str(model), *OPTIONS, *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**more))


@pytest.mark.parametrize("asked", ["--patch", "--patch-dir"])
def test_where_no_patch_can_be_applied_none_is_served(
    family_model: Callable[[str], Path], patch_file: Path, asked: str
) -> None:
    value = patch_file if asked == "--patch" else patch_file.parent
    done = serve(family_model("Llama"), asked, str(value), **lacking("MODEL_BUILT"))
    assert done.returncode == 1
    said = "vllm-surgery: error: no patch can be applied: this vLLM has no vllm.model_executor.model_loader.utils.record_metadata"
    assert done.stderr.strip().splitlines()[-1].startswith(said)


def test_where_no_patch_can_be_applied_plain_servers_are_as_without_the_plugin(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    with running_server(tmp_path, str(family_model("Llama")), *OPTIONS, *SMALL, **lacking("MODEL_BUILT")) as plain:
        reply: dict[str, Any] = httpx.get(f"{plain.url}/v1/models", timeout=None).json()
        assert reply["data"][0]["id"] == MODEL
        assert len(ask(plain.url, PROMPT)["token_ids"]) > 0
        assert httpx.get(f"{plain.url}/v1/surgery", timeout=None).status_code == 404
        assert "vllm-surgery: no patch can be applied: this vLLM has no" in plain.log
