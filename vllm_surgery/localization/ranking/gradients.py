# SPDX-License-Identifier: Apache-2.0
"""Gradients with respect to all gains at once: of a loop's hold on the next token, and of healthy text.

With transformers, in float32, and no server. One backward pass a transcript gives the effect of every neuron and every
routed expert to first order, where trying them one by one would take a generation each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.errors import EngineError, UsageError
from vllm_surgery.localization.ranking.allowance import Allowance
from vllm_surgery.localization.ranking.gain_hooks import GainedNetwork, gained_network

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vllm_surgery.localization.transcripts import Passage
    from vllm_surgery.patch.units import Kind, UnitBlock

MAX_ROWS = 96
"""Rows of a loop that are looked at, from its second copy on: several copies of a loop of list entries. Later ones are
more of the same, and the model more certain of them."""

DRAWS = 4
"""Samples of the model's own next tokens for each healthy transcript. The error of a unit's sensitivity falls with the
square root of draws x transcripts: with 40 transcripts it is about a tenth, less than what ranking units needs."""


@dataclass(frozen=True)
class Gradients:
    """Derivatives with respect to the gains of units, where all gains are 1.

    Attributes:
        margins: of each block ``[transcripts, units]``: how the log-odds of the token that came, over all other tokens,
            grow with the gain, as the mean over rows inside the loop. In nats.
        sensitivities: of each block ``[units]``: the diagonal of the Fisher information of the next token on healthy
            text, a token. A change d of one gain moves the model's distribution by a KL divergence of about
            ``sensitivity * d ** 2 / 2`` nats a token.
        right: of each block ``[answers, units]``: how the log-likelihood of a right answer grows with the gain, in
            nats. What is certain anyway hardly counts in it, what may flip does.
        without: layers some of whose units are left out, and why.
    """

    margins: dict[UnitBlock, NDArray[np.float32]]
    sensitivities: dict[UnitBlock, NDArray[np.float32]]
    right: dict[UnitBlock, NDArray[np.float32]] = field(default_factory=dict)
    without: dict[int, str] = field(default_factory=dict)

    def of_kinds(self, kinds: Collection[Kind]) -> Gradients:
        """The same for units of these kinds alone.

        Raises:
            UsageError: there are none.
        """
        margins, sensitivities, right = (
            {block: values for block, values in part.items() if block.kind in kinds}
            for part in (self.margins, self.sensitivities, self.right)
        )
        if not margins:
            reason = next(iter(self.without.values()), "it knows none by their names")
            raise UsageError(f"transformers tells no gains of the model's {' and '.join(sorted(kinds))}: {reason}")
        return Gradients(margins, sensitivities, right, self.without)


def gain_gradients(  # noqa: PLR0913 - all but three have defaults
    folder: Path, looping: Sequence[Passage], healthy: Sequence[Passage], right: Sequence[Passage] = (), *,
    draws: int = DRAWS, seed: int = 0, device: str = "cpu", allowance: Allowance | None = None, quiet: bool = False,
) -> Gradients:  # fmt: skip
    """The gradients of a model.

    Args:
        folder: the model's; without quantised weights. It must fit the device's memory in float32.
        looping: transcripts that end in a loop, at least one; the rows inside the loop count.
        healthy: other transcripts, at least one; the rows of the answer count, before a loop if there is one.
        right: transcripts of right answers; all rows of the answer count.
        draws: samples of next tokens for each healthy transcript.
        seed: of these samples. The same inputs give the same result on the same machine.
        device: as torch calls it.
        allowance: the time that it may take, which is divided among the three sorts; None for all that it needs.
        quiet: no progress.

    Raises:
        UsageError: transformers isn't there or can't load the model.
        EngineError: a gradient isn't a finite number.
    """
    from tqdm import tqdm

    allowance = allowance if allowance is not None else Allowance()

    def each(passages: Sequence[Passage], what: str, share: float) -> Iterator[tuple[int, Passage]]:
        within = allowance.within(passages, what, share)
        return enumerate(tqdm(within, desc=what, total=len(passages), unit="text", disable=quiet))

    with gained_network(folder, device) as gained:
        margins = [
            _margins(gained, passage, f"looping transcript {number}")
            for number, passage in each(looping, "loops' margins", 1 / 3)
        ]
        draw = _Draw(gained, draws, seed)
        for number, passage in each(healthy, "sensitivities", 1 / 2):
            draw.add(passage, f"healthy transcript {number}")
        likelihoods = [
            _likelihood(gained, passage, f"right answer {number}")
            for number, passage in each(right, "right answers", 1)
        ]
        stacked = [
            {block: np.stack([one[block] for one in part]) for block in gained.gains} if part else {}
            for part in (margins, likelihoods)
        ]
        return Gradients(stacked[0], draw.sensitivities(), stacked[1], gained.without)


def _margins(gained: GainedNetwork, passage: Passage, where: str) -> dict[UnitBlock, NDArray[np.float32]]:
    rows = list(passage.after)[:MAX_ROWS]
    logits = gained.logits(passage.tokens, rows)
    came = _next_tokens(passage, rows, logits)
    return _gradients(gained, log_odds(logits, came).mean(), where)


def _likelihood(gained: GainedNetwork, passage: Passage, where: str) -> dict[UnitBlock, NDArray[np.float32]]:
    rows = list(passage.before)
    logprobs = gained.logits(passage.tokens, rows).log_softmax(-1)
    came = _next_tokens(passage, rows, logprobs)
    return _gradients(gained, logprobs.gather(-1, came[:, None]).sum(), where)


def log_odds(logits: Any, tokens: Any) -> Any:
    """Of each row, the log of the probability of its token over that of all others together.

    Inside a loop the probability comes close to 1, where its logarithm hardly moves; the odds don't saturate.
    """
    score = logits.gather(-1, tokens[:, None])
    others = logits.scatter(-1, tokens[:, None], float("-inf"))
    return score[:, 0] - others.logsumexp(-1)


class _Draw:
    """Fisher information, estimated from samples of the model's own next tokens.

    Where a text's tokens stay as they are, the scores of the next tokens that are drawn for its rows are independent,
    and their mean is 0. So the square of their sum is, on average, the sum of their squares, and one backward pass
    serves all rows.
    """

    def __init__(self, gained: GainedNetwork, draws: int, seed: int) -> None:
        import torch

        self._gained, self._draws = gained, draws
        self._random = torch.Generator(gained.network.device).manual_seed(seed)
        self._sums = {block: np.zeros(len(gain)) for block, gain in gained.gains.items()}
        self._rows = 0

    def add(self, passage: Passage, where: str) -> None:
        """Counts the rows of one text in."""
        import torch

        rows = list(passage.before)
        logprobs = self._gained.logits(passage.tokens, rows).log_softmax(-1)
        self._rows += len(rows)
        for draw in range(self._draws):
            tokens = torch.multinomial(logprobs.detach().exp(), 1, generator=self._random)
            score = logprobs.gather(-1, tokens).sum()
            for block, values in _gradients(self._gained, score, where, again=draw < self._draws - 1).items():
                self._sums[block] += values.astype(np.float64) ** 2 / self._draws

    def sensitivities(self) -> dict[UnitBlock, NDArray[np.float32]]:
        """A token, of all texts so far."""
        return {block: (total / self._rows).astype(np.float32) for block, total in self._sums.items()}


def _next_tokens(passage: Passage, rows: Sequence[int], logits: Any) -> Any:
    import torch

    return torch.tensor([passage.tokens[row + 1] for row in rows], device=logits.device)


def _gradients(
    gained: GainedNetwork, value: Any, where: str, *, again: bool = False
) -> dict[UnitBlock, NDArray[np.float32]]:
    """Of `value`, for each block. `again` says that another value of the same forward pass will follow.

    Raises:
        EngineError: one isn't a finite number.
    """
    import torch

    # Experts that no token went to have no part in the value.
    found = torch.autograd.grad(value, list(gained.gains.values()), retain_graph=again, materialize_grads=True)
    gradients = {block: one.cpu().numpy() for block, one in zip(gained.gains, found, strict=True)}
    for (kind, layer), one in gradients.items():
        if not np.isfinite(one).all():
            raise EngineError(f"{where}: the gradient of layer {layer}'s {kind} isn't a finite number")
    return gradients
