# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, before the plugin's own routes and metrics."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest

from tests.examples import patch_data, zero
from vllm_surgery.api import patch_set
from vllm_surgery.client.traffic import Traffic
from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.rescue.actions import Policy
from vllm_surgery.engine.rescue.metrics import RescueMetrics
from vllm_surgery.errors import CannotSwapError, ConflictError, EngineError, MismatchError, SwapFailedError
from vllm_surgery.patch.format import Patch

pytest.importorskip("selenium", reason="selenium is not installed, so the page was not looked at")
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.keys import Keys

from tests.engine.http.page.browser import BROWSER, DRIVER, Page, browser
from tests.engine.http.page.site import Site
from tests.engine.requests.test_swapper import slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engine.requests.test_swapper import Slots
    from vllm_surgery.client.traffic import Loops
    from vllm_surgery.errors import SurgeryError

pytestmark = [
    pytest.mark.slow,  # A browser for each test.
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no Chromium, so the page was not looked at: apt-get install chromium chromium-driver",
    ),
]

A, B = patch_data(zero({"1": [1]}), name="a"), patch_data(zero({"2": [2]}), name="b")
NOTHING = "\N{EN DASH}"
"""Stands where there is no figure."""

LONG = "smollm2-135m-instruct-enumeration-and-more@12345678"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def opened(site: Site, page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Page]]:
    """Starts the site and opens the page; afterwards the browser must have had nothing to complain about."""
    with ExitStack() as stack:

        def start(*, complaints: int = 0, **options: Any) -> Page:
            stack.enter_context(site.running(monkeypatch, **options))
            page.open(site.url)
            return page

        yield start
        # A status that isn't 2xx is logged by the browser itself.
        assert [line for line in page.complaints if "Failed to load resource" not in line] == []


def tick_patches(page: Page, *names: str) -> None:
    for box in page.all("#patches input:enabled"):
        if box.is_selected() != (box.get_attribute("value") in names):
            box.click()


def swap(page: Page, *names: str) -> None:
    tick_patches(page, *names)
    page.click("swap")
    page.click("go")
    page.until(lambda: page.text("outcome") not in {"", "Swapping…"} or page.text("refusal"))
    page.settle()


def shown(loops: Loops) -> str:
    """A row of the table of loops, from Python's figures."""
    rate, share = loops.rate, loops.token_share
    tokens = f"{100 * share:.1f} %" if share is not None else NOTHING
    if rate is None:
        return f"{loops.kind} {NOTHING} {loops.live} {tokens}"
    interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"
    return f"{loops.kind} {100 * rate.value:.1f} % {interval}, {loops.answers} looped {loops.live} {tokens}"


def test_what_is_served_is_shown(opened: Callable[..., Page], site: Site) -> None:
    site.swapper.active = "a@12345678"
    page = opened()
    assert page.text("model") == "served · LlamaForCausalLM · 30 layers"
    assert page.text("active") == "a@12345678"
    assert page.text("active-more").endswith(" · epoch 0 · 5 units in 2 tensors")
    assert page.text("desired") == ""
    assert page.text("freshness").startswith("Looked at ")


def test_the_figures_are_those_of_the_command_line(opened: Callable[..., Page], site: Site) -> None:
    site.swapper.active = "a@1"
    site.answers("none", 9, "verbatim")
    site.answers("none", 21)
    site.answers("a@1", 2, "decay", "verbatim")
    site.answers("a@1", 38)
    site.loops.entered("doom", "none")
    site.loops.open("b@1")
    page = opened()
    traffic = Traffic.of(generate_latest(site.registry).decode())
    by_id = {patch.patch: patch for patch in traffic.patches}
    rows = page.rows("loops")
    assert rows[0] == "a@1 active · 40 answers · 4,000 tokens"
    assert rows[5] == "none 30 answers · 3,000 tokens"
    assert rows[1:5] == [shown(loops) for loops in by_id["a@1"].loops]
    assert rows[6:10] == [shown(loops) for loops in by_id["none"].loops]
    assert rows[11:15] == [shown(loops) for loops in by_id["b@1"].loops]
    assert (page.text("rate"), page.text("live"), page.text("wasted")) == ("5.0 %", "1", "2.5 %")
    assert page.text("live-more") == "0 verbatim, 0 decay, 0 collapse, 1 doom"


