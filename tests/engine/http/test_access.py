# SPDX-License-Identifier: Apache-2.0
"""Who may swap."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import pytest

from tests.examples import refusal
from vllm_surgery.engine.http.access import Access, Caller, ForbiddenError, UnauthorizedError, check_root_path
from vllm_surgery.errors import UsageError

HERE, ELSEWHERE = "127.0.0.1", "10.0.0.7"
LOCAL, EVERYWHERE = Access(loopback=True), Access()
OPEN_TO_ALL, SOCKET = Access(remote=True), Access(unix_socket=True)
WITH_KEY = Access(api_keys=("secret",))
WITH_SURGERY_KEY = Access(surgery_keys=("scalpel",))
WITH_BOTH = Access(api_keys=("secret",), surgery_keys=("scalpel",))


def caller(peer: str | None = HERE, /, **headers: str) -> Caller:
    pairs = {"host": "localhost:8000", **headers}
    return Caller(peer, [(name.replace("_", "-"), value) for name, value in pairs.items()])


def refused(access: Access, peer: str | None = HERE, /, **headers: str) -> str:
    return refusal(lambda: access.check(caller(peer, **headers)), ForbiddenError)


def passes(access: Access, peer: str | None = HERE, /, **headers: str) -> None:
    access.check(caller(peer, **headers))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may(peer: str) -> None:
    passes(LOCAL, peer)


@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "::ffff:10.0.0.7", "172.17.0.1", "0.0.0.0", "localhost", "", "fe80::1%eth0", None]
)
def test_nothing_else_may(peer: str | None) -> None:
    assert refused(LOCAL, peer) == (
        "no changes from other machines without a key: give the server a --surgery-key or an --api-key"
    )


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "127.9.9.9"])
def test_a_local_host_may_be_named_in_any_way(host: str) -> None:
    passes(LOCAL, host=host)


@pytest.mark.parametrize(
    "host",
    [
        "vllm.example",
        "vllm.example:8000",
        "10.0.0.7",
        "localhost.evil.example",
        "",
        "[::1",
        "a@localhost",
        "localhost/x",
    ],
)
def test_a_proxy_that_says_nothing_is_known_by_the_host_that_was_asked_for(host: str) -> None:
    assert refused(LOCAL, host=host).startswith("no changes from other machines without a key")


def test_no_host_or_two_are_not_this_machine() -> None:
    for hosts in ([], [("host", "localhost"), ("host", "vllm.example")]):
        refusal(lambda hosts=hosts: LOCAL.check(Caller(HERE, hosts)), ForbiddenError)


def test_a_server_that_others_can_reach_takes_no_changes_without_a_key() -> None:
    assert refused(EVERYWHERE) == (
        "no changes without a key on a server that isn't bound to 127.0.0.1: give the server a --surgery-key or an "
        "--api-key"
    )


def test_a_unix_socket_is_this_machine() -> None:
    passes(SOCKET, None, host="whatever")


@pytest.mark.parametrize(
    "header", ["x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "forwarded", "via", "x_real_ip"]
)
@pytest.mark.parametrize("access", [LOCAL, SOCKET])
def test_no_proxy_can_make_a_caller_local(access: Access, header: str) -> None:
    """A web server that trusts a proxy takes the address from such a header, whoever wrote it."""
    said = refused(access, HERE, **{header: "127.0.0.1"})
    assert said.startswith("no changes through a proxy without a key")


def test_the_setting_lets_other_machines_in() -> None:
    passes(OPEN_TO_ALL, ELSEWHERE, x_forwarded_for="8.8.8.8", host="vllm.example")


def test_the_api_key_lets_changes_in_where_there_is_no_other() -> None:
    passes(WITH_KEY, ELSEWHERE, authorization="Bearer secret", host="vllm.example")
    passes(WITH_KEY, ELSEWHERE, authorization="bearer secret", host="vllm.example")


@pytest.mark.parametrize(
    "authorization",
    ["", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer secret ", "Bearer Secret", "Bearer \xff"],
)
def test_the_api_key_is_asked_for_here_too(authorization: str) -> None:
    """vLLM looks at the text of a path, which a root path can change."""
    for check in (WITH_KEY.check, WITH_KEY.check_read, WITH_BOTH.check_read):
        said = refusal(lambda check=check: check(caller(authorization=authorization)), UnauthorizedError)
        assert said == "this server wants its API key"


def test_whoever_may_infer_may_not_change_where_there_is_a_surgery_key() -> None:
    assert refused(WITH_BOTH, authorization="Bearer secret") == "this server wants its surgery key, in X-Surgery-Key"
    assert refused(WITH_BOTH, authorization="Bearer secret", x_surgery_key="secret").startswith("this server wants")
    WITH_BOTH.check_read(caller(authorization="Bearer secret"))


@pytest.mark.parametrize("access", [WITH_SURGERY_KEY, WITH_BOTH])
def test_the_surgery_key_lets_changes_in(access: Access) -> None:
    passes(access, ELSEWHERE, authorization="Bearer secret", x_surgery_key="scalpel", host="vllm.example")
    passes(access, ELSEWHERE, authorization="Bearer scalpel", host="vllm.example")


def test_without_an_api_key_everybody_may_look() -> None:
    for access in (LOCAL, EVERYWHERE, WITH_SURGERY_KEY):
        access.check_read(caller(ELSEWHERE))


@pytest.mark.parametrize("access", [LOCAL, OPEN_TO_ALL, WITH_KEY, WITH_SURGERY_KEY])
def test_changes_can_be_switched_off_for_all(access: Access) -> None:
    off = replace(access, changes=False)
    said = refused(off, authorization="Bearer secret", x_surgery_key="scalpel")
    assert said == "this server takes no changes over HTTP (allow_swaps is off)"


NO_PAGE = "no changes by pages of another site; --allowed-origins can name one"


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
@pytest.mark.parametrize("access", [LOCAL, OPEN_TO_ALL])
def test_pages_of_other_sites_may_not(access: Access, origin: str, host: str) -> None:
    assert refused(access, origin=origin, host=host) == NO_PAGE


@pytest.mark.parametrize("access", [WITH_KEY, WITH_BOTH])
def test_no_key_makes_a_page_of_another_site_the_servers_own(access: Access) -> None:
    keys = {"authorization": "Bearer secret", "x_surgery_key": "scalpel"}
    assert refused(access, origin="https://lab.example", host="localhost:8000", **keys) == NO_PAGE
    passes(access, origin="https://vllm.example", host="vllm.example", **keys)  # Nobody's DNS knows the key.


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_the_servers_own_pages_may(host: str) -> None:
    passes(LOCAL, origin=f"http://{host}", host=host)


def test_two_hosts_are_nobodys_own() -> None:
    stranger = Caller(HERE, [("origin", "http://localhost"), ("host", "localhost"), ("host", "evil.example")])
    refusal(lambda: LOCAL.check(stranger), ForbiddenError)


def test_origins_that_the_operator_named_may() -> None:
    named = Access.of(Namespace(allowed_origins=["https://lab.example"], host="localhost"), remote=False)
    passes(named, origin="https://lab.example", host="localhost:8000")
    refused(named, origin="https://other.example", host="localhost:8000")


def test_vllms_default_of_all_origins_names_none() -> None:
    named = Access.of(Namespace(allowed_origins=["*"], host="localhost"), remote=False)
    assert refused(named, origin="*", host="localhost:8000") == NO_PAGE


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("::1", True), ("localhost", True), (None, False), ("", False), ("0.0.0.0", False),
        ("::", False), ("10.0.0.7", False), ("vllm.example", False),
    ],
)  # fmt: skip
def test_the_address_that_is_listened_on_is_known_from_vllms_arguments(host: str | None, loopback: bool) -> None:
    assert Access.of(Namespace(host=host), remote=False).loopback is loopback


def test_the_surgery_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SURGERY_KEY", "scalpel")
    assert Access.of(Namespace(), remote=False).surgery_keys == ("scalpel",)
    monkeypatch.setenv("VLLM_SURGERY_KEY", "")
    assert Access.of(Namespace(), remote=False).surgery_keys == ()


@pytest.mark.parametrize("path", ["/", "/v", "/v1", "/v1/", "/v1/surgery", "/v1/c", "v1", "api", "/api/"])
def test_root_paths_that_open_the_routes_are_refused(path: str) -> None:
    assert refusal(lambda: check_root_path(path), UsageError) == (
        f"--root-path {path}: with this one vLLM's API key doesn't guard all routes; give one such as /api, without a "
        "slash at its end, that isn't the beginning of /v1"
    )


@pytest.mark.parametrize("path", ["", None, "/api", "/v10", "/models/v1", "/v1beta"])
def test_other_root_paths_are_taken(path: str | None) -> None:
    check_root_path(path)


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
    assert Access.of(Namespace(api_key=argument), remote=False).api_keys == (
        ((argument or [variable])[0],) if asked else ()
    )
    assert bool([key for key in (argument or [variable]) if key]) is asked


def test_a_unix_socket_is_known_from_vllms_arguments() -> None:
    assert Access.of(Namespace(uds="/run/vllm.sock"), remote=False).unix_socket
    assert not Access.of(Namespace(uds=None), remote=False).unix_socket
