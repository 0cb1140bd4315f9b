# SPDX-License-Identifier: Apache-2.0
"""Protocols of trials: cells, each some probe sets under one sampling. Data files, the package's and a user's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.probes import Form, base_name, load_probes, named_twice, names_in, read_model
from vllm_surgery.patch.files import read_bounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.evaluation.probes import Probe

_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Strict):
    """Some probe sets under one sampling.

    Attributes:
        sets: names of probe sets, or files.
        seeds: answers to each probe; they get the seeds 0, 1, ...
        top_k: 0 for no limit.
        max_tokens: of one answer.
        first: how many probes of each set are asked, the first ones; None for all.
        every: of these, one in so many.
        thinking: whether the chat template is asked to switch thinking on or off; None leaves it alone.
    """

    name: str = Field(pattern=_NAME)
    sets: list[str] = Field(min_length=1)
    seeds: int = Field(default=1, ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(ge=1)
    first: int | None = Field(default=None, ge=1)
    every: int = Field(default=1, ge=1)
    thinking: bool | None = None

    def chosen(self, probes: Sequence[Probe]) -> Sequence[Probe]:
        """Those of a set's probes that are asked."""
        return probes[: self.first][:: self.every]

    def sampling(self, seed: int) -> dict[str, Any]:
        """The sampling parameters of a request. The same seed and the same probabilities give the same answer."""
        asked = self.model_dump(include={"temperature", "top_p", "max_tokens"}) | {"seed": seed}
        asked |= {"top_k": self.top_k} if self.top_k else {}
        return asked | ({} if self.thinking is None else {"chat_template_kwargs": {"enable_thinking": self.thinking}})


class Protocol(_Strict):
    """All cells of a trial, and the sets of healthy text on which the arms' probabilities are compared.

    Attributes:
        form: how prompts are put to the model.
    """

    name: str = Field(pattern=_NAME)
    cells: list[Cell] = Field(min_length=1)
    text: list[str] = []
    form: Form = "chat"

    @model_validator(mode="after")
    def _everything_once(self) -> Protocol:
        names = [cell.name for cell in self.cells]
        if len(set(names)) < len(names):
            raise ValueError("two cells have the same name")
        for place, sets in [*((f"the cell {cell.name}", cell.sets) for cell in self.cells), ("`text`", self.text)]:
            if (twice := named_twice(sets)) is not None:
                raise ValueError(f"{place}: {twice}")
        return self

    @property
    def sets(self) -> list[str]:
        """Every probe set that it names, once."""
        return list(dict.fromkeys([*(name for cell in self.cells for name in cell.sets), *self.text]))

    def cell(self, name: str) -> Cell:
        """The cell of this name."""
        return next(cell for cell in self.cells if cell.name == name)

    def in_form(self, form: Form) -> Protocol:
        """The same with prompts that are put in this form."""
        return self.model_copy(update={"form": form})

    def changed(
        self,
        *,
        cells: Sequence[str] | None = None,
        seeds: int | None = None,
        max_tokens: int | None = None,
        sets: Sequence[str] | None = None,
        first: int | None = None,
    ) -> Protocol:
        """The same with only these cells or sets, other seeds where it samples, or less of tokens and of each set.

        A half of a set (``lists:held-out``) is asked where the set is. A set that the protocol doesn't name is asked
        where it asks sets for the same: tasks in the cells that ask tasks, reference replies under `text`.

        Raises:
            UsageError: nothing is left, there is no such cell or set, or a set is named twice.
        """
        if (twice := named_twice(sets or [])) is not None:
            raise UsageError(twice)
        names = [cell.name for cell in self.cells]
        for name in cells or []:
            if name not in names:
                raise UsageError(f"the protocol {self.name} has no cell {name}; it has {', '.join(names)}")
        kept = [cell for cell in self.cells if cells is None or cell.name in cells]
        more = {name: _sort(name) for name in sets or [] if not {name, base_name(name)} & set(self.sets)}
        changed = [_asking(cell, sets, more) for cell in kept]
        left = [_limited(cell, seeds, max_tokens, first) for cell in changed if cell is not None]
        if not left:
            raise UsageError("no cell is left to ask: the sets that were named are in none of them")
        text = self.text if sets is None else [name for name in self.text if name in sets]
        text = [*text, *(name for name, sort in more.items() if sort == "text")]
        return Protocol(name=self.name, cells=left, text=text, form=self.form)


def _asking(cell: Cell, sets: Sequence[str] | None, more: Mapping[str, str]) -> Cell | None:
    """The cell with these sets, and those in `more` that are for what its own are for; None with none left."""
    if sets is None:
        return cell
    asked = [name for named in cell.sets for name in sets if named in {name, base_name(name)}]
    own = {_sort(name) for name in cell.sets} if more else set()
    asked += [name for name, sort in more.items() if sort in own]
    return cell.model_copy(update={"sets": asked}) if asked else None


def _limited(cell: Cell, seeds: int | None, max_tokens: int | None, first: int | None) -> Cell:
    """The cell with as many seeds where it samples, and with no more tokens and probes."""
    update: dict[str, Any] = {}
    if seeds is not None and cell.temperature > 0:
        update["seeds"] = seeds
    if max_tokens is not None:
        update["max_tokens"] = min(cell.max_tokens, max_tokens)
    if first is not None:
        update["first"] = min(first, cell.first or first)
    return cell.model_copy(update=update)


def _sort(name: str) -> str:
    """The use of a set; short lists and skills are one sort, tasks."""
    use = load_probes(name).use
    return "tasks" if use in {"short", "skills"} else use


def load_protocol(name: str) -> Protocol:
    """Reads a protocol: one that comes with the package, or a file.

    Raises:
        UsageError: there is none, or it isn't sound; one line with the place.
    """
    folder = resources.files("vllm_surgery.evaluation") / "data" / "protocols"
    own = folder / f"{name}.yaml"
    if not Path(name).suffix and not own.is_file():
        raise UsageError(f"{name}: no such protocol; there are {', '.join(names_in(folder))}, and files of your own")
    content = own.read_bytes() if not Path(name).suffix else read_bounded(Path(name))
    return read_model(Protocol, content, name)
