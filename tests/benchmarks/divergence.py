# SPDX-License-Identifier: Apache-2.0
"""What a patch does to healthy text: how far it moves the model's next-token distributions, over the full vocabulary.

With transformers in float32, outside vLLM, so that whole distributions can be compared. The edits are the planner's and
the arithmetic is the package's own.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.fresh_process import run_fresh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.plan import Plan


@dataclass(frozen=True)
class Reply:
    """A healthy exchange, from a file whose first line is the request and whose rest is the reply."""

    name: str
    request: str
    text: str

    @classmethod
    def load(cls, file: Path) -> Reply:
        """Reads a data file."""
        request, text = file.read_text().split("\n", 1)
        return cls(file.stem, request.strip(), text.strip())


@dataclass(frozen=True)
class Drift:
    """One reply under one patch, summed over its tokens (the one that ends it included).

    Attributes:
        kl: nats, KL divergence of the patched from the base distribution: KL(base || patched).
        agreed: tokens for which both models would have chosen the same.
        base_loss: nats, negative log likelihood of the reply under the base model.
        patched_loss: the same under the patched model.
    """

    reply: str
    tokens: int
    kl: float
    agreed: int
    base_loss: float
    patched_loss: float


def measure(model: str, patches: list[dict[str, Any]], replies: list[Reply]) -> list[list[Drift]]:
    """The drift of every reply under each of `patches` (plain data), in a fresh process with its progress on stderr.

    Raises:
        subprocess.CalledProcessError: it failed; the reason is on stderr.
    """
    job = {"model": model, "patches": patches, "replies": [asdict(reply) for reply in replies]}
    measured = run_fresh("tests.benchmarks.divergence", job)
    return [[Drift(**drift) for drift in drifts] for drifts in measured]


def _measure_here(model: str, patches: list[dict[str, Any]], replies: list[Reply]) -> list[list[Drift]]:
    import torch
    import transformers
    from tqdm import tqdm

    from tests.benchmarks.shams import plan_of
    from vllm_surgery.checkpoint import ModelFolder
    from vllm_surgery.patch import Patch

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plans = [plan_of(Patch.from_data(patch), ModelFolder(model)) for patch in patches]
    drifts: list[list[Drift]] = [[] for _ in patches]
    with torch.inference_mode():
        for reply in tqdm(replies, desc="replies", unit="reply"):
            tokens, start = _encode(tokenizer, reply)
            base = _log_chances(network, tokens, start)
            for plan, found in zip(plans, drifts, strict=True):
                with _patched(network, plan):
                    found.append(_drift(reply.name, base, _log_chances(network, tokens, start), tokens[0, start:]))
    return drifts


def _encode(tokenizer: Any, reply: Reply) -> tuple[Any, int]:
    """The exchange's tokens up to the one that ends the reply, and where the reply starts."""
    turns = [{"role": "user", "content": reply.request}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    before = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
    whole = tokenizer(asked + reply.text + tokenizer.eos_token, add_special_tokens=False, return_tensors="pt").input_ids
    start = before.shape[1]
    assert whole[0, :start].tolist() == before[0].tolist()
    return whole, start


def _log_chances(network: Any, tokens: Any, start: int) -> Any:
    return network(tokens).logits[0, start - 1 : -1].double().log_softmax(-1)


def _drift(name: str, base: Any, patched: Any, targets: Any) -> Drift:
    places = range(len(targets))
    return Drift(
        reply=name,
        tokens=len(targets),
        kl=float((base.exp() * (base - patched)).sum()),
        agreed=int((base.argmax(-1) == patched.argmax(-1)).sum()),
        base_loss=-float(base[places, targets].sum()),
        patched_loss=-float(patched[places, targets].sum()),
    )


@contextmanager
def _patched(network: Any, plan: Plan) -> Iterator[None]:
    from vllm_surgery.arithmetic import apply_edit

    parameters = dict(network.named_parameters())
    originals = {edit.tensor: parameters[edit.tensor].data for edit in plan.edits}
    for edit in plan.edits:
        parameters[edit.tensor].data = apply_edit(parameters[edit.tensor].data, edit)
    try:
        yield
    finally:
        for name, original in originals.items():
            parameters[name].data = original


def main() -> None:
    job = json.load(sys.stdin)
    drifts = _measure_here(job["model"], job["patches"], [Reply(**reply) for reply in job["replies"]])
    Path(sys.argv[1]).write_text(json.dumps([[asdict(drift) for drift in found] for found in drifts]))


if __name__ == "__main__":
    main()
