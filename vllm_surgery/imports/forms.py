# SPDX-License-Identifier: Apache-2.0
"""The table of forms: what each is called, how a file of it is known, and who reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.imports import ascend, drop_map, riy, steermoe

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.imports.experts import ExpertLists
    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.options import Counts, ImportOptions, Written


@dataclass(frozen=True)
class Form:
    """A row of the table.

    Attributes:
        word: after ``--as``.
        title: what a file of it is, with an article.
        recognises: tells whether a file looks like it.
        read: the experts that a file takes out, from what it doesn't say and the model's numbers of experts.
        write: the text of a file.
    """

    word: str
    title: str
    recognises: Callable[[ForeignFile], bool]
    read: Callable[[ForeignFile, ImportOptions, Counts], ExpertLists]
    write: Callable[[Written], str]


FORMS = (
    Form(
        "profile",
        "an expert profile of vLLM's pull request on pruning (RIY)",
        *(riy.recognises, riy.read, riy.write),
    ),
    Form(
        "ranking",
        "a ranking of experts for vLLM-Ascend's pruning",
        *(ascend.recognises, ascend.read, ascend.write),
    ),
    Form("drop-map", "a drop map of experts", drop_map.recognises, drop_map.read, drop_map.write),
    Form("steermoe", "a list of SteerMoE", steermoe.recognises, steermoe.read, steermoe.write),
)
"""In the order in which they are tried: a ranking of one line looks like a drop map, and its file's name tells."""


def form_called(word: str) -> Form:
    """The form that goes by a word.

    Raises:
        UsageError: none does.
    """
    found = next((form for form in FORMS if form.word == word), None)
    if found is None:
        raise UsageError(f"no form is called {word!r}; there are {', '.join(form.word for form in FORMS)}")
    return found


def recognised(file: ForeignFile) -> Form | None:
    """The form of a file; None where it has none that is known."""
    return next((form for form in FORMS if form.recognises(file)), None)


def form_of(file: ForeignFile, word: str | None = None) -> Form:
    """The form that a file is read by: the one that is asked for, or the one that it has.

    Raises:
        UsageError: there is no such form.
        PatchError: the file has none that is known.
    """
    if word is not None:
        return form_called(word)
    found = recognised(file)
    if found is None:
        raise PatchError(
            file.source, "", f"is in no form that can be imported; those are {', '.join(form.title for form in FORMS)}"
        )
    return found
