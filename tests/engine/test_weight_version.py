# SPDX-License-Identifier: Apache-2.0
"""Patch ids and vLLM's weight versions, back and forth."""

from __future__ import annotations

import pytest

from vllm_surgery.engine.weight_version import patch_of, version_of


def test_an_unpatched_model_is_labelled_none() -> None:
    assert (patch_of("default"), patch_of("none"), patch_of("fix@12345678")) == ("none", "none", "fix@12345678")


@pytest.mark.parametrize(("patch_id", "version"), [("none", "default"), ("fix@12345678", "fix@12345678")])
def test_a_version_leads_back_to_its_patch(patch_id: str, version: str) -> None:
    assert version_of(patch_id) == version
    assert patch_of(version) == patch_id
