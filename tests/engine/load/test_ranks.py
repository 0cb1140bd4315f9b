# SPDX-License-Identifier: Apache-2.0
"""No request is taken before every rank has applied the same patches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.models import patch_of
from vllm_surgery import EngineError
from vllm_surgery.engine.load.ranks import verify_hook
from vllm_surgery.engine.settings import Settings
from vllm_surgery.engine.swap.worker import REPORT_METHOD

PATCH = patch_of({(0, 0): -1.0})
ID = Settings(patches=[PATCH]).load().id


class Engine:
    """An engine whose ranks report what they are told to."""

    def __init__(self, *ids: str | None) -> None:
        self.asked: list[str] = []
        self.weight_version = "default"
        self.model_executor = SimpleNamespace(collective_rpc=self._ask)
        self._reports = [{"id": rank, "units": 1, "tensors": 1, "milliseconds": 1.0} for rank in ids]

    def _ask(self, method: str) -> list[dict[str, Any]]:
        self.asked.append(method)
        return self._reports

    def set_weight_version(self, version: str) -> None:
        self.weight_version = version

    def initialize(self, vllm_config: Any) -> str:
        return "kv caches"


def start(engine: Engine, *patches: dict[str, Any]) -> Any:
    config = SimpleNamespace(additional_config={"vllm_surgery": {"patches": list(patches)}})
    return verify_hook(Engine.initialize)(engine, config)


def test_all_ranks_with_the_patch_set_the_weight_version() -> None:
    engine = Engine(ID, ID)
    assert start(engine, PATCH) == "kv caches"
    assert (engine.weight_version, engine.asked) == (ID, [REPORT_METHOD])


@pytest.mark.parametrize(("told", "said"), [(None, "no patch"), ("other@00000000", "other@00000000")])
def test_a_rank_without_the_patch_ends_the_start(told: str | None, said: str) -> None:
    with pytest.raises(EngineError, match=f"^rank 1 serves {said} instead of {ID}$"):
        start(Engine(ID, told), PATCH)


def test_without_a_patch_no_rank_is_asked() -> None:
    engine = Engine(None)
    assert start(engine) == "kv caches"
    assert (engine.weight_version, engine.asked) == ("default", [])
