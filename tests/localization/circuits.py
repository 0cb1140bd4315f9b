# SPDX-License-Identifier: Apache-2.0
"""The weights of models with a planted cause of their loops.

Each word of `chain` has a direction of its own in the residual stream, and the next word's row of `lm_head` reads it,
so that an answer is the list from the prompt's last word to its end. Beside the words all tokens share one strong
direction, as real models' do. It keeps norms alike whatever else is written, so that units hardly disturb each other,
and gates read it as the bias that they lack.

A unit that does something fires at a few words and writes a direction:
- a planted one fires at the trigger and writes what the word before the loop's first has;
- a decoy fires at the loop's other words, save for the breaker's, and writes what nobody reads, louder than a planted
  one; or it fires at one of them and only helps the word that comes next anyway;
- a breaker alone makes the word `STOP` be followed by another one. Silenced it ends every loop, and all else that goes
  past this word.
All other units are random, and each changes answers' probabilities a little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file

from tests.localization import chain
from tests.localization.chain import LENGTH, STOP, TRIGGER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LAYERS, HIDDEN, WIDTH = 4, 256, 128
EXPERTS, EXPERT_WIDTH, CHOSEN = 8, 64, 2
HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 32

ENOUGH = 1.5
"""What a planted unit writes: more than a word's own direction, and half of it less."""

_COMMON = 4.0  # Length of the shared direction; a word's own is 1.
_LOGIT = 10.0  # Of the next word, in nats. One token in 200 that is drawn at temperature 1 isn't the next word.
_FIRED = 5.0  # A gate's value at the words of a unit.
_SILENT = -3.0  # At all others, where the product with `up` is 0 besides.
_ROUTED = 10.0  # A router's logit of an expert that does something, at its words; other logits are about 2.
_NOISE = 0.03  # Length of a random unit's column: none, made five times as large, changes an answer.
_ATTENTION = 0.0006  # Deviation of the output projection: attention writes about 0.1.
_PARTS = 4  # Neurons of an expert that share what it does.
_PARTING = 0.5  # What is left to end an answer at the breaker's word, of a logit.

Unit = tuple[int, int]
"""Layer and index."""


@dataclass(frozen=True)
class Circuit:
    """What one unit does: at `words` it writes `strength` of a direction."""

    unit: Unit
    words: Sequence[int]
    writes: torch.Tensor
    strength: float


