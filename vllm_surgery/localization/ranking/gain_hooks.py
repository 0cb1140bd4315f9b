# SPDX-License-Identifier: Apache-2.0
"""A transformers model whose units have gains that gradients can be taken for."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.network import load_network, run_by_transformers
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.patch.units import UnitBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vllm_surgery.model.anatomy import Anatomy


@dataclass
class GainedNetwork:
    """A network in float32, each of whose units is multiplied by a number that is 1.

    Attributes:
        network: the transformers model. Its weights take no gradients.
        gains: of each block, a leaf tensor ``[units]``.
        without: layers some of whose units have no gains, and why.
    """

    network: Any
    gains: dict[UnitBlock, Any]
    without: dict[int, str] = field(default_factory=dict)

    def logits(self, tokens: Sequence[int], rows: Sequence[int]) -> Any:
        """The scores after the tokens of `rows`, ``[rows, vocabulary]``. What comes after the last of them isn't read.

        With gradients for the gains where torch takes them.
        """
        import torch

        device = self.network.device
        places = torch.tensor(rows, device=device)
        read = torch.tensor([tokens[: max(rows) + 1]], device=device)
        # Over a large vocabulary the scores of rows that nobody asked for would take more memory than all else.
        logits = self.network(read, use_cache=False, logits_to_keep=places).logits[0].float()
        return logits if len(logits) == len(rows) else logits[places]


@contextmanager
def gained_network(folder: Path, device: str = "cpu") -> Iterator[GainedNetwork]:
    """A model's network with gains, as long as the context lasts.

    Raises:
        UsageError: torch or transformers isn't there, or it can't load or run the model.
    """
    anatomy = ModelFolder(folder).anatomy
    gained = GainedNetwork(load_network(folder, "a search by gradients").to(device), {})
    hooks = [*_hook_neurons(gained, anatomy), *_hook_experts(gained, anatomy)]
    try:
        _try_out(gained, folder)
        yield gained
    finally:
        for hook in hooks:
            hook.remove()


def _hook_neurons(gained: GainedNetwork, anatomy: Anatomy) -> Iterator[Any]:
    widths = anatomy.widths()
    for name, module in gained.network.named_modules():
        role = classify_tensor(f"{name}.weight")
        if role is None or role.block != "mlp" or role.part.name != "down" or role.layer not in widths:
            continue
        gain = _ones(gained.network, widths.pop(role.layer))
        gained.gains[UnitBlock("neurons", role.layer)] = gain
        yield module.register_forward_pre_hook(lambda _, inputs, gain=gain: (inputs[0] * gain, *inputs[1:]))
    for layer in widths:
        gained.without[layer] = "transformers has no down projection by this layer's name"


def _hook_experts(gained: GainedNetwork, anatomy: Anatomy) -> Iterator[Any]:
    counts = anatomy.expert_counts()
    for name, _ in list(gained.network.named_parameters()):
        role = classify_tensor(name)
        if role is None or role.block != "experts" or role.part.name != "down" or role.layer not in counts:
            continue
        if role.expert is not None:
            continue  # Experts that are modules of their own, as older transformers has them.
        gain = _ones(gained.network, counts.pop(role.layer))
        gained.gains[UnitBlock("experts", role.layer)] = gain
        module = gained.network.get_submodule(name.rpartition(".")[0])
        yield module.register_forward_pre_hook(_weigh(gained, role.layer, gain))
    for layer in counts:
        gained.without[layer] = "transformers has no module that takes all of this layer's experts together"


def _ones(network: Any, count: int) -> Any:
    import torch

    return torch.ones(count, dtype=torch.float32, device=network.device, requires_grad=True)


def _weigh(gained: GainedNetwork, layer: int, gain: Any) -> Any:
    """A hook that multiplies the router's weights of the chosen experts, which multiply what those experts give."""

    def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not _is_routed(inputs):
            gained.gains.pop(UnitBlock("experts", layer), None)
            gained.without[layer] = "its experts don't take the router's choice and weights"
            return None
        states, chosen, weights = inputs
        return states, chosen, weights * gain[chosen]

    return hook


def _is_routed(inputs: tuple[Any, ...]) -> bool:
    """True if a module was given hidden states, the experts chosen for each token, and their weights."""
    if len(inputs) != len(("states", "chosen", "weights")):
        return False
    _, chosen, weights = inputs
    return bool(not chosen.is_floating_point() and weights.is_floating_point() and chosen.shape == weights.shape)


def _try_out(gained: GainedNetwork, folder: Path) -> None:
    """One forward pass, in which the layers whose experts can't be weighed drop out."""
    import torch

    with run_by_transformers(folder), torch.no_grad():
        gained.logits([0, 0], [0, 1])
    if not gained.gains:
        reason = next(iter(gained.without.values()), "transformers calls none of its units by a known name")
        raise UsageError(f"{folder}: has no unit whose gain can be told by transformers: {reason}")
