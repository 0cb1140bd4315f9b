# SPDX-License-Identifier: Apache-2.0
"""What becomes of each thing that the plugin does, on a vLLM that lacks what it takes: lost alone, and with a reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_surgery import EngineError, Patch
from vllm_surgery.engine import attributes, install, offers, touchpoints
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.http.endpoint import SurgeryEndpoint
from vllm_surgery.engine.load import compile_cache
from vllm_surgery.engine.load.ranks import verify_hook
from vllm_surgery.engine.monitoring import hooks
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.requests.openai import install_model_names
from vllm_surgery.engine.requests.support import check_support
from vllm_surgery.engine.rescue.support import check_rescue
from vllm_surgery.engine.settings import KEY
from vllm_surgery.engine.touchpoints import TouchPoint

GONE = TouchPoint("vllm.v1.request", "Request.gone", "testing")
LOST = r"this vLLM has no vllm\.v1\.request\.Request\.gone \(testing\)"
MASKED = {
    "version": 1,
    "name": "masked",
    "edits": [{"op": "mask", "experts": {"1": [0]}}],
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Takes a touch point of a group away."""

    def lose(group: str) -> None:
        monkeypatch.setattr(touchpoints, group, (GONE, *getattr(touchpoints, group)))

    return lose


@pytest.mark.parametrize("name", OFFERS)
def test_this_vllm_has_what_it_takes(name: str) -> None:
    OFFERS[name].check()


@pytest.mark.parametrize("name", OFFERS)
def test_one_that_is_lost_takes_no_other_with_it(name: str, without: Any) -> None:
    without(OFFERS[name].group)
    for other, offer in OFFERS.items():
        if other != name:
            offer.check()
    with pytest.raises(EngineError, match=LOST):
        OFFERS[name].check()


def test_an_attribute_of_vllms_objects_counts_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Attributes("vllm.v1.request", "Request", "testing", names=("gone",))
    monkeypatch.setattr(attributes, "FOR_SLOTS", (gone,))
    with pytest.raises(EngineError, match=r"vllm\.v1\.request\.Request has no gone in this vLLM \(testing\)"):
        check_support(SimpleNamespace())


def test_without_slots_a_server_with_slots_is_refused(without: Any) -> None:
    without("FOR_SLOTS")
    with pytest.raises(EngineError, match=LOST):
        check_support(SimpleNamespace())


def test_without_rescue_a_server_that_rescues_is_refused(without: Any) -> None:
    without("FOR_RESCUE")
    with pytest.raises(EngineError, match=LOST):
        check_rescue(SimpleNamespace())


def test_without_names_nothing_of_vllms_models_is_wrapped(without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[str] = []
    monkeypatch.setattr(TouchPoint, "wrap", lambda self, make: wrapped.append(self.path))
    without("FOR_NAMING")
    with pytest.raises(EngineError, match=LOST):
        install_model_names()
    assert wrapped == []


def test_without_watching_nothing_is_wrapped_and_a_line_says_so(without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(TouchPoint, "wrap", lambda self, make: wrapped.append(self.path))
    monkeypatch.setattr(hooks.logger, "warning", lambda text, *values: said.append(text % values))
    without("FOR_WATCHING")
    hooks.install_watching(lambda engine, config: None)
    assert wrapped == []
    assert len(said) == 1
    assert said[0].startswith("vllm-surgery: requests are not watched for loops: this vLLM has no vllm.v1.request")


@pytest.fixture
def refusing(without: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a config as vLLM does, in a process whose vLLM doesn't let patches be applied."""
    made: list[Any] = []
    monkeypatch.setattr(TouchPoint, "wrap", lambda self, make: made.append((self, make)))
    monkeypatch.setattr(install, "install_watching", lambda attach: None)
    without("FOR_LOADING")
    install.install()
    [(point, make)] = made
    assert point is touchpoints.CREATE_CONFIG

    def create(settings: dict[str, Any]) -> Any:
        return make(lambda self: SimpleNamespace(additional_config={KEY: settings}))(None)

    return create


@pytest.mark.parametrize(
    "settings", [{"patches": [MASKED]}, {"patch_dirs": ["/patches"]}, {"mask_buffers": True}, {"slots": 2}]
)
def test_where_patches_can_not_be_applied_who_asks_for_them_is_refused(refusing: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=f"^no patch can be applied: {LOST}"):
        refusing(settings)


@pytest.mark.parametrize("settings", [{}, {"detect_loops": False}, {"on_loop": "stop"}])
def test_where_patches_can_not_be_applied_others_are_served(refusing: Any, settings: dict[str, Any]) -> None:
    assert refusing(settings).additional_config == {KEY: settings}


def test_where_patches_can_not_be_applied_there_are_no_routes(without: Any) -> None:
    without("FOR_LOADING")
    added: list[Any] = []
    endpoint = SurgeryEndpoint()
    endpoint.attach_router(SimpleNamespace(include_router=added.append, add_exception_handler=added.append))  # type: ignore[arg-type]
    assert added == []


def test_where_not_even_a_refusal_is_possible_vllm_does_not_start(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("FOR_LOADING")
    monkeypatch.setattr(touchpoints, "CREATE_CONFIG", GONE)
    with pytest.raises(EngineError, match=LOST):
        install.install()


@pytest.mark.parametrize(
    ("settings", "compiled", "refused"),
    [
        ({"patches": [MASKED]}, True, True),
        ({"slots": 2}, True, True),
        ({"mask_buffers": True}, True, True),
        ({"patches": [MASKED]}, False, False),
        ({"patch_dirs": ["/patches"]}, True, False),
    ],
)
def test_without_the_compile_caches_key_what_changes_the_graph_is_refused_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], compiled: bool, refused: bool
) -> None:
    mode = SimpleNamespace(value=int(compiled))
    config = SimpleNamespace(
        additional_config={KEY: settings}, compilation_config=SimpleNamespace(mode=mode, cudagraph_mode=mode)
    )
    compile_cache.check_compile_cache(config)
    monkeypatch.setattr(touchpoints, "CONFIG_HASH", GONE)
    if not refused:
        compile_cache.check_compile_cache(config)
        return
    with pytest.raises(EngineError, match="compile cache can't be told of masks and slots: start with --enforce-eager"):
        compile_cache.check_compile_cache(config)


def test_without_weight_versions_a_server_starts_and_sets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touchpoints, "SET_WEIGHT_VERSION", GONE)
    config = SimpleNamespace(additional_config={KEY: {"patches": [MASKED]}})
    report = {"id": Patch.from_data(MASKED).id, "units": 1, "tensors": 0, "milliseconds": 1.0}
    core = SimpleNamespace(model_executor=SimpleNamespace(collective_rpc=lambda method: [report]))
    assert verify_hook(lambda self, config: "ready")(core, config) == "ready"


def test_loading_is_judged_by_hooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Attributes("vllm.v1.request", "Request", "testing", names=("gone",))
    monkeypatch.setattr(attributes, "FOR_LOADING", (gone,))
    assert offers.loading_lost() is None
