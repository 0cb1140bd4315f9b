# SPDX-License-Identifier: Apache-2.0
"""Router tensors by model family, and the value that keeps an expert from being chosen.

A router gives each expert of its layer a score and chooses the best few. Some add a bias of their own to the scores by
which they choose, which a checkpoint can hold: there a masked expert's bias becomes the lowest number. Where there is
none, only a running engine can mask: see `vllm_surgery.engine.masks.router`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.conventions import IN_LAYER

if TYPE_CHECKING:
    from vllm_surgery.model.tensor_info import TensorInfo

LOWEST = {"F64": -3.3895313892515355e38, "F32": -3.3895313892515355e38, "BF16": -3.3895313892515355e38, "F16": -65504.0}
"""The bias of a masked expert, by number format: as good as minus infinity, since no score is as large, and
still a number, so that no kernel makes NaN of it. bfloat16's lowest is taken for the wider formats too, which engines
may round to bfloat16."""

_WEIGHTS = (
    *("mlp.gate.weight", "mlp.router.weight", "feed_forward.router.weight"),
    *("block_sparse_moe.gate.weight", "block_sparse_moe.router.layer.weight", "router.proj.weight"),
)
_LOGIT_BIASES = ("mlp.router.bias",)
_CORRECTION_BIASES = ("mlp.gate.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias")
"""These are added to the scores by which experts are chosen, and are no part of the weights that they get."""


def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"{IN_LAYER}\.(?:{'|'.join(map(re.escape, names))})")


_OTHER_BIAS = re.compile(rf"{IN_LAYER}\..*(?:e_score_correction|expert)_bias")
"""Other families' names for it, which vLLM keeps under yet another: ERNIE, EXAONE, Laguna, Hunyuan, Afmoe."""

_WEIGHT, _BIAS, _CORRECTION = map(_pattern, (_WEIGHTS, _LOGIT_BIASES + _CORRECTION_BIASES, _CORRECTION_BIASES))


@dataclass
class Router:
    """The tensors of one layer's router, as far as they have been seen.

    Attributes:
        weight: what makes a score of a hidden state for each expert, ``[experts, hidden]``.
        bias: what is added to the scores by which experts are chosen, ``[experts]``.
        other_bias: the same under a name by which no mask is put on it.
    """

    layer: int
    weight: TensorInfo | None = None
    bias: TensorInfo | None = None
    other_bias: TensorInfo | None = None

    @property
    def count(self) -> int | None:
        """The number of experts it chooses from, where a tensor tells."""
        shapes = [info.shape for info in (self.bias, self.weight) if info is not None]
        return next((shape[0] for shape in shapes if shape), None)

    @property
    def corrects(self) -> bool:
        """True if its bias is a correction of scores that are summed by group (DeepSeek V3), not of logits."""
        return self.bias is not None and _CORRECTION.fullmatch(self.bias.name) is not None


def layer_of_router(name: str) -> int | None:
    """The layer whose router the tensor called `name` is part of; None where it is another tensor."""
    found = _WEIGHT.fullmatch(name) or _BIAS.fullmatch(name) or _OTHER_BIAS.fullmatch(name)
    return None if found is None else int(found["layer"])


def observe_router(routers: dict[int, Router], layer: int, info: TensorInfo) -> None:
    """Puts a tensor of a layer's router into `routers`.

    Raises:
        CheckpointError: a bias of another shape than a router's, or the second one of a layer.
    """
    router = routers.setdefault(layer, Router(layer))
    if _WEIGHT.fullmatch(info.name):
        router.weight = router.weight or info
        return
    if not _BIAS.fullmatch(info.name):
        router.other_bias = info
        return
    router.bias = router.bias or info
    if len(info.shape) != 1:
        raise CheckpointError(f"not the shape of a router's bias: {info.name} {list(info.shape)}")
    if router.bias != info:
        raise CheckpointError(f"{router.bias.name} and {info.name} are both the bias of one router")


def layer_of_router_bias(name: str) -> int | None:
    """The layer whose router adds the tensor called `name` to its scores; None where it is another tensor."""
    found = _BIAS.fullmatch(name)
    return None if found is None else int(found["layer"])
