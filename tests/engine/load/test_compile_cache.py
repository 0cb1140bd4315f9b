# SPDX-License-Identifier: Apache-2.0
"""Editing a patch doesn't cost a compilation; every other setting still counts."""

from __future__ import annotations

from typing import Any

from vllm_surgery.engine.load.compile_cache import compute_hash_hook


class Config:
    def __init__(self, additional_config: Any) -> None:
        self.additional_config = additional_config

    def compute_hash(self) -> str:
        return repr(self.additional_config)


def hash_of(additional_config: Any) -> str:
    return compute_hash_hook(Config.compute_hash)(Config(additional_config))


def test_our_settings_dont_count() -> None:
    assert hash_of({"vllm_surgery": {"patches": ["a.yaml"]}, "other": 1}) == hash_of({"other": 1})


def masking(layer: int, *experts: int) -> dict[str, Any]:
    edits = [{"op": "mask", "experts": {str(layer): list(experts)}}]
    return {"vllm_surgery": {"patches": [{"version": 1, "name": "masks", "edits": edits}]}}


def test_where_masks_are_looked_up_counts_but_not_what_is_masked() -> None:
    keys = [
        hash_of({}),
        hash_of(masking(1, 2)),
        hash_of(masking(3, 2)),
        hash_of({"vllm_surgery": {"mask_buffers": True}}),
    ]
    assert len({*keys}) == len(keys)
    assert hash_of(masking(1, 5, 6)) == hash_of(masking(1, 2))


def test_slots_count_but_not_what_is_in_them() -> None:
    patch = {"version": 1, "name": "zero", "edits": [{"op": "zero", "neurons": {"1": [2]}}]}
    keys = [hash_of({}), *(hash_of({"vllm_surgery": {"slots": count}}) for count in (1, 8))]
    assert len({*keys}) == len(keys)
    assert hash_of({"vllm_surgery": {"slots": 8, "patches": [patch]}}) == keys[-1]


def test_settings_that_are_wrong_are_left_to_whoever_refuses_them() -> None:
    assert hash_of({"vllm_surgery": {"patches": ["no such file"]}}) == hash_of({})


def test_others_do() -> None:
    assert hash_of({"other": 1}) != hash_of({"other": 2})


def test_the_config_itself_stays_whole() -> None:
    config = Config({"vllm_surgery": {"patches": []}})
    compute_hash_hook(Config.compute_hash)(config)
    assert config.additional_config == {"vllm_surgery": {"patches": []}}
