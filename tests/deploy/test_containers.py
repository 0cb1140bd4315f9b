# SPDX-License-Identifier: Apache-2.0
"""What can be known of `make containers` without a container. The run itself is apart from the other tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.containers import __main__ as command
from deploy.containers import compose, images, server
from deploy.containers.podman import DEPLOY, ENVIRONMENT, load


def test_what_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["containers", "--model", str(tmp_path), "--keep"])
    assert command.main() == 1
    error = "[containers] error: install these packages first: buildah conmon mmdebstrap podman podman-compose runc\n"
    assert capsys.readouterr().err == error


def test_an_old_podman_compose_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in images.PROGRAMS:
        file = tmp_path / program
        file.write_text("#!/bin/sh\necho usage: podman 4.3\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["containers", "--model", str(tmp_path), "--keep"])
    assert command.main() == 1
    needed = "podman-compose 1.3 or newer is needed: pip install 'podman-compose>=1.3'"
    assert capsys.readouterr().err == f"[containers] error: {needed}\n"


def test_the_deployments_arguments_are_those_that_are_changed_for_one_machine() -> None:
    arguments = server.arguments()
    assert f"--port={server.PORT}" in arguments
    assert "--host=127.0.0.1" in arguments
    assert not {"--port=8000", "--host=0.0.0.0"} & set(arguments)
    assert arguments[:2] == ["serve", "/models/smollm2"]


@pytest.mark.parametrize("name", [server.FIRST, server.SECOND])
def test_a_followed_file_is_replaced_in_one_step(name: str, tmp_path: Path) -> None:
    server.replace(tmp_path, name)
    assert [file.name for file in tmp_path.iterdir()] == ["active.yaml"]
    assert (tmp_path / "active.yaml").read_bytes() == (Path("patches") / f"{name}.yaml").read_bytes()


def test_the_compose_trial_starts_services_of_the_compose_file_with_what_is_theirs(tmp_path: Path) -> None:
    theirs, ours = load(compose.FILE)["services"], compose.override(tmp_path)["services"]
    assert set(ours) == {"demo-model", *compose.SERVICES} == set(theirs) - {"grafana"}
    for name, changed in ours.items():
        assert set(changed) <= {"network_mode", "ports", "extra_hosts", "image", "volumes", "healthcheck"}, name
    images_of = {service["image"] for service in theirs.values()}
    assert {f"${{{name}:-" for name in ("PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE")} <= {
        image[: image.index("-") + 1] for image in images_of if "$" in image
    }
    assert all(f"localhost/{image}" in images.ALL for image in images_of if "$" not in image)


def test_addresses_are_those_of_the_compose_file() -> None:
    theirs = load(compose.FILE)["services"]
    urls = (compose.SERVER, compose.PROMETHEUS_URL, compose.ALERTMANAGER_URL)
    for name, url in zip(compose.SERVICES, urls, strict=True):
        assert any(url.removeprefix("http://") in port for port in theirs[name]["ports"])
    (target,) = load(DEPLOY / "prometheus" / "prometheus.yml")["alerting"]["alertmanagers"][0]["static_configs"]
    assert target["targets"] == ["alertmanager:9093"]


def test_alertmanagers_routes_lead_to_receivers() -> None:
    config = load(DEPLOY / "prometheus" / "alertmanager.yml")
    names = {receiver["name"] for receiver in config["receivers"]}
    assert {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])} <= names


def test_podmans_settings_are_there() -> None:
    assert Path(ENVIRONMENT["CONTAINERS_CONF"]).is_file()