def test_intervals_are_pythons_to_the_digit(opened: Callable[..., Page]) -> None:
    counts = [(loops, answers) for answers in (0, 1, 2, 7, 40, 999, 100_000) for loops in {0, 1, answers // 3, answers}]
    scrape = "\n".join(
        f'vllm_surgery_requests_total{{patch="{number}"}} {answers}\n'
        f'vllm_surgery_loops_total{{kind="decay",outcome="escaped",patch="{number}"}} {loops}'
        for number, (loops, answers) in enumerate(counts)
    )
    page = opened()
    page.scrapes(scrape)
    page.refresh()
    expected = [shown(patch.loops[0]).split(" looped")[0] for patch in Traffic.of(scrape + "\n").patches]
    assert [row.split(" looped")[0].replace(",", "") for row in page.rows("loops")[1::2]] == [
        row.replace(",", "") for row in expected
    ]


def test_rescues_are_shown_where_there_may_be_any(opened: Callable[..., Page], site: Site) -> None:
    rescues = RescueMetrics(site.metrics, "served")
    page = opened()
    assert not page["rescues-card"].is_displayed()
    rescues.expect("none", Policy.parse({"decay": "penalty:1.15"}))
    rescues.count("none", "decay", "penalty", "ended", 1200)
    rescues.count("none", "decay", "penalty", "looped_again", 34)
    page.refresh()
    assert sorted(page.rows("rescues")) == ["none decay penalty 1 1 0 1,234", "none decay stop 0 0 0 0"]


def test_without_an_answer_that_is_said(opened: Callable[..., Page]) -> None:
    page = opened()
    assert page.text("no-answers") == "No answer has ended yet."
    assert (page.text("rate"), page.text("wasted"), page.text("live")) == (NOTHING, NOTHING, "0")
    assert page.text("no-swaps") == "None since the server was started."
    assert page.text("chart").endswith("No answer has ended since this page was opened.")


def test_a_swap_asks_first_and_shows_how_it_went(opened: Callable[..., Page], site: Site) -> None:
    a = site.add_patch(A)
    page = opened()
    tick_patches(page, "a")
    page.choose("mode", "wait")
    page.click("swap")
    assert page["confirm"].is_displayed()
    assert [page.text(f"confirm-{part}") for part in ("from", "to", "mode", "epoch")] == [
        "none",
        "a",
        "are waited for",
        "0",
    ]
    assert site.swapper.calls == []
    page.click("go")
    page.until_text("outcome", f"{a} in place of none, epoch 1. Tokens stood still for 9 ms.")
    assert site.swapper.calls == [(a, "wait", 0)]
    page.until_text("active", a)
    assert page.rows("swaps")[0].startswith(f"{a} done 1 10 ms ")
    assert page.rows("swaps")[0].count(":") == 2  # The time at which it was seen.
    assert len(page.all("#chart .swap")) == 1
    assert not page["confirm"].is_displayed()


def test_a_swap_can_be_called_off(opened: Callable[..., Page], site: Site) -> None:
    site.add_patch(A)
    page = opened()
    tick_patches(page, "a")
    page.click("swap")
    page.click("cancel")
    assert not page["confirm"].is_displayed()
    page.click("swap")
    page.run("return document.activeElement").send_keys(Keys.ESCAPE)
    page.until(lambda: not page["confirm"].is_displayed())
    assert (site.swapper.calls, page.text("outcome")) == ([], "")


def test_the_keyboard_suffices_and_enter_alone_swaps_nothing(opened: Callable[..., Page], site: Site) -> None:
    page = opened()
    page["swap"].send_keys(Keys.ENTER)
    focused = page.run("return document.activeElement")
    assert focused.get_attribute("id") == "cancel"
    focused.send_keys(Keys.ENTER)
    page.until(lambda: not page["confirm"].is_displayed())
    assert site.swapper.calls == []


def test_several_patches_and_none_at_all(opened: Callable[..., Page], site: Site) -> None:
    a, b = site.add_patch(A), site.add_patch(B)
    page = opened()
    swap(page, "a", "b")
    assert "+" in page.text("active")
    swap(page)
    assert page.text("active") == "none"
    assert [call[0] for call in site.swapper.calls] == ["+".join(sorted([a, b])), "none"]


def test_a_swap_to_what_is_active_says_so(opened: Callable[..., Page]) -> None:
    page = opened()
    swap(page)
    assert page.text("outcome") == "none was active already, epoch 1."


def test_what_is_active_is_ticked_and_what_is_broken_cannot_be(opened: Callable[..., Page], site: Site) -> None:
    site.swapper.active = site.add_patch(A)
    site.add_patch(B)
    (site.folder / "bad.yaml").write_text("version: 1\n")
    page = opened()
    boxes = {box.get_attribute("value"): box for box in page.all("#patches input")}
    assert {name: (box.is_selected(), box.is_enabled()) for name, box in boxes.items()} == {
        "a": (True, True),
        "b": (False, True),
        "bad": (False, False),
    }
    assert "bad is refused; the server's log says why" in page.text("patches")


def test_a_patch_that_is_new_is_found_by_listing_again(opened: Callable[..., Page], site: Site) -> None:
    page = opened()
    assert "The server has no patch folder, or nothing in it." in page.text("patches")
    b = site.add_patch(B)
    page.click("relist")
    page.settle()
    assert b in page.text("patches")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConflictError("another swap runs"), 409),
        (MismatchError("a.yaml", "edits[0]", "out of range"), 422),
        (CannotSwapError("experts are balanced"), 501),
        (SwapFailedError("rank 1 failed"), 500),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_refusal_is_one_line_and_goes_with_the_next_swap(
    opened: Callable[..., Page], site: Site, error: SurgeryError, status: int
) -> None:
    page = opened()
    site.swapper.swap_error = error
    swap(page)
    assert (page.text("refusal"), page.text("outcome")) == (str(error), "")
    site.swapper.swap_error = None
    swap(page)
    assert (page.text("refusal"), page["refusal"].is_displayed()) == ("", False)


def test_the_epoch_that_was_seen_guards_the_swap(opened: Callable[..., Page], site: Site) -> None:
    page = opened()
    page.click("swap")
    site.swapper.epoch = 7
    page.tick()
    assert page.text("active-more").endswith(" · epoch 7 · 5 units in 2 tensors")
    page.click("go")
    page.until(lambda: site.swapper.calls)
    assert site.swapper.calls == [("none", "keep", 0)]


def test_a_server_that_cannot_swap_says_why(opened: Callable[..., Page], site: Site) -> None:
    site.swapper.cannot = "experts are balanced"
    page = opened()
    assert page.text("cannot") == "This server can't swap: experts are balanced"
    assert not page["swap"].is_enabled()


def test_what_followed_files_ask_for_is_shown(opened: Callable[..., Page], site: Site, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.json"
    wanted.write_text(json.dumps(A))
    site.swapper.active = site.add_patch(A)
    page = opened(patches=[A], watch=[str(wanted)])
    assert page.text("desired") == "as the followed files ask"
    wanted.write_text(json.dumps(B))
    page.refresh()
    assert page.text("desired").startswith("The followed files ask for: b@")
    wanted.write_text("{}")
    page.refresh()
    assert page.text("desired").endswith("wanted.json is refused; the server's log says why")


def test_the_key_is_asked_for_where_the_server_wants_one(opened: Callable[..., Page], site: Site) -> None:
    page = opened(key="the-secret")
    assert page["key-form"].is_displayed()
    assert not page["figures"].is_displayed()
    for key, said in (
        ("wrong", "The server wants another API key."),
        ("schlüssel", "holds a character that no header"),
    ):
        page["key"].send_keys(key)
        page.click("key-send")
        page.until_text("problem", said)
        page["key"].clear()
    page["key"].send_keys("the-secret", Keys.ENTER)
    page.settle()
    assert page.text("active") == "none"
    assert not page["key-form"].is_displayed()
    assert not page["problem"].is_displayed()
    swap(page)
    assert len(site.swapper.calls) == 1


def test_the_key_is_nowhere_and_asked_for_again(opened: Callable[..., Page], site: Site) -> None:
    page = opened(key="the-secret")
    page["key"].send_keys("the-secret", Keys.ENTER)
    page.settle()
    assert page.text("active") == "none"
    everything = page.run(
        "return [document.documentElement.outerHTML, document.cookie, JSON.stringify(localStorage),"
        "JSON.stringify(sessionStorage), location.href, document.getElementById('key').value].join()"
    )
    assert "the-secret" not in everything
    page.open(site.url)
    assert page["key-form"].is_displayed()


def test_no_key_is_asked_for_where_none_is_wanted(opened: Callable[..., Page]) -> None:
    assert not opened()["key-form"].is_displayed()


def test_an_engine_in_trouble_is_told_and_what_was_known_stays(opened: Callable[..., Page], site: Site) -> None:
    site.answers("none", 3)
    page = opened()
    site.swapper.error = EngineError("rank 1 serves none, rank 0 serves a")
    page.refresh()
    assert page.text("problem") == "rank 1 serves none, rank 0 serves a"
    assert (page.text("freshness"), page["swap"].is_enabled()) == ("Not up to date.", False)
    assert page.rows("loops")[0] == "none active · 3 answers · 300 tokens"
    site.swapper.error = None
    page.refresh()
    assert not page["problem"].is_displayed()
    assert page["swap"].is_enabled()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Promise.reject(new TypeError('down'))", "The server doesn't answer."),
        ("Promise.reject(new DOMException('', 'TimeoutError'))", "No answer in time."),
        ("Promise.resolve(new Response('<h1>hello</h1>'))", "The server answers, but not as vllm-surgery does."),
        ("Promise.resolve(new Response('<h1>no</h1>', {status: 502}))", "The server answered 502."),
        ('Promise.resolve(new Response(\'{"detail": "Not Found"}\', {status: 404}))', "The server answered 404."),
        (
            'Promise.resolve(new Response(\'{"error": "too\\n  busy"}\', {status: 503}))'.replace("\\n", "\\\\n"),
            "too busy",
        ),
    ],
)
def test_whatever_answers_an_error_is_one_line(opened: Callable[..., Page], answer: str, said: str) -> None:
    page = opened()
    page.run(f"window.fetch = () => {answer}")
    page.refresh()
    assert page.text("problem") == said
    assert page.text("active") == "none"


