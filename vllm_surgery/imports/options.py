# SPDX-License-Identifier: Apache-2.0
"""What forms need to know beside a file, and what they write from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.imports.experts import ExpertOp

    Counts: TypeAlias = Mapping[int, int]
    """Routed experts in each layer of a model that has some."""


@dataclass(frozen=True)
class ImportOptions:
    """What a file in another tool's form doesn't say itself.

    Attributes:
        prune_ratio: of a ranking of experts: the share that is taken out, from 0 to below 1.
        deactivate: of a ranking by differences: how many experts are taken out.
        reverse: whether that ranking's sign is turned round.
        leave_out_activated: whether experts that a file activates, which no patch can say, are left out.
    """

    prune_ratio: float | None = None
    deactivate: int | None = None
    reverse: bool = False
    leave_out_activated: bool = False

    def __post_init__(self) -> None:
        if self.prune_ratio is not None and not 0 <= self.prune_ratio < 1:
            raise UsageError(f"--prune-ratio {self.prune_ratio:g}: expected a share from 0 to below 1")
        if self.deactivate is not None and self.deactivate < 1:
            raise UsageError(f"--deactivate {self.deactivate}: expected 1 expert or more")


@dataclass(frozen=True)
class Written:
    """What a patch says of experts, for a form to write.

    Attributes:
        source: the patch, for errors.
        op: of all its experts.
        layers: the experts of each layer, sorted.
        counts: routed experts in each layer of the model, where it is known.
        base: the model's name on the Hub, where it is known.
        revision: its commit there, where it is known.
    """

    source: str
    op: ExpertOp
    layers: Mapping[int, tuple[int, ...]]
    counts: Counts
    base: str | None = None
    revision: str | None = None
