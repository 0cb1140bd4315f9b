# SPDX-License-Identifier: Apache-2.0
"""Patches by their addresses, fetched from a server on loopback that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal
from tests.folders import write_model
from tests.hub import COMMIT, Hub, serving
from tests.models import patch_of
from vllm_surgery.cli import main
from vllm_surgery.cli.swap import wanted_patches
from vllm_surgery.engine.settings import Settings
from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.imports import fetching
from vllm_surgery.imports.loading import load_named
from vllm_surgery.imports.remote import patch_cache
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = json.dumps(patch_data()).encode()
ID = Patch.from_data(patch_data()).id
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PINNED, MOVING = f"hf://org/repo/cures/small.yaml@{COMMIT}", "hf://org/repo/cures/small.yaml@main"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no token but the one that a test gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return patch_cache()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(files={"cures/small.yaml": CONTENT})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine's own address, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl, which makes a certificate")
    return made, key


@pytest.fixture
def web(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    answers = {"/small.yaml": (200, {}, CONTENT)}
    with serving(Hub(answer=answers.get), context) as server:
        yield server


def pinned(web: Hub, digest: str = SHA256) -> str:
    return f"{web.url}/small.yaml#sha256={digest}"


# The Hub


def test_a_file_of_the_hub_is_a_patch(hub: Hub) -> None:
    member = load_named(PINNED)
    assert (member.source, member.patch.id) == (PINNED, ID)
    assert hub.asked == [("GET", f"/org/repo/resolve/{COMMIT}/cures/small.yaml")]


def test_a_commit_is_fetched_once(hub: Hub) -> None:
    assert [load_named(PINNED).patch.id for _ in range(3)] == [ID] * 3
    assert len(hub.asked) == 1


def test_a_branch_is_asked_each_time(hub: Hub) -> None:
    assert load_named(MOVING).patch.id == ID
    hub.files["cures/small.yaml"] = json.dumps(patch_data(name="other")).encode()
    assert load_named(MOVING).patch.name == "other"


def test_a_patch_at_an_address_is_sealed_into_a_file_of_ones_own(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["cures/small.yaml"] = json.dumps(patch_of({(0, 1): -1.0})).encode()
    model, out = write_model(tmp_path / "model", (6, 8), hidden=16), tmp_path / "own.yaml"

    assert main(["seal", MOVING, "--model", str(model), "-o", str(out)]) == 0
    assert list(load_named(out).patch.seal) == ["neurons/0/1"]

    capsys.readouterr()
    assert main(["seal", MOVING, "--model", str(model)]) == 2
    assert capsys.readouterr().err == (
        f"vllm-surgery: error: {MOVING}: a patch at an address is sealed into a file of your own: name it by -o FILE\n"
    )


def test_what_stood_at_a_branch_serves_while_the_hub_is_away(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_named(MOVING)
    hub.answer = lambda _path: (503, {}, b"")
    assert load_named(MOVING).patch.id == ID
    assert "503 Service Unavailable; going on with what stood there when it was last fetched" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.asked)
    assert (load_named(MOVING).patch.id, len(hub.asked)) == (ID, asked)


def test_offline_nothing_is_asked_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = f"{PINNED}: isn't in the cache, and HF_HUB_OFFLINE is set"
    assert refusal(lambda: load_named(PINNED), UsageError) == said
    assert hub.asked == []


def test_a_damaged_cache_is_fetched_anew(hub: Hub, cache: Path) -> None:
    load_named(PINNED)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"small", b"large"))
    assert load_named(PINNED).patch.id == ID
    assert len(hub.asked) == 2


def test_a_cache_that_cant_be_written_is_no_error(hub: Hub, cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder would be")
    assert [load_named(PINNED).patch.id for _ in range(2)] == [ID] * 2
    assert len(hub.asked) == 2


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(answer=lambda _path: (200, {}, CONTENT))) as elsewhere:
        hub.answer = lambda _path: (302, {"Location": f"{elsewhere.url}/blob"}, b"")
        assert load_named(MOVING).patch.id == ID
    assert (hub.tokens, elsewhere.tokens) == (["Bearer hf_secret"], [None])


def test_other_bytes_than_the_hub_says_are_refused(hub: Hub) -> None:
    hub.answer = lambda _path: (200, {"ETag": f'"{"a" * 40}"'}, CONTENT)
    assert "where the Hub says aaaaaaaaaaaa…" in refusal(lambda: load_named(PINNED), PatchError)
    hub.answer = lambda _path: (200, {"X-Linked-Etag": f'"{"b" * 64}"', "ETag": '"x"'}, CONTENT)
    assert "where the Hub says bbbbbbbbbbbb…" in refusal(lambda: load_named(PINNED), PatchError)
    hub.answer = lambda _path: (200, {"X-Linked-Etag": f'"{SHA256}"'}, CONTENT)
    assert load_named(PINNED).patch.id == ID


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://org/repo/small.yaml", "names no revision: @main is what stands there at the time, a commit is always"),
        ("hf://org/repo/small.yaml@../x", "names no revision"),
        ("hf://org/repo@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("hf://org/repo/small.txt@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("hf://org/repo/../../small.yaml@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("hf://org/repo//small.yaml@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("hf://../repo/small.yaml@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("hf://org/repo/small.yaml?x@main", "expected hf://ORG/REPO/FILE.yaml@REVISION"),
        ("http://127.0.0.1/small.yaml#sha256=" + "0" * 64, "is not https; a patch comes over https"),
        ("https://127.0.0.1/small.yaml", "expected https://HOST/FILE.yaml#sha256= and the 64 digits"),
        ("https://127.0.0.1/small.yaml#sha256=12", "expected https://HOST/FILE.yaml#sha256= and the 64 digits"),
        ("https://me:secret@127.0.0.1/a.yaml#sha256=" + "0" * 64, "expected https://HOST/FILE.yaml#sha256= and the 64"),
        ("https:///small.yaml#sha256=" + "0" * 64, "expected https://HOST/FILE.yaml#sha256= and the 64 digits"),
    ],
)
def test_an_address_is_refused(address: str, reason: str) -> None:
    assert refusal(lambda: load_named(address), UsageError).startswith(f"{address}: {reason}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b""), "the server says 404 Not Found"),
        ((401, {}, b""), "the server says 401 Unauthorized"),
        ((500, {}, b""), "the server says 500 Internal Server Error"),
        ((200, {}, b" " * (MAX_BYTES + 1)), "is longer than 1048576 bytes"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "Redirection to url 'file:///etc/passwd' is not allowed"),
        ((302, {"Location": "ftp://127.0.0.1/x"}, b""), "leads to ftp://127.0.0.1/x, which is not http"),
        ((302, {"Location": "https://127.0.0.1:1/x"}, b""), "leads to https://127.0.0.1:1/x, which is not http"),
        ((302, {"Location": "/again"}, b""), "the server says 302"),
    ],
)
def test_what_a_server_gives_is_refused(hub: Hub, answer: tuple[int, dict[str, str], bytes], reason: str) -> None:
    hub.answer = lambda _path: answer
    said = refusal(lambda: load_named(PINNED))
    assert said.startswith(hub.url)
    assert reason in said


def test_a_server_that_isnt_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub()) as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    assert "can't be fetched: " in refusal(lambda: load_named(PINNED), fetching.UnreachableError)


@pytest.mark.parametrize(
    "endpoint", ["file:///etc", "ftp://127.0.0.1", "nothing", "http://[::bad", "http://127.0.0.1:99999"]
)
def test_an_endpoint_that_is_none_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "can't be fetched: " in refusal(lambda: load_named(PINNED), fetching.UnreachableError)


def test_a_server_that_speaks_no_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"SSH-2.0-hello\r\n")

        threading.Thread(target=talk, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert "can't be fetched: " in refusal(lambda: load_named(PINNED), fetching.UnreachableError)


def test_a_server_that_drips_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    going_on = threading.Event()
    monkeypatch.setattr(fetching, "SECONDS_FOR_ALL", 0.2)

    def wait(_path: str) -> tuple[int, dict[str, str], bytes]:
        going_on.wait(30)
        return 200, {}, CONTENT

    hub.answer = wait
    said = refusal(lambda: load_named(PINNED), fetching.UnreachableError)
    going_on.set()
    assert said.endswith("not there within 0.2 seconds")


def test_what_comes_is_read_as_every_patch_is(hub: Hub) -> None:
    hub.files["cures/small.yaml"] = b"!!python/object:os.system {}"
    assert refusal(lambda: load_named(PINNED), PatchError).startswith(f"{PINNED}: line 1, column 1: YAML tags are not")


# The web


def test_a_file_with_its_hash_is_a_patch_and_is_fetched_once(web: Hub) -> None:
    assert [load_named(pinned(web)).patch.id for _ in range(3)] == [ID] * 3
    assert web.asked == [("GET", "/small.yaml")]


def test_another_hash_is_refused_and_not_kept(web: Hub, cache: Path) -> None:
    said = refusal(lambda: load_named(pinned(web, "0" * 64)), PatchError)
    assert said.endswith(f"its sha256 is {SHA256[:12]}…, not 000000000000…")
    assert not cache.exists()


def test_https_leads_to_no_http(web: Hub) -> None:
    web.answer = lambda _path: (302, {"Location": "http://127.0.0.1:1/x"}, b"")
    assert "which is not https" in refusal(lambda: load_named(pinned(web)), UsageError)


def test_a_certificate_that_isnt_known_is_refused(web: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(lambda: load_named(pinned(web)))


# Where addresses may stand


def test_commands_take_addresses(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", PINNED]) == 0
    assert capsys.readouterr().out == f"ok: {PINNED} is {ID}\n"
    assert main(["show", PINNED]) == 0
    hub.answer = lambda _path: (404, {}, b"")
    assert main(["check", MOVING]) == 2


def test_a_swap_sends_the_patch_itself_and_no_address(hub: Hub) -> None:
    assert wanted_patches([PINNED, "a-name"]) == [Patch.parse(CONTENT).to_data(), "a-name"]
    assert len(hub.asked) == 1


def test_settings_take_addresses(hub: Hub) -> None:
    assert Settings(patches=[PINNED]).load().id == ID
    assert len(hub.asked) == 1


@pytest.mark.parametrize("arguments", [["serve", "m", "--patch", PINNED, "--watch"]])
def test_no_address_is_followed(arguments: list[str], hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(f"error: --watch: {PINNED} is an address; only files are followed\n")
    assert hub.asked == []


def test_settings_follow_no_address() -> None:
    given: dict[str, Any] = {"vllm_surgery": {"patches": [PINNED], "watch": True}}
    said = refusal(lambda: Settings.of(given), UsageError)
    assert said == "additional_config.vllm_surgery: watch: an address can't be followed, only files"
