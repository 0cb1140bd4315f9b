# SPDX-License-Identifier: Apache-2.0
"""What this machine's vLLM has no kernel for is said beforehand, by every command that is asked about the model."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.models import patch_of
from tests.quantised import kinds, make
from vllm_surgery import EngineError, ModelFolder
from vllm_surgery.cli import main
from vllm_surgery.engine import doctor, kernels, touchpoints
from vllm_surgery.engine.kernels import Kernel, missing_kernel
from vllm_surgery.engine.load.preflight import check_kernels
from vllm_surgery.engine.touchpoints import TouchPoint
from vllm_surgery.model.config import ModelFacts

if TYPE_CHECKING:
    from pathlib import Path

KINDS = kinds(8)
MXFP4 = {"quant_method": "mxfp4"}
ABSENT = TouchPoint("vllm.gone", "Kernel", "testing")
INT4 = (
    "this machine's vLLM has no kernel for weights in INT4, GPTQ or AWQ (cpu_gemm_wna16), which needs a CPU with "
    "AVX-512, or a GPU"
)


def facts(config: dict[str, Any] | None, experts: int | None = None) -> ModelFacts:
    more = {} if experts is None else {"num_experts": experts}
    quantised = {} if config is None else {"quantization_config": config}
    return ModelFacts.from_config({"architectures": ["Any"], "num_hidden_layers": 1, **more, **quantised}, "some")


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86 CPU, whatever this machine is."""
    platform = SimpleNamespace(is_cpu=lambda: True, get_cpu_architecture=lambda: SimpleNamespace(name="X86"))
    monkeypatch.setattr(touchpoints, "PLATFORM", SimpleNamespace(there=True, get=lambda: platform))


