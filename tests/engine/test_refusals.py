# SPDX-License-Identifier: Apache-2.0
"""Every wrong patch ends the start of the server, with one line that an operator can act on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import processes
from tests.engine.processes import COMMAND, environment, kill
from tests.engine.server import SMALL
from tests.models import LAYERS, WIDTH, down, make_model, patch_of
from vllm_surgery import ModelFolder
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.engine

HEAD = "version: 1\nname: wrong\n"
GOOD = patch_of({(0, 0): -1.0})


@dataclass(frozen=True)
class Wrong:
    """A patch file that is wrong in itself, and what is said of it."""

    content: str
    reason: str


WRONG_FILES = {
    "unknown key": Wrong(f"{HEAD}edit: []", "edit: is not a key of this format"),
    "version": Wrong("version: 2\nname: wrong\nedits: []", "version: input should be 1, got 2"),
    "named twice": Wrong(
        f"{HEAD}edits: [{{op: zero, neurons: {{3: [7, 7]}}}}]", "edits[0].neurons.3: index 7 is named twice"
    ),
    "empty": Wrong(f"{HEAD}edits: [{{op: zero, neurons: {{3: []}}}}]", "edits[0].neurons.3: names no units"),
    "no factor": Wrong(f"{HEAD}edits: [{{op: scale, neurons: {{3: [7]}}}}]", "edits[0].factor: is missing"),
    "infinite": Wrong(
        f"{HEAD}edits: [{{op: scale, factor: .inf, neurons: {{3: [7]}}}}]", "line 3, column 29: .inf is not a"
    ),
    "factor 1": Wrong(
        f"{HEAD}edits: [{{op: scale, factor: 1, neurons: {{3: [7]}}}}]", "edits[0].factor: a factor of 1"
    ),
    "mask": Wrong(
        f"{HEAD}edits: [{{op: mask, neurons: {{3: [7]}}}}]", "edits[0].neurons: `mask` is for routed experts"
    ),
    "tag": Wrong(f"{HEAD}edits: !!python/tuple []", "line 3, column 8: YAML tags are not allowed"),
    "alias": Wrong(f"{HEAD}provenance: [&a x, *a]", "YAML anchors are not allowed (&a)"),
    "too long": Wrong(f"{HEAD}description: {'x' * (1 << 20)}", "a patch file may have at most 1048576 bytes (1 MiB)"),
}


def start(
    *arguments: str, program: tuple[str, ...] = (COMMAND, "serve"), **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, with more environment. One that goes on is ended, with all that it started."""
    process = subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
        start_new_session=True,
    )
    try:
        out, err = process.communicate()
    finally:
        kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def copy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Likewise for the command, without importing vLLM anew."""
    out, err = folder / "out", folder / "err"
    process = processes.start([COMMAND, *arguments], environment(), out=out, err=err)
    try:
        code = process.wait()
    finally:
        kill(process)
    return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that the refusal is."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vllm-surgery: error: ")]
    assert "Traceback" not in done.stdout + done.stderr
    return line.removeprefix("vllm-surgery: error: ")


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_ends_the_start(tmp_path: Path, name: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG_FILES[name].content)
    done = start("no-such-model", "--patch", str(file))
    assert done.returncode == 1
    assert the_error(done).startswith(f"{file}: ")
    assert WRONG_FILES[name].reason in the_error(done)


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    done = start("no-such-model", "--patch", str(tmp_path / "missing.yaml"))
    assert (done.returncode, the_error(done)) == (2, f"{tmp_path / 'missing.yaml'}: no such file")


def test_two_files_may_not_name_the_same_unit(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        file.write_text(json.dumps(GOOD))
    done = start("no-such-model", *(word for file in files for word in ("--patch", str(file))))
    assert done.returncode == 1
    expected = f"{files[1]}: edits[0].neurons.0: neurons 0 of layer 0: already named in {files[0]}, edits[0].neurons.0"
    assert the_error(done) == expected


@pytest.fixture
def serve_with(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Exit code, and the error without the file's name."""

    def serve(model: Path, patch: dict[str, Any], *options: str) -> tuple[int, str]:
        file = tmp_path / "wrong.json"
        file.write_text(json.dumps(patch))
        done = copy(tmp_path, "serve", str(model), "--patch", str(file), "--skip-tokenizer-init", *options, *SMALL)
        return done.returncode, the_error(done).removeprefix(f"{file}: ")

    return serve


