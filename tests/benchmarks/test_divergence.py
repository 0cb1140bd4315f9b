# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.benchmarks.divergence import Reply, _drift, _patched
from vllm_surgery.plan import Plan, TensorEdit

REPLIES = sorted((Path(__file__).parent / "data" / "replies").glob("*.txt"))


def test_drift_of_distributions_that_are_known():
    base = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    patched = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    drift = _drift("one", base, patched, torch.tensor([0, 1]))
    assert drift.kl == pytest.approx(0.75 * math.log(3) - 0.25 * math.log(3))
    assert (drift.tokens, drift.agreed) == (2, 1)
    assert drift.base_loss == pytest.approx(-math.log(0.75 * 0.1))
    assert drift.patched_loss == pytest.approx(-math.log(0.25 * 0.1))


def test_a_patch_is_taken_back():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    original = network[0].weight.data.clone()
    edit = TensorEdit("0.weight", "F32", (2, 3), 1, (1,), (5.0,))
    with _patched(network, Plan("p", (edit,), 1)):
        assert torch.equal(network[0].weight[:, 1], original[:, 1] * 5)
    assert torch.equal(network[0].weight, original)


@pytest.mark.parametrize("file", REPLIES, ids=lambda file: file.stem)
def test_replies_have_a_request_and_a_text(file: Path):
    reply = Reply.load(file)
    assert reply.request
    assert len(reply.text) > 20