@pytest.mark.parametrize("scrape", ["vllm_surgery_requests_total{patch=", 'vllm_surgery_x{a="b"} many'])
def test_what_is_no_scrape_is_one_line(opened: Callable[..., Page], scrape: str) -> None:
    page = opened()
    page.scrapes(scrape)
    page.refresh()
    assert page.text("problem") == "/metrics is not in Prometheus's text format."


HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'\\{}&amp;'


def test_names_are_text_whatever_they_hold(opened: Callable[..., Page], site: Site) -> None:
    (site.folder / "<img src=x onerror='window.pwned=1'>.json").write_text(json.dumps(A))
    (site.folder / "<b>bad.json").write_text("{")
    site.swapper.active = site.swapper.cannot = HOSTILE
    site.answers(HOSTILE, 4, "verbatim")
    page = opened()
    site.answers(HOSTILE, 4, "verbatim")
    site.swapper.cannot = None
    page.refresh()
    site.swapper.swap_error = ConflictError(HOSTILE)
    swap(page, "<img src=x onerror='window.pwned=1'>")
    for place in ("active", "loops", "legend", "refusal"):
        assert HOSTILE in page.text(place)
    assert page.run("return [window.pwned, document.images.length, document.scripts.length]") == [None, 0, 1]


def test_the_policy_forbids_html_from_text(opened: Callable[..., Page]) -> None:
    page = opened()
    with pytest.raises(JavascriptException, match="TrustedHTML"):
        page.run("document.getElementById('active').innerHTML = '<b>x</b>'")
    assert "TrustedHTML" in page.complaints[0]


