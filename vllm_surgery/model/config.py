# SPDX-License-Identifier: Apache-2.0
"""A model's config.json: the facts that guards and plans need, whatever each family calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.quantization import Scheme
from vllm_surgery.patch.units import MAX_LAYER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


CONFIG_FILE = "config.json"


# What configs call the number of routed experts a layer.
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


# What they call the number of them that a token goes to.
_CHOSEN_KEYS = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_k", "experts_per_token")


@dataclass(frozen=True)
class ModelFacts:
    """Facts from a model's config; None where it doesn't say.

    Attributes:
        experts_per_token: how many routed experts a layer's router chooses.
        expert_groups: how many groups of experts it compares first.
        groups_per_token: how many of those it chooses.
        sparse_layers: where a neuron's gate is compared with the layer's other gates (Gemma 3n), so that a change of
            one gate changes other neurons too.
        scheme: how a quantised checkpoint stores its weights.
        base: the name on the Hugging Face Hub, where it is known.
        revision: the commit there, where it is known.
    """

    architectures: tuple[str, ...] = ()
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    expert_groups: int | None = None
    groups_per_token: int | None = None
    sparse_layers: frozenset[int] = frozenset()
    scheme: Scheme | None = None
    base: str | None = None
    revision: str | None = None

    @property
    def quantization(self) -> str | None:
        """`quant_method` of a quantised checkpoint."""
        return None if self.scheme is None else self.scheme.method

    @classmethod
    def from_config(cls, config: dict[str, Any], base: str | None = None, revision: str | None = None) -> ModelFacts:
        """Reads `config.json`; for a multimodal model the text model's part of it.

        Raises:
            CheckpointError: it says that there are more layers than a patch can number.
        """
        whole = config.get("thinker_config")  # Of a model that also speaks, the part that answers.
        whole = whole if isinstance(whole, dict) else config
        text = whole.get("text_config")
        text = text if isinstance(text, dict) else whole
        architectures = config.get("architectures")
        return cls(
            architectures=tuple(str(item) for item in architectures) if isinstance(architectures, list) else (),
            num_hidden_layers=checked_layers(_whole_number(text.get("num_hidden_layers"))),
            hidden_size=_whole_number(text.get("hidden_size")),
            num_experts=_first_number(text, _EXPERT_KEYS),
            experts_per_token=_first_number(text, _CHOSEN_KEYS),
            expert_groups=_whole_number(text.get("n_group")),
            groups_per_token=_whole_number(text.get("topk_group")),
            sparse_layers=_sparse_layers(text.get("activation_sparsity_pattern")),
            scheme=Scheme.of(config),
            base=base,
            revision=revision,
        )


def checked_layers(layers: int | None) -> int | None:
    """How many layers a model says that it has, once that is a number that a model can have.

    Raises:
        CheckpointError: it isn't.
    """
    if layers is not None and not 0 <= layers <= MAX_LAYER + 1:
        raise CheckpointError(f"a model can have 0 to {MAX_LAYER + 1} layers, and this one says that it has {layers}")
    return layers


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_number(config: dict[str, Any], keys: Iterable[str]) -> int | None:
    """The first of the config's values under these keys that is a whole number, and not 0."""
    return next((number for key in keys if (number := _whole_number(config.get(key)))), None)


def _sparse_layers(pattern: object) -> frozenset[int]:
    shares = pattern if isinstance(pattern, list) else []
    return frozenset(layer for layer, share in enumerate(shares) if isinstance(share, int | float) and share > 0)


def _hub_identity(path: Path) -> tuple[str | None, str | None]:
    """Name and commit from a path in the Hub's cache: ``models--ORG--NAME/snapshots/COMMIT``, or without ORG."""
    found = re.search(r"(?:^|/)models--([^/]+)/snapshots/([^/]+)$", path.absolute().as_posix())
    return (found[1].replace("--", "/", 1), found[2]) if found else (None, None)