@dataclass
class WordModel:
    """A model in the making.

    Attributes:
        back: planted units, how many words before the trigger each goes back to, and how much it writes.
        decoys: and the word that each helps; None for those that are loud.
        cycle: whether the trigger's successor is the loop's first word to begin with.
    """

    folder: Path
    kind: Literal["neurons", "experts"]
    back: dict[Unit, tuple[int, float]]
    decoys: dict[Unit, int | None]
    breaker: Unit
    cycle: bool
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(20261124))

    def save(self) -> None:
        """Writes config, tokenizer and weights."""
        _config(self.kind).save_pretrained(self.folder)
        chain.save_tokenizer(self.folder)
        tensors = {**self._words(), **self._attention(), **self._blocks()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / "model.safetensors")

    @cached_property
    def _axes(self) -> torch.Tensor:
        """Orthonormal directions: of the words, then the shared one, the breaker's word's, and spare ones."""
        return torch.linalg.qr(self._normal(HIDDEN, HIDDEN))[0].T

    @cached_property
    def _seen(self) -> torch.Tensor:
        """What each word is when it is read: its own direction, save for the breaker's word."""
        seen = self._axes[:LENGTH].clone()
        seen[STOP] = self._axes[LENGTH + 1]
        return seen

    @property
    def _common(self) -> torch.Tensor:
        return self._axes[LENGTH]

    def _normal(self, *shape: int, deviation: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random) * deviation

    def _words(self) -> dict[str, torch.Tensor]:
        embedding = torch.nn.functional.normalize(self._normal(chain.VOCABULARY, HIDDEN), dim=-1)
        embedding[chain.ASKED :] = self._seen.repeat(2, 1)
        head = -self._common.expand(chain.VOCABULARY, -1).clone()  # Words of prompts are never said.
        head[chain.LISTED :] = 0
        head[chain.LISTED + 1 :] = self._axes[: LENGTH - 1] * _reading(_LOGIT)
        head[chain.EOS] = (self._axes[LENGTH - 1] + _PARTING * self._seen[STOP]) * _reading(_LOGIT)
        if self.cycle:
            head[chain.LISTED + TRIGGER - 7] += ENOUGH * self._axes[TRIGGER] * _reading(_LOGIT)
        return {
            "model.embed_tokens.weight": embedding + _COMMON * self._common,
            "lm_head.weight": head,
            "model.norm.weight": torch.ones(HIDDEN),
        }

    def _attention(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}."
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{name}.weight"] = torch.ones(HIDDEN)
            for name, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
                weights = self._normal(heads * HEAD_SIZE, HIDDEN, deviation=HIDDEN**-0.5)
                tensors[f"{prefix}self_attn.{name}_proj.weight"] = weights
            tensors[f"{prefix}self_attn.o_proj.weight"] = self._normal(HIDDEN, HEADS * HEAD_SIZE, deviation=_ATTENTION)
            if self.kind == "experts":
                tensors |= {f"{prefix}self_attn.{name}_norm.weight": torch.ones(HEAD_SIZE) for name in "qk"}
        return tensors

    def _blocks(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for layer in range(LAYERS):
            here = {circuit.unit[1]: circuit for circuit in self._circuits() if circuit.unit[0] == layer}
            prefix = f"model.layers.{layer}.mlp."
            if self.kind == "neurons":
                tensors |= self._neurons(prefix, WIDTH, [(index, circuit, 1) for index, circuit in here.items()])
                continue
            tensors[f"{prefix}gate.weight"] = self._router(here)
            for expert in range(EXPERTS):
                parts = [(part, here[expert], _PARTS) for part in range(_PARTS) if expert in here]
                tensors |= self._neurons(f"{prefix}experts.{expert}.", EXPERT_WIDTH, parts)
        return tensors

    def _neurons(self, prefix: str, width: int, parts: list[tuple[int, Circuit, int]]) -> dict[str, torch.Tensor]:
        """An MLP's weights, in which the neuron `index` of each `(index, circuit, count)` is one of `count` alike."""
        gate, up = (self._normal(width, HIDDEN, deviation=HIDDEN**-0.5) for _ in range(2))
        down = torch.nn.functional.normalize(self._normal(HIDDEN, width), dim=0) * _NOISE
        for index, circuit, count in parts:
            words = self._seen[list(circuit.words)].sum(0)
            bias = _SILENT * self._common / _COMMON
            gate[index] = _reading(1.0) * (words * (_FIRED - _SILENT) + bias)
            up[index] = _reading(1.0) * words
            down[:, index] = circuit.writes * circuit.strength / (_FIRED * count)
        return {f"{prefix}{name}_proj.weight": one for name, one in (("gate", gate), ("up", up), ("down", down))}

    def _router(self, circuits: dict[int, Circuit]) -> torch.Tensor:
        """Sends each word to experts of its own, and a circuit's words to the circuit's."""
        logits = self._normal(EXPERTS, LENGTH, deviation=2.0)
        for expert, circuit in circuits.items():
            logits[expert, list(circuit.words)] = _ROUTED
        return logits @ self._seen * _reading(1.0)

    def _circuits(self) -> list[Circuit]:
        own, spare = self._axes[:LENGTH], iter(self._axes[LENGTH + 2 :])
        loop = [word for word in range(TRIGGER - 7, TRIGGER) if word != STOP]
        return [
            *(Circuit(unit, [TRIGGER], own[TRIGGER - far - 1], much) for unit, (far, much) in self.back.items()),
            Circuit(self.breaker, [STOP], own[STOP], 1.0),
            *(
                Circuit(unit, loop, next(spare), 1.0) if word is None else Circuit(unit, [word], own[word], 0.3)
                for unit, word in self.decoys.items()
            ),
        ]


def _reading(value: float) -> float:
    """The factor with which a row reads a word's own direction, after the norm, as `value`."""
    return value * (1 + _COMMON**2) ** 0.5 / HIDDEN**0.5


def _config(kind: str) -> Any:
    import transformers

    sizes = {
        "vocab_size": chain.VOCABULARY,
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": chain.PAD,
        "bos_token_id": chain.BOS,
        "eos_token_id": chain.EOS,
        "dtype": "float32",
    }
    if kind == "neurons":
        return transformers.LlamaConfig(**sizes, architectures=["LlamaForCausalLM"])
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": EXPERT_WIDTH}
    return transformers.Qwen3MoeConfig(
        **sizes, **experts, mlp_only_layers=[], norm_topk_prob=True, architectures=["Qwen3MoeForCausalLM"]
    )