def test_the_page_looks_by_itself_until_paused(opened: Callable[..., Page], site: Site) -> None:
    page = opened()
    looks = site.swapper.looks
    page.tick()
    page.tick()
    assert site.swapper.looks == looks + 2
    page.click("pause")
    assert (page.text("pause"), page["pause"].get_attribute("aria-pressed")) == ("Go on", "true")
    page.refresh()
    assert page.text("freshness").startswith("Paused at ")
    looks = site.swapper.looks
    page.tick()
    assert site.swapper.looks == looks
    page.click("pause")
    page.settle()
    assert site.swapper.looks == looks + 1
    assert page.text("freshness").startswith("Looked at ")


def test_answers_since_the_page_was_opened(opened: Callable[..., Page], site: Site) -> None:
    site.answers("none", 10, "verbatim")
    page = opened()
    site.answers("none", 3)
    site.answers("a@1", 2, "doom")
    page.refresh()
    page.choose("since", "open")
    assert page.rows("loops")[0] == "none active · 3 answers · 300 tokens"
    assert page.rows("loops")[5] == "a@1 2 answers · 200 tokens"
    page.choose("since", "start")
    assert page.rows("loops")[0] == "none active · 13 answers · 1,300 tokens"


def test_a_restart_of_the_server_loses_nothing(opened: Callable[..., Page]) -> None:
    page = opened()
    for answers in (100, 130, 5, 9):
        page.scrapes(
            f'vllm_surgery_requests_total{{patch="none"}} {answers}\nvllm_surgery_loops_total{{kind="decay"}} 0\n'
        )
        page.refresh()
    page.choose("since", "open")
    assert page.rows("loops")[0] == "none active · 139 answers · 0 tokens"


