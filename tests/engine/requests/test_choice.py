# SPDX-License-Identifier: Apache-2.0
"""Which patch a request gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery import UsageError
from vllm_surgery.engine.requests.choice import (
    PINNED_KEY,
    UNPATCHED,
    Offer,
    Offered,
    UnknownPatchError,
    check_shares,
    pinned,
    salted,
)

LOOPS = Offered("loops", "loops@0123abcd", "0123abcd" * 8)
OTHER = Offered("other", "other@89abcdef", "89abcdef" * 8)
BOTH = {item.name: item for item in (LOOPS, OTHER)}
KEYS = [f"request-{number}" for number in range(2_000)]


def test_a_patch_is_chosen_by_its_name() -> None:
    assert Offer(BOTH).named("loops") == LOOPS


def test_the_unpatched_model_is_always_there() -> None:
    assert Offer().named("none") == UNPATCHED


@pytest.mark.parametrize("name", ["absent", 7, None, ["loops"]])
def test_an_unknown_name_is_refused_with_those_that_there_are(name: object) -> None:
    with pytest.raises(UnknownPatchError, match=r"there are none, loops, other$"):
        Offer(BOTH).named(name)


def test_a_huge_name_is_not_said_whole() -> None:
    with pytest.raises(UnknownPatchError) as caught:
        Offer(BOTH).named("x" * 100_000)
    assert len(str(caught.value)) < 200


def test_a_digest_that_left_is_refused() -> None:
    assert Offer(BOTH).holding(OTHER.digest) == OTHER
    with pytest.raises(UnknownPatchError, match="in no slot any more"):
        Offer({"loops": LOOPS}).holding(OTHER.digest)


def test_without_shares_everybody_is_unpatched() -> None:
    assert {Offer(BOTH).default(key) for key in KEYS} == {UNPATCHED}


def test_a_default_that_is_one_patch_is_everybodys() -> None:
    offer = Offer(BOTH, {"loops": 1.0})
    assert {offer.default(key) for key in KEYS} == {LOOPS}
    assert offer.only_default == LOOPS


def test_the_same_key_gets_the_same_patch() -> None:
    offer = Offer(BOTH, {"loops": 0.5, "none": 0.5})
    assert [offer.default(key) for key in KEYS] == [offer.default(key) for key in KEYS]


@pytest.mark.parametrize("shares", [{"loops": 0.5, "none": 0.5}, {"loops": 0.1, "other": 0.2, "none": 0.7}])
def test_shares_are_those_of_the_requests(shares: dict[str, float]) -> None:
    drawn = [Offer(BOTH, shares).default(key).name for key in KEYS]
    assert {name: drawn.count(name) / len(KEYS) for name in shares} == pytest.approx(shares, abs=0.03)


def test_a_share_that_grows_takes_no_request_back() -> None:
    few, more = (Offer(BOTH, {"loops": share, "none": 1 - share}) for share in (0.1, 0.3))
    assert {key for key in KEYS if few.default(key) == LOOPS} < {key for key in KEYS if more.default(key) == LOOPS}


def test_a_drawn_default_is_not_one_patch() -> None:
    assert Offer(BOTH, {"loops": 0.5, "none": 0.5}).only_default is None


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"loops": 0.5, "none": 0.4}, "the shares add up to 0.9, not 1"),
        ({"loops": 1.5, "none": -0.5}, "the share of loops is 1.5, not between 0 and 1"),
        ({"absent": 1.0}, "no slot holds a patch named 'absent'"),
        ({}, "the shares add up to 0, not 1"),
        ({"loops": float("nan"), "none": 1.0}, "the share of loops is nan"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_shares(shares, BOTH)


def test_a_share_of_nothing_is_none_at_all() -> None:
    assert check_shares({"loops": 1.0, "none": 0.0}, BOTH) == {"loops": 1.0}


def test_an_offer_crosses_processes() -> None:
    offer = Offer(BOTH, {"loops": 0.25, "none": 0.75}, 7)
    assert Offer.from_data(offer.to_data()) == offer


def test_what_a_request_was_admitted_with_is_read_back() -> None:
    assert pinned({PINNED_KEY: "abc"}) == "abc"
    assert pinned({PINNED_KEY: 7}) is pinned({}) is pinned(None) is None


def test_without_a_patch_a_request_keeps_its_own_salt() -> None:
    assert salted("", None) is None
    assert salted("", "mine") == salted("", "mine") != salted("", "other")
    digest = "a" * 64
    given = [salted(digest, None), salted(digest, "mine"), f"{digest}|", f"|{digest}", digest, ""]
    assert not {salted("", salt) for salt in given} & {salted(digest, salt) for salt in (None, *given)}


@given(st.text(), st.text())
def test_patches_and_salts_never_share_blocks(one: str, other: str) -> None:
    salts = [salted(digest, salt) for digest in ("a" * 64, "b" * 64) for salt in (None, f"x{one}", f"y{other}")]
    assert len({*salts}) == len(salts)
    assert all(salt is not None and salt.isalnum() and len(salt) <= 128 for salt in salts)
