# SPDX-License-Identifier: Apache-2.0
"""Neurons inside an expert, read back by the expert's answer: it may move along what they write, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.swap.test_on_gpus import config
from tests.examples import patches_of
from tests.folders import write_experts
from vllm_surgery import EngineError, ModelFolder
from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint
from vllm_surgery.engine.swap.verify_experts import MOST_NEURONS, ExpertProbe, changed_inside, expert_gains
from vllm_surgery.planning.check import check_patches
from vllm_surgery.weights.arithmetic import apply_edit

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, EXPERTS, WIDTH = 256, 4, 96
ROUNDED_AWAY = "an expert answers as before: its edited neurons are another rank's, or say too little to be seen"


class Kernel:
    """Experts' kernel: each neuron's activation is 1, and what it writes stands in `down`."""

    def __init__(self, down: torch.Tensor) -> None:
        self.down = down.clone()  # [experts, hidden, neurons]

    def apply(self, topk_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.down[int(topk_ids)].sum(1).unsqueeze(0)


class Layer:
    """One layer's experts: its checkpoint, and what a kernel holds of it."""

    def __init__(self, folder: Path, layout: str, dtype: torch.dtype = torch.float32) -> None:
        self.layout = layout
        path = write_experts(folder, layout, width=WIDTH, hidden=HIDDEN)
        self.checkpoint = SourceCheckpoint(path)
        self.kernel = Kernel(self._down(load_file(path / "model.safetensors")))
        self.tensors = tuple(name for name in self.checkpoint.names if ".layers.1." in name and "experts." in name)
        module = SimpleNamespace(
            w13_weight=torch.zeros(1),
            global_num_experts=EXPERTS,
            hidden_size=HIDDEN,
            params_dtype=dtype,
            quant_method=self.kernel,
        )
        self.part: Any = SimpleNamespace(path="layers.1.experts", module=module, tensors=self.tensors)

    def probe(self, before: Any, after: Any) -> ExpertProbe:
        """A probe of the swap between two patches, of which the kernel holds the first."""
        old, new = (self._edits(edits) for edits in (before, after))
        self.kernel.down = self._down(self._tensors(old))
        inside = changed_inside(self.tensors, old, new, self.checkpoint)
        gains, wanted = (expert_gains(self.tensors, edits) for edits in (old, new))
        return ExpertProbe(self.part, gains, wanted, config(), inside)

    def write(self, *edits: Any) -> None:
        """Gives the kernel the weights of a patch."""
        self.kernel.down = self._down(self._tensors(self._edits(edits)))

    def _edits(self, edits: Any) -> dict[str, Any]:
        folder: ModelFolder = self.checkpoint.folder
        return {edit.tensor: edit for edit in check_patches(patches_of(*edits), folder).edits} if edits else {}

    def _tensors(self, edits: dict[str, Any]) -> dict[str, torch.Tensor]:
        tensors = {name: self.checkpoint.tensor(name) for name in self.tensors}
        return {name: apply_edit(tensor, edits[name]) if name in edits else tensor for name, tensor in tensors.items()}

    def _down(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.layout == "own":
            name = "model.layers.1.mlp.experts.{}.down_proj.weight"
            return torch.stack([tensors[name.format(expert)] for expert in range(EXPERTS)])
        if self.layout == "shared":
            return tensors["model.layers.1.mlp.experts.down_proj"].transpose(1, 2)
        return tensors["model.layers.1.experts.down_proj"]


def scale(factor: float, *neurons: int | str, expert: int = 1) -> dict[str, Any]:
    return {"op": "scale", "factor": factor, "expert_neurons": {"1": {str(expert): list(neurons)}}}


WHOLE = {"op": "negate", "experts": {"1": [1]}}
SILENT = {"op": "zero", "experts": {"1": [1]}}


@pytest.fixture(params=["own", "shared", "scaled"])
def layer(tmp_path: Path, request: pytest.FixtureRequest) -> Layer:
    return Layer(tmp_path, request.param)


@pytest.fixture
def own(tmp_path: Path) -> Layer:
    return Layer(tmp_path, "own")


def test_an_answer_that_moves_along_what_the_neurons_write_is_read_back(layer: Layer) -> None:
    probe = layer.probe([], [scale(0.5, 3, 40)])
    layer.write(scale(0.5, 3, 40))
    assert (probe.check(), probe.unasked) == (EXPERTS, None)


def test_from_one_patch_to_another_only_what_differs_may_move(layer: Layer) -> None:
    probe = layer.probe([scale(0.5, 3, 40)], [scale(0.5, 3), scale(-2.0, 41)])
    layer.write(scale(0.5, 3), scale(-2.0, 41))
    assert (probe.check(), probe.unasked) == (EXPERTS, None)


def test_an_expert_may_go_from_a_gain_of_its_own_to_gains_inside_it(own: Layer) -> None:
    probe = own.probe([WHOLE], [scale(0.5, 3)])
    own.write(scale(0.5, 3))
    assert (probe.check(), probe.unasked) == (EXPERTS, None)


@pytest.mark.parametrize(("before", "after"), [([scale(0.5, 3)], [SILENT]), ([SILENT], [scale(0.5, 3)])])
def test_an_expert_may_be_silenced_and_spoken_again(own: Layer, before: list[Any], after: list[Any]) -> None:
    probe = own.probe(before, after)
    own.write(*after)
    assert (probe.check(), probe.unasked) == (EXPERTS, None)


def test_an_expert_that_should_be_silent_and_is_not_is_a_fault(own: Layer) -> None:
    probe = own.probe([scale(0.5, 3)], [SILENT])
    own.write(scale(0.5, 4))
    with pytest.raises(EngineError, match="expert 1 doesn't answer as its weights say"):
        probe.check()


@pytest.mark.parametrize("wrong", [scale(0.5, 4), scale(0.5, 3, 4), WHOLE])
def test_an_answer_that_moves_otherwise_is_a_fault(own: Layer, wrong: dict[str, Any]) -> None:
    probe = own.probe([], [scale(0.5, 3)])
    own.write(wrong)
    with pytest.raises(EngineError, match=r"^layers\.1\.experts: expert 1 doesn't answer as its weights say$"):
        probe.check()


def test_an_expert_of_which_no_neuron_is_edited_may_not_move(own: Layer) -> None:
    probe = own.probe([], [scale(0.5, 3)])
    own.write(scale(0.5, 3), scale(0.5, 3, expert=2))
    with pytest.raises(EngineError, match="expert 2 doesn't answer as its weights say"):
        probe.check()


def test_an_answer_that_does_not_move_proves_nothing_and_that_is_said(own: Layer) -> None:
    probe = own.probe([], [scale(0.5, 3)])
    assert (probe.check(), probe.unasked) == (EXPERTS - 1, ROUNDED_AWAY)


def test_what_is_lost_in_rounding_proves_nothing_either(own: Layer) -> None:
    probe = own.probe([], [scale(0.5, 3)])
    own.kernel.down[1] += torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(2)) * 1e-5
    assert (probe.check(), probe.unasked) == (EXPERTS - 1, ROUNDED_AWAY)


def test_many_neurons_prove_nothing_and_that_is_said(own: Layer) -> None:
    many = scale(0.5, f"0-{MOST_NEURONS}")
    probe = own.probe([], [many])
    own.write(many)
    assert probe.check() == EXPERTS - 1
    assert probe.unasked == "more than 64 neurons inside one expert were edited, so its answer proves nothing"


def test_what_is_written_again_answers_as_at_first(own: Layer) -> None:
    probe = own.probe([], [scale(0.5, 3)])
    own.write(scale(0.5, 3))
    with pytest.raises(EngineError, match="expert 1 doesn't answer as it did before"):
        probe.check_unchanged()
    own.write()
    probe.check_unchanged()