def test_the_chart_has_a_line_for_each_patch_of_the_chosen_kind(opened: Callable[..., Page], site: Site) -> None:
    site.loops.open("none")
    page = opened()
    for kinds in (["verbatim"], [], []):
        site.answers("none", 1, *kinds)
        site.answers("a@1", 1)
        page.refresh()
    assert len(page.all("#chart path.line")) == len(page.all("#chart path.band")) == 2
    assert page.text("legend").splitlines() == ["none 33.3 %", "a@1 0.0 %"]
    assert page.all("#chart svg")[0].get_attribute("aria-label") == (
        "Loop rate by patch, latest: none 33.3 %, interval 6.1 to 79.2 %; a@1 0.0 %, interval 0.0 to 56.1 %".replace(
            " %", "\xa0%"
        )
    )
    page.choose("chart-kind", "doom")
    assert page.text("legend").splitlines() == ["none 0.0 %", "a@1 0.0 %"]


def test_the_chart_looks_back_as_far_as_was_chosen(opened: Callable[..., Page], site: Site) -> None:
    site.loops.open("none")
    page = opened()
    page.run("const real = Date.now; window.later = 0; Date.now = () => real() + window.later")
    for kinds in (["decay"], []):
        site.answers("none", 1, *kinds)
        page.run("window.later += 100000")
        page.refresh()
    assert page.text("legend") == "none 50.0 %"
    page.choose("chart-window", "60000")
    assert page.text("legend") == "none 0.0 %"
    assert len(page.all("#chart path.line")) == 2  # Nothing is known of what lies between.


def test_below_a_proxys_path_everything_is_found(opened: Callable[..., Page], site: Site) -> None:
    a = site.add_patch(A)
    page = opened(root_path="/gpu/0", key="k")
    page["key"].send_keys("k", Keys.ENTER)
    page.settle()
    swap(page, "a")
    assert page.text("active") == a


@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (800, False), (1280, True)])
def test_it_fits_every_screen(opened: Callable[..., Page], site: Site, width: int, dark: bool, tmp_path: Path) -> None:
    site.add_patch(patch_data(zero({"1": [1]}), name="smollm2-135m-instruct-enumeration-and-more"))
    site.swapper.active = LONG
    site.answers(LONG, 1234, "verbatim")
    page = opened()
    site.answers(LONG, 10, "decay")
    with page.resized(width, 900, dark=dark):
        page.refresh()
        swap(page, "smollm2-135m-instruct-enumeration-and-more")
        page.picture(tmp_path / f"{width}.png")
        assert page.run("return document.documentElement.scrollWidth") == width
        page.click("swap")
        box = page["confirm"].rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.click("cancel")


def test_every_control_has_a_name(opened: Callable[..., Page], site: Site) -> None:
    site.add_patch(A)
    page = opened(key="k")
    page["key"].send_keys("k", Keys.ENTER)
    page.settle()
    controls = page.all("button, input, select")
    assert len(controls) == 15
    assert [one.get_attribute("outerHTML") for one in controls if not one.accessible_name and one.is_displayed()] == []


# A server with slots.


@pytest.fixture
def slotted(site: Site) -> Slots:
    """Three slots, of which two hold the patches a and b; nobody gets them without asking."""
    site.slots = slots(count=3)
    site.slots.change(*(patch_set(Patch.from_data(data)) for data in (A, B)))
    return site.slots


def shares_shown(page: Page) -> dict[str, str]:
    return {box.get_attribute("name"): box.get_attribute("value") for box in page.all("#slots input")}


def type_shares(page: Page, **shares: str) -> None:
    for box in page.all("#slots input"):
        box.clear()
        box.send_keys(shares[box.get_attribute("name")])


