# SPDX-License-Identifier: Apache-2.0
"""Every request gets its patch where it is set up, in all processes of a server the same."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.models import patch_of
from vllm_surgery import EngineError
from vllm_surgery.engine.requests import board as board_module
from vllm_surgery.engine.requests.admission import board_of, input_processor_hook
from vllm_surgery.engine.requests.board import Board, launcher, shared_file
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offer, Offered
from vllm_surgery.engine.requests.support import check_support

if TYPE_CHECKING:
    from pathlib import Path

PATCH = patch_of({(0, 0): -1.0}, "p")
OTHER = Offered("other", "other@01234567", "digest of other")


class Processor:
    """vLLM's input processor: it copies parameters, unless it is asked not to."""

    def __init__(self, vllm_config: Any, renderer: Any = None) -> None:
        self.config, self.renderer = vllm_config, renderer
        plain = self.process_inputs

        async def later(*args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs)

        self.process_inputs_async = later

    def process_inputs(self, request_id: str, params: Any, *, resumable: bool = False) -> Any:
        return SimpleNamespace(request_id=request_id, sampling_params=params, resumable=resumable)


def processor(*patches: dict[str, Any], slots: int = 2, processes: int = 1) -> Any:
    settings = {"patches": list(patches), "slots": slots}
    parallel = SimpleNamespace(_api_process_count=processes)
    config = SimpleNamespace(additional_config={"vllm_surgery": settings}, parallel_config=parallel)
    made = Processor.__new__(Processor)
    input_processor_hook(Processor.__init__)(made, config)
    return made


def params(**extra: Any) -> Any:
    return SimpleNamespace(extra_args=extra or None)


def pin(given: Any, served: Any, **more: Any) -> str:
    request = served.process_inputs("request", given, **more)
    pinned: str = request.sampling_params.extra_args[PINNED_KEY]
    return pinned


def test_the_patches_of_a_start_are_the_default() -> None:
    served = processor(PATCH)
    board = board_of(served)
    assert board is not None
    assert pin(params(), served) == board.offer().patches["p"].digest
    assert pin(params(patch="none"), served) == ""


def test_without_patches_requests_are_unpatched() -> None:
    assert pin(params(), processor()) == ""


def test_raw_prompts_are_pinned_too() -> None:
    """vLLM renders those in a thread, by a method that it took hold of when the processor was made."""
    from vllm.exceptions import VLLMValidationError

    served = processor(PATCH)
    request = asyncio.run(served.process_inputs_async("request", params(patch="p")))
    assert request.sampling_params.extra_args == {PINNED_KEY: pin(params(), served)}
    with pytest.raises(VLLMValidationError, match="no slot holds a patch named 'absent'"):
        asyncio.run(served.process_inputs_async("request", params(patch="absent")))


def test_parameters_that_requests_share_stay_as_they_are() -> None:
    given = params()
    pin(given, processor(PATCH))
    assert given.extra_args is None


def test_what_was_pinned_stays() -> None:
    served = processor(PATCH)
    digest = pin(params(), served)
    assert pin(params(**{PINNED_KEY: digest}), served) == digest


def test_requests_for_no_tokens_pass() -> None:
    assert processor(PATCH).process_inputs("request", None).sampling_params is None


@pytest.mark.parametrize("extra", [{"patch": "absent"}, {"patch": 7}, {PINNED_KEY: "gone"}])
def test_an_unknown_patch_is_a_clients_error(extra: dict[str, Any]) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="no slot"):
        processor(PATCH).process_inputs("request", params(**extra))


def test_a_session_that_goes_on_cannot_have_a_patch() -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="a session whose input is streamed can't have a patch of its own"):
        processor(PATCH).process_inputs("request", params(), resumable=True)
    assert pin(params(patch="none"), processor(PATCH), resumable=True) == ""


def test_without_slots_a_processor_is_as_vllm_made_it() -> None:
    made = processor(PATCH, slots=0)
    assert board_of(made) is None
    assert "process_inputs" not in vars(made)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(board_module.tempfile, "gettempdir", lambda: str(tmp_path))
    found = shared_file(2, lambda: "1-2")
    assert found is not None
    return found


def test_what_one_process_publishes_the_others_offer(file: Path) -> None:
    one, other = Board(Offer(), file), Board(Offer(), file)
    assert other.offer() == Offer()
    for epoch in (1, 2):
        offer = Offer({"other": OTHER}, {"other": 1.0}, epoch)
        one.publish(offer)
        assert other.offer() == offer


def test_an_older_offer_does_not_come_back(file: Path) -> None:
    one, other = Board(Offer(), file), Board(Offer(), file)
    newer = Offer({"other": OTHER}, epoch=2)
    one.publish(newer)
    other.publish(Offer(epoch=1))
    assert one.offer() == other.offer() == newer


def test_a_single_process_shares_nothing() -> None:
    assert shared_file(1, lambda: "never asked") is None


def test_the_folder_is_this_users_alone(file: Path) -> None:
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.parent.chmod(0o755)
    with pytest.raises(EngineError, match="isn't this user's alone"):
        shared_file(2, lambda: "1-2")


def test_a_server_is_told_from_one_with_the_same_number_before() -> None:
    number, started = launcher().split("-")
    assert int(number) == os.getppid()
    assert float(started) > 0


def config(**changes: Any) -> Any:
    """A vLLM config that can have slots, but for `changes`."""
    parallel = {"use_ubatching": False, "prefill_context_parallel_size": 1, "enable_elastic_ep": False}
    made = {
        "model_config": SimpleNamespace(runner_type="generate"),
        "parallel_config": SimpleNamespace(**parallel),
        "cache_config": SimpleNamespace(kv_sharing_fast_prefill=False),
        "speculative_config": None,
        "kv_transfer_config": None,
    }
    for path, value in changes.items():
        part, _, name = path.partition("__")
        made[part] = value if not name else SimpleNamespace(**{**vars(made[part]), name: value})
    return SimpleNamespace(**made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_config__runner_type": "pooling"}, "a pooling model's requests can't carry a choice"),
        ({"parallel_config__use_ubatching": True}, "dual batch overlap cuts"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "with prefill context parallelism"),
        ({"parallel_config__enable_elastic_ep": True}, "elastic expert parallelism"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        ({"speculative_config": SimpleNamespace(enable_adaptive_verification=True)}, "adaptive verification"),
        ({"kv_transfer_config": SimpleNamespace(kv_connector="LMCacheConnectorV1")}, "the KV connector doesn't key"),
    ],
)
def test_what_would_mix_patches_up_is_refused_at_the_start(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=f"^no slots for patches: {said}"):
        check_support(config(**changes))


def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(EngineError, match="VLLM_USE_RUST_FRONTEND has its own way to the engine"):
        check_support(config())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_transfer_config": SimpleNamespace(kv_connector="OffloadingConnector")},
        {"speculative_config": SimpleNamespace(enable_adaptive_verification=False)},
    ],
)
def test_other_servers_can_have_slots(changes: dict[str, Any]) -> None:
    check_support(config(**changes))


def test_the_names_are_those_of_vllms_own_config() -> None:
    from vllm.config import CacheConfig, ParallelConfig, SpeculativeConfig

    assert {"prefill_context_parallel_size", "enable_elastic_ep"} <= {*ParallelConfig.__dataclass_fields__}
    assert isinstance(ParallelConfig.use_ubatching, property)
    assert "kv_sharing_fast_prefill" in CacheConfig.__dataclass_fields__
    assert "enable_adaptive_verification" in SpeculativeConfig.__dataclass_fields__
