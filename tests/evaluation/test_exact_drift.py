# SPDX-License-Identifier: Apache-2.0
"""Whole distributions: known ones, and a real small model's."""

from __future__ import annotations

import math

import pytest
import torch

from tests.examples import refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.exact_drift import _drift, _patched
from vllm_surgery.plan import Plan, TensorEdit


def test_drift_of_distributions_that_are_known() -> None:
    base = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    patched = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    drift = _drift("one", base, patched, torch.tensor([0, 1]))
    assert drift.kl == pytest.approx(0.75 * math.log(3) - 0.25 * math.log(3))
    assert (drift.tokens, drift.agreed, drift.rest) == (2, 1, 0)
    assert drift.base_loss == pytest.approx(-math.log(0.75 * 0.1))
    assert drift.loss == pytest.approx(-math.log(0.25 * 0.1))


def test_a_patch_is_taken_back() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    original = network[0].weight.data.clone()
    edit = TensorEdit("0.weight", "F32", (2, 3), 1, (1,), (5.0,))
    with _patched(network, Plan("p", (edit,), 1)):
        assert torch.equal(network[0].weight[:, 1], original[:, 1] * 5)
    assert torch.equal(network[0].weight, original)


def test_a_tensor_of_another_name_is_said() -> None:
    def apply() -> None:
        with _patched(torch.nn.Linear(2, 2), Plan("p", (TensorEdit("x", "F32", (2, 2), 1, (1,), (5.0,)),), 1)):
            pass

    assert refusal(apply, UsageError) == "exact chances: transformers calls x by another name"