def test_slots_their_users_and_the_default_are_shown(opened: Callable[..., Page], slotted: Slots) -> None:
    slotted.ranks[0].running = ["", "", offered(patch_set(Patch.from_data(A))).digest]
    page = opened()
    assert page.text("slots-more") == "2 of 3 slots filled. Requests that choose no patch get none."
    a, b = (Patch.from_data(data).id for data in (A, B))
    assert page.rows("slots") == ["none 2 All", f"a {a} 1 All", f"b {b} 0 All"]
    assert shares_shown(page) == {"none": "100", "a": "0", "b": "0"}
    slotted.change(shares={"a": 0.25, "none": 0.75})
    page.refresh()
    assert page.text("active") == "a 25.0 %, none 75.0 %"
    assert shares_shown(page) == {"none": "75", "a": "25", "b": "0"}


def test_the_default_is_moved_to_shares(opened: Callable[..., Page], slotted: Slots) -> None:
    page = opened()
    type_shares(page, none="50", a="12.5", b="37.5")
    page.click("move")
    assert [page.text(f"confirm-{part}") for part in ("from", "to", "mode", "epoch")] == [
        "none",
        "none 50.0 %, a 12.5 %, b 37.5 %",
        "end as they began",
        "1",
    ]
    page.click("go")
    page.until_text("outcome", "epoch 2. No token waited.")
    assert slotted.board.offer().shares == {"none": 0.5, "a": 0.125, "b": 0.375}


def test_the_default_is_moved_to_one_patch_by_two_clicks(opened: Callable[..., Page], slotted: Slots) -> None:
    page = opened()
    page.all("#slots button")[1].click()
    assert shares_shown(page) == {"none": "0", "a": "100", "b": "0"}
    page.click("move")
    page.click("go")
    page.until_text("outcome", "Requests that choose no patch get a, epoch 2. No token waited.")
    page.settle()
    assert page.text("active") == Patch.from_data(A).id
    assert slotted.board.offer().shares == {"a": 1.0}


def test_shares_that_do_not_add_up_cannot_be_asked_for(opened: Callable[..., Page], slotted: Slots) -> None:
    page = opened()
    type_shares(page, none="50", a="40", b="0")
    assert page.text("shares-sum") == "The shares add up to 90 %, not 100 %."
    assert not page["move"].is_enabled()
    page.refresh()
    assert shares_shown(page) == {"none": "50", "a": "40", "b": "0"}, "a look leaves what was typed"
    assert not page["move"].is_enabled()
    assert slotted.board.offer().epoch == 1


def test_what_others_changed_meanwhile_is_not_overwritten(opened: Callable[..., Page], slotted: Slots) -> None:
    page = opened()
    page.all("#slots button")[1].click()
    page.click("move")
    slotted.change(shares={"b": 1.0})
    page.click("go")
    page.until_text("refusal", "the epoch is 2, not 1: patches were swapped in between")
    assert slotted.board.offer().shares == {"b": 1.0}


def test_a_swap_takes_a_slot_and_holds_nobody(opened: Callable[..., Page], site: Site, slotted: Slots) -> None:
    c = site.add_patch(patch_data(zero({"0": [1]}), name="c"))
    page = opened()
    assert not page["mode"].is_displayed()
    swap(page, "c")
    assert page.text("outcome") == f"{c} in place of none, epoch 2. No token waited."
    assert page.rows("slots")[-1] == f"c {c} 0 All"
    assert slotted.board.offer().shares == {"c": 1.0}


def test_a_patch_that_leaves_can_be_given_to_nobody(opened: Callable[..., Page], slotted: Slots) -> None:
    slotted.ranks[0].running = [offered(patch_set(Patch.from_data(A))).digest]
    slotted.change(free=["a"])
    page = opened()
    assert page.rows("slots")[1] == f"a {Patch.from_data(A).id} · leaves with its requests 1"
    assert shares_shown(page) == {"none": "100", "b": "0"}


@pytest.mark.parametrize("width", [320, 800])
def test_slots_fit_every_screen(opened: Callable[..., Page], slotted: Slots, width: int) -> None:
    long = patch_data(zero({"0": [1]}), name="smollm2-135m-instruct-enumeration-and-more")
    slotted.change(patch_set(Patch.from_data(long)))
    page = opened()
    with page.resized(width, 900):
        page.refresh()
        assert page.run("return document.documentElement.scrollWidth") == width
    controls = page.all("#slots input, #slots button")
    assert len(controls) == 8
    assert [one.get_attribute("outerHTML") for one in controls if not one.accessible_name] == []


def test_without_slots_there_is_nothing_of_them(opened: Callable[..., Page]) -> None:
    page = opened()
    assert not page["slots-card"].is_displayed()
    assert page["mode"].is_displayed()