@pytest.fixture
def nothing_works(x86: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks every kernel that vLLM knows."""
    _change_all(monkeypatch, works=lambda kernel: False)


def _change_all(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    for table in (kernels.OF_LINEAR_LAYERS, kernels.OF_EXPERTS):
        for stored, kernel in table.items():
            monkeypatch.setitem(table, stored, replace(kernel, **changes))


@pytest.mark.usefixtures("nothing_works")
@pytest.mark.parametrize(
    ("word", "linear", "of_experts"),
    [
        ("fp8 per tensor", None, "CPUExpertsFp8"),
        ("fp8 per channel", None, "CPUExpertsFp8"),
        ("fp8 in blocks", "CPUFp8BlockScaledMMKernel", "CPUFp8BlockScaledMMKernel"),
        ("int8 per channel", None, "CPUExpertsInt8"),
        ("int4 in groups", "cpu_gemm_wna16", "cpu_gemm_wna16"),
        ("int4 with zero points", "cpu_gemm_wna16", "cpu_gemm_wna16"),
        ("gptq", "cpu_gemm_wna16", "cpu_gemm_wna16"),
        ("awq", "cpu_gemm_wna16", "cpu_gemm_wna16"),
    ],
)
def test_each_way_to_store_weights_has_its_kernel(word: str, linear: str | None, of_experts: str) -> None:
    found = [missing_kernel(facts(KINDS[word].config, experts)) for experts in (None, 8)]
    assert [kernel and kernel.name for kernel in found] == [linear, of_experts]


@pytest.mark.usefixtures("nothing_works")
def test_experts_of_a_model_whose_other_layers_are_served_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.OF_LINEAR_LAYERS, "int4", replace(kernels.OF_LINEAR_LAYERS["int4"], works=bool))
    kernel = missing_kernel(facts(KINDS["gptq"].config, 8))
    assert kernel is not None
    assert (
        kernel.reason
        == "no kernel for experts in INT4, GPTQ or AWQ (CPUExpertsInt4), which needs a CPU with AMX, or a GPU"
    )
    mxfp4 = missing_kernel(facts(MXFP4, 8))
    assert mxfp4 is not None
    assert mxfp4.name == "CPUExpertsMxfp4"


@pytest.mark.usefixtures("nothing_works")
@pytest.mark.parametrize("config", [None, {"quant_method": "unheard of"}])
def test_of_other_models_nothing_is_said(config: dict[str, Any] | None) -> None:
    assert missing_kernel(facts(config, 8)) is None


@pytest.mark.usefixtures("nothing_works")
def test_experts_that_are_not_quantised_need_no_kernel() -> None:
    config = KINDS["int8 per channel"].config
    assert missing_kernel(facts({**config, "ignore": ["lm_head", "re:.*mlp.experts.*"]}, 8)) is None


@pytest.mark.usefixtures("x86")
def test_what_is_there_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_all(monkeypatch, works=lambda kernel: True)
    assert missing_kernel(facts(KINDS["gptq"].config, 8)) is None


@pytest.mark.usefixtures("nothing_works")
def test_a_vllm_that_lacks_the_touch_points_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_all(monkeypatch, points=(ABSENT,))
    assert missing_kernel(facts(KINDS["gptq"].config, 8)) is None


@pytest.mark.usefixtures("nothing_works")
@pytest.mark.parametrize(("is_cpu", "architecture"), [(False, "X86"), (True, "ARM")])
def test_of_gpus_and_other_cpus_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, is_cpu: bool, architecture: str
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: is_cpu, get_cpu_architecture=lambda: SimpleNamespace(name=architecture))
    monkeypatch.setattr(touchpoints, "PLATFORM", SimpleNamespace(there=True, get=lambda: platform))
    assert missing_kernel(facts(KINDS["gptq"].config)) is None
    assert list(kernels.kernels()) == []


def test_without_vllm_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touchpoints, "PLATFORM", ABSENT)
    assert kernels.why_not_served(facts(KINDS["gptq"].config)) is None


def test_a_broken_vllm_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(kernels, "_is_x86_cpu", broken)
    assert kernels.why_not_served(facts(KINDS["gptq"].config)) is None


def test_vllm_answers_for_every_kernel_on_this_machine() -> None:
    for kernel in {*kernels.OF_LINEAR_LAYERS.values(), *kernels.OF_EXPERTS.values()}:
        assert [type(kernel.works(point.get())) for point in kernel.points] == [bool] * len(kernel.points)


@pytest.mark.usefixtures("nothing_works")
def test_the_doctor_notes_each_that_is_missing() -> None:
    findings = [finding for finding in doctor.examine() if finding.subject.startswith("kernel ")]
    assert {finding.status for finding in findings} == {"note"}
    assert doctor.Finding("kernel cpu_gemm_wna16", "note", INT4) in findings
    assert len(findings) == len({finding.subject for finding in findings}) == 6


@pytest.mark.usefixtures("x86")
def test_the_doctor_passes_each_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_all(monkeypatch, works=lambda kernel: True)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["kernel cpu_gemm_wna16"].status == "pass"
    assert findings["kernel cpu_gemm_wna16"].detail == "serving weights in INT4, GPTQ or AWQ"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model", KINDS["gptq"])


@pytest.fixture
def patch(tmp_path: Path) -> str:
    (tmp_path / "some.json").write_text(json.dumps(patch_of({(0, 0): -1.0}, "some")))
    return str(tmp_path / "some.json")


@pytest.mark.usefixtures("nothing_works")
def test_check_tells_of_a_model_that_the_patch_is_sound_for(
    model: Path, patch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", patch, "--model", str(model)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"note: {model} can't be served here: {INT4}"
    assert main(["check", patch, "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cannot_serve"] == INT4


@pytest.mark.usefixtures("nothing_works")
def test_the_doctor_tells_of_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(model)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"  can't be served here: {INT4}"
    assert main(["doctor", "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cannot_serve"] == INT4


def vllm_config(model: Path, quantization: str | None) -> Any:
    hf_config = SimpleNamespace(to_dict=lambda: {})
    model_config = SimpleNamespace(model=str(model), quantization=quantization, hf_config=hf_config, revision=None)
    return SimpleNamespace(model_config=model_config)


@pytest.mark.usefixtures("nothing_works")
def test_a_server_of_it_is_refused(model: Path) -> None:
    with pytest.raises(EngineError) as refused:
        check_kernels(vllm_config(model, "gptq"))
    assert str(refused.value) == f"{model}: {INT4}"


@pytest.mark.usefixtures("nothing_works")
def test_a_server_of_another_model_is_not_refused(tmp_path: Path, model: Path) -> None:
    check_kernels(vllm_config(model, None))
    (tmp_path / "config.json").write_text("[]")
    check_kernels(vllm_config(tmp_path, "of a model that isn't understood"))
    assert isinstance(missing_kernel(ModelFolder(model).facts), Kernel)
