# SPDX-License-Identifier: Apache-2.0
"""Which module of a model in memory holds which tensor of its checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vllm_surgery import CannotSwapError
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.model_parts import parts_of


class Named(nn.Module):
    """A module with children and parameters under the names that are given."""

    def __init__(self, *parameters: str, **children: nn.Module) -> None:
        super().__init__()
        for name in parameters:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))
        for name, child in children.items():
            self.add_module(name, child)


def routed() -> nn.Module:
    """vLLM's own experts, with nothing but their parameters."""
    return holding(touchpoints.ROUTED_EXPERTS.get())


def holding(kind: type[nn.Module]) -> nn.Module:
    made = object.__new__(kind)
    nn.Module.__init__(made)
    for name in ("w13_weight", "w2_weight"):
        made.register_parameter(name, nn.Parameter(torch.zeros(1)))
    return made


def layers(*blocks: nn.Module) -> nn.Module:
    return Named(layers=nn.ModuleList(blocks))


def dense() -> nn.Module:
    return Named(mlp=Named(gate_up_proj=Named("weight"), down_proj=Named("weight")))


def moe(owner: str = "mlp") -> nn.Module:
    inside = Named(experts=Named(routed_experts=routed()), gate=Named("weight"))
    return Named(**{owner: inside})


def gemma4() -> nn.Module:
    experts = Named(routed_experts=routed())
    return Named(mlp=Named(down_proj=Named("weight")), experts=experts, router=Named("scale", "per_expert_scale"))


DENSE = "model.layers.1.mlp.down_proj.weight"


def found(model: nn.Module, *edited: str, stored: tuple[str, ...] = ()) -> list[Any]:
    return [(part.path, part.parameter, part.tensors) for part in parts_of(model, edited, stored or edited)]


def test_a_linear_layer_is_a_part() -> None:
    model = Named(model=layers(dense(), dense()))
    assert found(model, DENSE) == [("model.layers.1.mlp.down_proj", None, (DENSE,))]


def test_everything_stored_for_a_layer_feeds_it() -> None:
    model = Named(model=layers(dense(), dense()))
    scale, other = f"{DENSE}_scale", "model.layers.1.mlp.up_proj.weight"
    assert found(model, DENSE, stored=(DENSE, scale, other))[0][2] == (DENSE, scale)


def test_all_experts_of_a_layer_are_one_part() -> None:
    stored = tuple(f"model.layers.0.mlp.experts.{e}.{p}_proj.weight" for e in range(3) for p in ("gate", "up", "down"))
    shared = "model.layers.0.mlp.shared_experts.down_proj.weight"
    model = Named(model=layers(moe()))
    parts = found(model, stored[2], stored[5], stored=(*stored, shared))
    assert parts == [("model.layers.0.mlp.experts.routed_experts", None, stored)]


def test_experts_of_granite_are_one_part_without_their_router() -> None:
    stored = tuple(f"model.layers.0.block_sparse_moe.{part}_linear.weight" for part in ("input", "output"))
    router = "model.layers.0.block_sparse_moe.router.layer.weight"
    parts = found(Named(model=layers(moe("block_sparse_moe"))), stored[1], stored=(*stored, router))
    assert parts == [("model.layers.0.block_sparse_moe.experts.routed_experts", None, stored)]


@pytest.mark.parametrize("owner", ["mlp", "block_sparse_moe", "feed_forward"])
def test_experts_are_found_under_any_name(owner: str) -> None:
    name = f"model.layers.0.{owner}.experts.1.w2.weight"
    assert found(Named(model=layers(moe(owner))), name)[0][0] == f"model.layers.0.{owner}.experts.routed_experts"


def test_a_parameter_that_is_used_as_stored_is_a_part_by_itself() -> None:
    name = "model.layers.0.router.per_expert_scale"
    assert found(Named(model=layers(gemma4())), name) == [("model.layers.0.router", "per_expert_scale", (name,))]


def test_experts_beside_a_dense_mlp_are_told_apart() -> None:
    model = Named(model=layers(gemma4()))
    names = ("model.layers.0.experts.down_proj", "model.layers.0.mlp.down_proj.weight")
    paths = [path for path, _, _ in found(model, *names)]
    assert paths == ["model.layers.0.experts.routed_experts", "model.layers.0.mlp.down_proj"]


def test_the_checkpoint_may_have_another_prefix_than_the_model() -> None:
    model = Named(language_model=Named(model=layers(dense(), dense())))
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    assert found(model, name)[0][0] == "language_model.model.layers.1.mlp.down_proj"


def test_layers_of_another_tower_are_not_taken() -> None:
    class Multimodal(Named):
        def get_language_model(self) -> Any:
            return self.language_model

    model = Multimodal(vision=layers(dense(), dense()), language_model=layers(dense(), dense()))
    assert found(model, DENSE)[0][0] == "language_model.layers.1.mlp.down_proj"


def test_two_layers_of_one_name_are_refused() -> None:
    model = Named(one=layers(dense(), dense()), two=layers(dense(), dense()))
    message = r"^model\.layers\.1\.mlp\.down_proj\.weight may be in one\.layers\.1\.mlp\.down_proj or two\.layers\.1"
    with pytest.raises(CannotSwapError, match=message):
        found(model, DENSE)


def test_a_layer_of_another_rank_is_no_part() -> None:
    assert found(Named(model=layers(dense(), nn.Identity())), DENSE) == []


def test_a_layer_number_is_not_taken_for_another_that_ends_alike() -> None:
    model = Named(model=layers(*(dense() for _ in range(12))))
    assert found(model, DENSE)[0][0] == "model.layers.1.mlp.down_proj"


def test_a_tensor_outside_all_layers_is_refused() -> None:
    with pytest.raises(CannotSwapError, match=r"^lm_head\.weight lies in no layer"):
        found(Named(), "lm_head.weight")


class OwnExperts(nn.Module):
    """Experts that are no `RoutedExperts` at all, as those of models under `vllm.models`."""


@pytest.mark.parametrize("subclass", [True, False])
def test_experts_of_another_class_than_vllms_common_one_are_refused(subclass: bool) -> None:
    kind = type("SubstitutedRoutedExperts", (touchpoints.ROUTED_EXPERTS.get(),), {}) if subclass else OwnExperts
    block = Named(mlp=Named(experts=Named(routed_experts=holding(kind))))
    with pytest.raises(CannotSwapError, match=rf"{kind.__name__} can't be loaded while it serves, only at a start$"):
        found(Named(model=layers(block)), "model.layers.0.mlp.experts.0.down_proj.weight")