MISMATCHES = {
    "index": (
        patch_of({(1, WIDTH): 0.0}),
        f"edits[0].neurons.1: index {WIDTH} is out of range: layer 1 has {WIDTH} neurons",
    ),
    "layer": (
        patch_of({(LAYERS, 0): 0.0}),
        f"edits[0].neurons.{LAYERS}: layer {LAYERS} is out of range: the model has {LAYERS} layers",
    ),
    "guard": (
        {**GOOD, "model": {"hidden_size": 4096}},
        "model.hidden_size: the patch is for 4096, this model has 128",
    ),
    "no experts": (
        {**GOOD, "edits": [{"op": "mask", "experts": {"0": [1]}}]},
        "edits[0].experts.0: touches no tensor: the model has no routed experts",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_patch_for_another_model_ends_the_start(
    serve_with: Callable[..., tuple[int, str]], family_model: Callable[[str], Path], name: str
) -> None:
    patch, expected = MISMATCHES[name]
    assert serve_with(family_model("Llama"), patch) == (1, expected)


def test_a_broken_seal_ends_the_start(
    serve_with: Callable[..., tuple[int, str]], family_model: Callable[[str], Path]
) -> None:
    seal_of_another = seal_of_folder(ModelFolder(family_model("Llama")), Unit("neurons", 0, 1))
    code, error = serve_with(family_model("Llama"), {**GOOD, "seal": {"neurons/0/0": seal_of_another}})
    assert code == 1
    assert error.startswith("seal.neurons/0/0: broken: the model's weights are not the sealed ones")


def test_a_number_format_that_cant_hold_the_edit_ends_the_start(
    tmp_path: Path, serve_with: Callable[..., tuple[int, str]]
) -> None:
    model = make_model(tmp_path / "fp8")
    tensors = load_file(model / "model.safetensors")
    tensors[down(0)] = tensors[down(0)].to(torch.float8_e4m3fn)
    save_file(tensors, model / "model.safetensors")
    code, error = serve_with(model, GOOD)
    assert code == 1
    assert error.startswith(f"edits[0].neurons.0: {down(0)} is stored as F8_E4M3, in which this version can hold no op")


def test_a_loader_without_a_checkpoint_stream_ends_the_start(
    serve_with: Callable[..., tuple[int, str]], family_model: Callable[[str], Path]
) -> None:
    code, error = serve_with(family_model("Llama"), GOOD, "--load-format", "dummy")
    assert code == 1
    assert error.endswith(": --load-format dummy makes random weights, so no patch can be applied to it")


def test_patches_named_in_two_places_are_wrong_usage(
    serve_with: Callable[..., tuple[int, str]], family_model: Callable[[str], Path]
) -> None:
    settings = json.dumps({"vllm_surgery": {"patches": [GOOD]}})
    code, error = serve_with(family_model("Llama"), GOOD, "--additional-config", settings)
    assert (code, error) == (
        2,
        "--patch and --additional-config both name patches; give them in one place (vllm_surgery)",
    )


def test_what_only_the_load_can_see_ends_the_start(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    """A checkpoint in torch's format can't be looked into beforehand: the worker refuses."""
    source, model, file = family_model("Llama"), tmp_path / "bin", tmp_path / "wrong.json"
    model.mkdir()
    (model / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.save(load_file(source / "model.safetensors"), model / "pytorch_model.bin")
    file.write_text(json.dumps(patch_of({(1, WIDTH): 0.0})))
    done = start(str(model), "--patch", str(file), "--skip-tokenizer-init", *SMALL)
    (line,) = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "refuses to serve" in line]
    assert done.returncode != 0
    assert line.endswith(
        f"vllm-surgery refuses to serve: {file}: edits[0].neurons.1: index {WIDTH} is out of range: "
        f"layer 1 has {WIDTH} neurons"
    )


def test_in_a_process_that_imports_vllm_itself_it_is_one_line_too(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    patch, expected = MISMATCHES["guard"]
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(patch))
    done = start(str(family_model("Llama")), "--patch", str(file), "--skip-tokenizer-init", *SMALL)
    assert (done.returncode, the_error(done)) == (1, f"{file}: {expected}")


def test_without_the_wrapper_the_same_is_refused(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    settings = json.dumps({"vllm_surgery": {"patches": [patch_of({(LAYERS, 0): 0.0})]}})
    program = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")
    model = ("--model", str(family_model("Llama")))
    done = start(*model, "--skip-tokenizer-init", "--additional-config", settings, *SMALL, program=program)
    assert done.returncode != 0
    assert (
        done.stderr.rstrip()
        .splitlines()[-1]
        .endswith(
            "MismatchError: vllm_surgery.patches[0] (test): edits[0].neurons.12: "
            "layer 12 is out of range: the model has 12 layers"
        )
    )
