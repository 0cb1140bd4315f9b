# SPDX-License-Identifier: Apache-2.0
"""Digests of base images, from a stand-in for a registry."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from deploy import pin

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


class Registry:
    """A registry that wants an anonymous token, as Docker Hub does."""

    def __init__(self) -> None:
        self.digest, self.wants_token, self.challenge = DIGEST, True, ""
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                registry.asked.append(self.path)
                if registry.wants_token and self.headers.get("Authorization") != "Bearer secret":
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", registry.challenge)
                else:
                    self.send_response(200 if "/prom/" in self.path else 404)
                    self.send_header("Docker-Content-Digest", registry.digest)
                self.end_headers()

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                body = json.dumps({"token": "secret"}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_address[1]}"
        self.challenge = f'Bearer realm="http://{self.address}/token",service="here",scope="repository:prom/x:pull"'
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.stop()


def test_a_tag_has_a_digest(registry: Registry) -> None:
    assert pin.digest_of(f"{registry.address}/prom/x:v1", "http") == DIGEST
    assert registry.asked == [
        "/v2/prom/x/manifests/v1",
        "/token?service=here&scope=repository%3Aprom%2Fx%3Apull",
        "/v2/prom/x/manifests/v1",
    ]


def test_a_registry_without_tokens(registry: Registry) -> None:
    registry.wants_token = False
    assert pin.digest_of(f"{registry.address}/prom/x:v1", "http") == DIGEST
    assert len(registry.asked) == 1


def said(image: str) -> str:
    with pytest.raises(pin.PinError) as refused:
        pin.digest_of(image, "http")
    return str(refused.value)


def test_what_can_go_wrong_is_said(registry: Registry) -> None:
    image = f"{registry.address}/prom/x:v1"
    registry.digest = "sha256:short"
    assert said(image) == f"{image}: {registry.address} answers without a digest"
    gone = f"{registry.address}/gone/x:v1"
    assert said(gone) == f"{gone}: {registry.address} does not tell its digest: HTTP Error 404: Not Found"
    registry.challenge = 'Bearer realm="file:///etc/passwd"'
    assert said(image) == f"{image}: {registry.address} does not tell its digest: it wants a login"
    registry.challenge = "Basic"
    assert said(image) == f"{image}: {registry.address} does not tell its digest: it wants a login"
    registry.stop()
    assert said(image).startswith(f"{image}: {registry.address} does not tell its digest: ")
    assert said("prom/x") == "prom/x: has no tag"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("python:3.12", ("registry-1.docker.io", "library/python", "3.12")),
        ("prom/prometheus:v3", ("registry-1.docker.io", "prom/prometheus", "v3")),
        ("ghcr.io/a/b:1", ("ghcr.io", "a/b", "1")),
        ("localhost/a:1", ("localhost", "a", "1")),
    ],
)
def test_images_are_read_as_docker_reads_them(image: str, parts: tuple[str, str, str]) -> None:
    assert pin.parts(image) == parts


def test_every_base_image_can_be_pinned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pin, "digest_of", lambda _: DIGEST)
    assert pin.main() == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    names = {line.partition("=")[0] for line in lines}
    in_dockerfiles = {
        name: image
        for file in (pin.DEPLOY / "docker").glob("*.Dockerfile")
        for name, image in re.findall(r"ARG (\w+)=(\S+)", file.read_text())
    }
    assert names == {*in_dockerfiles, "PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE", "GRAFANA_IMAGE"}
    assert in_dockerfiles.items() <= pin.images().items(), "the same tag wherever an image is named"
    assert all(line.endswith(f"@{DIGEST}") for line in lines)


def test_a_registry_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> str:
        raise pin.PinError("x: no")

    monkeypatch.setattr(pin, "digest_of", fail)
    assert (pin.main(), capsys.readouterr().err) == (1, "[pin] error: x: no\n")
