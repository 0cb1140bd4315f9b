# SPDX-License-Identifier: Apache-2.0
"""The set-up of a trial: its arms, the tokens as text, and the identity of the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation import arms as make
from vllm_surgery.imports.loading import load_named
from vllm_surgery.loops import TokenTable
from vllm_surgery.loops.tokenizers import load_tokenizer
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.config import CONFIG_FILE
from vllm_surgery.patch.files import is_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import EngineFacts

SHAMS = 3
"""Controls of a patch where the model's folder is here: enough to see that they differ, each costs a whole arm."""
PENALTY = 1.15
"""The repetition penalty that the paper found to leave code working (1.30 broke it)."""


def model_folder(asked: str | None, facts: EngineFacts) -> Path | None:
    """The model's folder: the one named, or the server's own where it lies on this machine.

    Raises:
        UsageError: the one named isn't there.
    """
    if asked is not None:
        return ModelFolder(asked).path
    return Path(facts.root) if (Path(facts.root) / CONFIG_FILE).is_file() else None


@dataclass(frozen=True)
class Wanted:
    """The arms that a user wants besides the unpatched one.

    Attributes:
        patches: files, or names of patches in the server's folders.
        shams: for each patch file; None for `SHAMS` where the model's folder is known.
        sham_seed: chooses their units.
        penalties: repetition penalties of the unpatched model.
        rescues: actions on answers of the unpatched model that loop.
        streamed_rescues: likewise, on answers that are asked for as streams.
        servers: other servers, as ``NAME=URL``.
    """

    patches: Sequence[str] = ()
    shams: int | None = None
    sham_seed: int = 0
    penalties: Sequence[float] = (PENALTY,)
    rescues: Sequence[str] = ()
    streamed_rescues: Sequence[str] = ()
    servers: Sequence[str] = ()


def build_arms(wanted: Wanted, folder: Path | None) -> list[Arm]:
    """All arms, the unpatched one first.

    Args:
        wanted: which.
        folder: of the model; shams need it.

    Raises:
        UsageError: a file is missing, shams can't be made, or an option isn't what it should be.
        SurgeryError: a patch is refused.
    """
    if wanted.shams and folder is None:
        raise UsageError("shams need the model's folder: name it with --model")
    built = [make.unpatched(), *(arm for word in wanted.patches for arm in _of_patch(word, wanted, folder))]
    built += [make.of_penalty(_penalty(value)) for value in wanted.penalties]
    built += map(make.of_rescue, wanted.rescues)
    built += [make.of_rescue(actions, streamed=True) for actions in wanted.streamed_rescues]
    return make.checked([*built, *map(_server, wanted.servers)])


def _of_patch(word: str, wanted: Wanted, folder: Path | None) -> list[Arm]:
    """A patch's own arm and its controls."""
    if not is_file(word):
        return [make.of_name(word)]
    patch = load_named(word).patch
    count = SHAMS if wanted.shams is None else wanted.shams
    if folder is None or not count:
        return [make.of_patch(patch)]
    return [make.of_patch(patch), *make.shams_of(patch, ModelFolder(folder), count, wanted.sham_seed)]


def require_context(facts: EngineFacts, least: int, what: str, who: str, less: str) -> None:
    """Sees that an engine has room for a prompt and its answer.

    Args:
        facts: of the engine.
        least: tokens that both need.
        what: needs them.
        who: the engine is called.
        less: the options that ask for less.

    Raises:
        UsageError: it has less room.
    """
    if facts.context is not None and least > facts.context:
        raise UsageError(
            f"{who}: has room for {facts.context} tokens, and {what} needs {least}: "
            f"start it with a larger --max-model-len, or ask for less with {less}"
        )


def token_table(name: str, arm: str | None = None) -> TokenTable:
    """The tokens of a tokenizer as text.

    Args:
        name: of its folder, or on the Hub.
        arm: the other server whose model it is of; None for the trial's own.

    Raises:
        UsageError: there is none.
    """
    option = "--tokenizer" if arm is None else f"--tokenizer {arm}=DIR"
    return TokenTable.from_tokenizer(load_tokenizer(name, hint=f"; name its folder with {option}"))


def token_tables(
    words: Sequence[str], arms: Sequence[Arm], root: Callable[[str | None], str]
) -> tuple[TokenTable, dict[str, TokenTable]]:
    """The tokens of each server's model as text, from the tokenizer that a user named, or else the served model's own.

    Args:
        words: what the user named: ``NAME`` for the trial's own server, ``ARM=NAME`` for another one.
        arms: of the trial.
        root: where the model was loaded from that the server at an address has; None for the trial's own.

    Returns:
        The trial's own, and that of each arm that is another server.

    Raises:
        UsageError: there is no such tokenizer.
    """
    urls = {arm.name: arm.url for arm in arms if arm.url is not None}
    own, named = None, {}
    for word in words:
        arm, separator, name = word.partition("=")
        if separator and arm in urls:
            named[arm] = name
        else:
            own = word
    others = {arm: token_table(named.get(arm) or root(url), arm) for arm, url in urls.items()}
    return token_table(own or root(None)), others


def about(facts: EngineFacts, folder: Path | None, sham_seed: int) -> dict[str, Any]:
    """The identity of the model, of the engine and of this package, for a report."""
    return {
        "model": _without_path(facts.name),
        "engine": facts.engine,
        "vllm_surgery": version("vllm-surgery"),
        "fingerprint": fingerprint(folder) if folder is not None else None,
        "sham_seed": sham_seed,
    }


def _without_path(name: str) -> str:
    """The name of a model. A server that wasn't told calls it by its folder, which is a machine's own business."""
    return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name


def fingerprint(folder: Path) -> str:
    """sha256 over the config's and the weights' files, each with its name."""
    whole = hashlib.sha256()
    for file in [folder / CONFIG_FILE, *ModelFolder(folder).files]:
        with file.open("rb") as stream:
            whole.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _penalty(value: float) -> float:
    if not 0 < value < float("inf") or value == 1:
        raise UsageError(f"--penalty {value:g}: a repetition penalty is above 0, and not 1, which is none")
    return value


def _server(word: str) -> Arm:
    name, separator, url = word.partition("=")
    if not (name and separator and url):
        raise UsageError(f"--server {word}: write NAME=URL")
    return make.of_server(name, url)
