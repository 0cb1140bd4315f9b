# SPDX-License-Identifier: Apache-2.0
"""A planted model in transformers: its answers, and units edited in place by arithmetic of the tests' own."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tests.localization import chain
from tests.localization.planted import MAX_TOKENS
from vllm_surgery.loops import TokenTable, detect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.localization.circuits import Unit
    from tests.localization.planted import Planted
    from vllm_surgery.evaluation.probes import Probe


@dataclass(frozen=True)
class Answering:
    """The model, loaded."""

    planted: Planted
    tokenizer: Any
    network: Any
    table: TokenTable

    @classmethod
    def of(cls, planted: Planted) -> Answering:
        """Loads it."""
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(planted.folder)
        network = transformers.AutoModelForCausalLM.from_pretrained(planted.folder, dtype=torch.float32).eval()
        return cls(planted, tokenizer, network, TokenTable.from_tokenizer(tokenizer))

    @torch.no_grad()
    def answers(self, probes: Sequence[Probe], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
        """Greedy answers, made all at once, each with the token that ends it."""
        self.tokenizer.padding_side = "left"
        asked = self.tokenizer([self.asked(probe) for probe in probes], padding=True, return_tensors="pt")
        made = self.network.generate(
            input_ids=asked.input_ids,
            attention_mask=asked.attention_mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=chain.PAD,
        )
        return [self._ended(row) for row in made[:, asked.input_ids.shape[1] :].tolist()]

    def asked(self, probe: Probe) -> str:
        """What the model reads before it answers."""
        messages = [{"role": "user", "content": probe.prompt}]
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    @torch.no_grad()
    def gives(self, probe: Probe, answer: list[int]) -> bool:
        """Whether this is the greedy answer: token for token the likeliest after those before it. One forward pass."""
        before = self.tokenizer(self.asked(probe)).input_ids
        logits = self.network(torch.tensor([before + answer])).logits[0]
        return bool(logits[len(before) - 1 : -1].argmax(-1).tolist() == answer)

    @torch.no_grad()
    def mlp_output(self, layer: int, probe: Probe, answer: list[int]) -> torch.Tensor:
        """What a layer's MLP adds at each token of an answer, ``[tokens, hidden]``."""
        rows: list[torch.Tensor] = []
        hook = self.network.model.layers[layer].mlp.register_forward_hook(
            lambda module, args, output: rows.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            self.network(torch.tensor([self.tokenizer(self.asked(probe)).input_ids + answer]))
        finally:
            hook.remove()
        return rows[0].reshape(-1, rows[0].shape[-1])[-len(answer) :]

    def looped(self, answer: list[int]) -> list[str]:
        """The kinds of loop that an answer ends in."""
        return [loop.kind for loop in detect(answer, self.table) if loop.outcome == "terminal"]

    def ever_looped(self, answer: list[int]) -> bool:
        """Whether an answer was in a loop."""
        return bool(detect(answer, self.table))

    def text(self, answer: list[int]) -> str:
        """An answer as text."""
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    @contextmanager
    def edited(self, gains: Mapping[Unit, float]) -> Iterator[None]:
        """With each unit's output multiplied by its gain."""
        slices = [self._output(unit) for unit in gains]
        originals = [one.clone() for one in slices]
        for one, gain in zip(slices, gains.values(), strict=True):
            one.mul_(gain)
        try:
            yield
        finally:
            for one, original in zip(slices, originals, strict=True):
                one.copy_(original)

    def _output(self, unit: Unit) -> torch.Tensor:
        layer, index = unit
        mlp = self.network.model.layers[layer].mlp
        if self.planted.kind == "neurons":
            return mlp.down_proj.weight.detach()[:, index]
        return mlp.experts.down_proj.detach()[index]

    @staticmethod
    def _ended(answer: list[int]) -> list[int]:
        return answer[: answer.index(chain.EOS) + 1] if chain.EOS in answer else answer


def whole_list(word: int) -> list[int]:
    """The right answer to the probe that starts from a word: all the rest of the list, and its end."""
    return [*range(chain.LISTED + word + 1, chain.VOCABULARY), chain.EOS]
