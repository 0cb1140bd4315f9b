# SPDX-License-Identifier: Apache-2.0
"""Who may swap."""

from __future__ import annotations

from argparse import Namespace

import pytest

from tests.examples import refusal
from vllm_surgery.engine.http.access import Access, Caller, ForbiddenError

HERE, ELSEWHERE = "127.0.0.1", "10.0.0.7"
OPEN, OPEN_TO_ALL, WITH_KEY = Access(key_asked=False), Access(key_asked=False, remote=True), Access(key_asked=True)


def refused(access: Access, peer: str | None = HERE, /, **headers: str) -> str:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return refusal(lambda: access.check(Caller(peer, pairs)), ForbiddenError)


def passes(access: Access, peer: str | None = HERE, /, **headers: str) -> None:
    access.check(Caller(peer, [(name.replace("_", "-"), value) for name, value in headers.items()]))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may(host: str) -> None:
    passes(OPEN, host)


@pytest.mark.parametrize(
    "host", ["10.0.0.7", "::ffff:10.0.0.7", "172.17.0.1", "0.0.0.0", "localhost", "", "fe80::1%eth0"]
)
def test_nothing_else_may(host: str) -> None:
    assert refused(OPEN, host) == (
        "no swaps from other machines without an API key: give the server an --api-key, or set allow_remote_swaps"
    )


def test_a_unix_socket_is_this_machine() -> None:
    passes(Access(key_asked=False, unix_socket=True), None)


def test_a_tcp_caller_that_has_no_address_any_more_may_not() -> None:
    refused(OPEN, None)


@pytest.mark.parametrize(
    "header", ["x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "forwarded", "via", "x_real_ip"]
)
@pytest.mark.parametrize("access", [OPEN, Access(key_asked=False, unix_socket=True)])
def test_no_proxy_can_make_a_caller_local(access: Access, header: str) -> None:
    """A web server that trusts a proxy takes the address from such a header, whoever wrote it."""
    said = refused(access, HERE, **{header: "127.0.0.1"})
    assert said.startswith("no swaps through a proxy without an API key")


def test_a_key_or_the_setting_lets_other_machines_in() -> None:
    for access in (WITH_KEY, OPEN_TO_ALL):
        passes(access, ELSEWHERE, x_forwarded_for="8.8.8.8")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example", "localhost:8000"),
        ("http://localhost:3000", "localhost:8000"),
        ("http://evil.example:8000", "evil.example:8000"),  # A name of the stranger's that leads to this machine.
        ("http://localhost.evil.example", "localhost.evil.example"),
        ("http://127.0.0.1:8000", "localhost:8000"),
        ("null", "localhost:8000"),
        ("", ""),
        ("http://[", "localhost:8000"),
    ],
)
@pytest.mark.parametrize("access", [OPEN, OPEN_TO_ALL])
def test_pages_of_other_sites_may_not(access: Access, origin: str, host: str) -> None:
    assert refused(access, origin=origin, host=host) == "no swaps by pages of another site without an API key"


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"])
def test_the_servers_own_pages_may(host: str) -> None:
    passes(OPEN, origin=f"http://{host}", host=host)


def test_two_hosts_are_nobodys_own() -> None:
    caller = Caller(HERE, [("origin", "http://localhost"), ("host", "localhost"), ("host", "evil.example")])
    refusal(lambda: OPEN.check(caller), ForbiddenError)


def test_origins_that_the_operator_named_may() -> None:
    named = Access.of(Namespace(allowed_origins=["https://lab.example"]), remote=False)
    passes(named, origin="https://lab.example", host="localhost:8000")
    refused(named, origin="https://other.example", host="localhost:8000")


def test_vllms_default_of_all_origins_names_none() -> None:
    refused(Access.of(Namespace(allowed_origins=["*"]), remote=False), origin="*", host="localhost:8000")


def test_whoever_has_the_key_may_from_any_page() -> None:
    passes(WITH_KEY, origin="https://lab.example", host="localhost:8000")


@pytest.mark.parametrize(
    ("argument", "variable", "asked"),
    [
        (None, None, False),
        (None, "", False),
        (["secret"], None, True),
        (None, "secret", True),
        ([], "secret", True),
        ([""], None, False),
        ([""], "secret", False),  # So vLLM decides it: any --api-key goes before the variable.
    ],
)
def test_a_key_is_asked_for_where_vllm_asks_for_one(
    argument: list[str] | None, variable: str | None, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_API_KEY", variable)
    assert Access.of(Namespace(api_key=argument), remote=False).key_asked is asked
    assert bool([key for key in (argument or [variable]) if key]) is asked


def test_a_unix_socket_is_known_from_vllms_arguments() -> None:
    assert Access.of(Namespace(uds="/run/vllm.sock"), remote=False).unix_socket
    assert not Access.of(Namespace(uds=None), remote=False).unix_socket
