# SPDX-License-Identifier: Apache-2.0
"""Publishing patches in a model's repository on the Hugging Face Hub: the files, and a section of the model's card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from vllm_surgery.errors import SurgeryError, UsageError, one_line
from vllm_surgery.imports.fetching import NotThereError, fetch
from vllm_surgery.imports.remote import authorization, hub_endpoint
from vllm_surgery.installed import require
from vllm_surgery.patch.describe import model_card

if TYPE_CHECKING:
    from vllm_surgery.patch.format import Patch
    from vllm_surgery.patch.patch_set import PatchSet

CARD = "README.md"
_CARD_BYTES = 4 << 20
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


@dataclass(frozen=True)
class Published:
    """Patches that were uploaded.

    Attributes:
        url: of the commit, for people.
        commit: the whole commit.
        addresses: of the patches at that commit, as `vllm-surgery serve --patch` takes them.
    """

    url: str
    commit: str
    addresses: tuple[str, ...]


def files_to_publish(patches: PatchSet, repository: str, *, revision: str = "main") -> dict[str, bytes]:
    """The files that a publication writes: a patch file each, and the model's card with a section for each.

    A section that stands in the card already, by the patch's name, is replaced; everything else there stays.

    Args:
        patches: which.
        repository: the model's, ``ORG/NAME``; its card is fetched.
        revision: the branch.

    Raises:
        UsageError: no repository is called that, or its card can't be had.
    """
    files = dict(_file_of(member.patch) for member in patches.members)
    if len(files) < len(patches):
        raise UsageError("two of the patches have one name, under which both would be published")
    card = _card(repository, revision)
    for member in patches.members:
        card = with_section(card, member.patch, repository)
    return {**files, CARD: card.encode()}


def publish(files: dict[str, bytes], repository: str, *, revision: str = "main", create: bool = False) -> Published:
    """Uploads files in one commit, by the Hub's own library and with the token that it knows.

    Args:
        files: content by name, as of `files_to_publish`.
        repository: ``ORG/NAME``.
        revision: the branch.
        create: whether to make the repository where there is none; it is a private one.

    Raises:
        UsageError: huggingface_hub isn't installed.
        SurgeryError: the Hub refuses; the repository is as it was.
    """
    require("push", "huggingface_hub")
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repository)
    api = HfApi(endpoint=hub_endpoint())
    names = sorted(set(files) - {CARD})
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    try:
        if create:
            api.create_repo(repository, private=True, exist_ok=True)
        done = api.create_commit(
            repository, operations=added, commit_message=f"vllm-surgery: {', '.join(names)}", revision=revision
        )
    except Exception as error:  # The library's own types, httpx's, and ValueError.
        raise SurgeryError(f"{repository}: nothing was published: {one_line(str(error), 300)}") from None
    return Published(str(done.commit_url), done.oid, tuple(f"hf://{repository}/{name}@{done.oid}" for name in names))


def check_repository(name: str) -> None:
    """Checks that a repository can be called that.

    Raises:
        UsageError: none can.
    """
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"--repo {name}: expected ORG/NAME, as the Hub calls a repository")


def _file_of(patch: Patch) -> tuple[str, bytes]:
    whole = type(patch).from_data(
        patch.to_data(), patch.name
    )  # With all numbers in it: no file of directions goes along.
    return f"{patch.name}.yaml", whole.to_yaml().encode()


def _card(repository: str, revision: str) -> str:
    """The card that the repository has; empty where it has none."""
    check_repository(repository)
    url = f"{hub_endpoint()}/{repository}/resolve/{quote(revision, safe='')}/{CARD}"
    try:
        return fetch(url, _CARD_BYTES, authorization()).content.decode("utf-8")
    except NotThereError:
        return ""
    except UnicodeDecodeError:
        raise UsageError(f"{repository}: its {CARD} is not UTF-8 text") from None


def with_section(card: str, patch: Patch, repository: str) -> str:
    """A model's card with the section of a patch, in the place of an older one of that name or at its end."""
    start, end = f"<!-- vllm-surgery {patch.name} -->", f"<!-- end of vllm-surgery {patch.name} -->"
    section = f"{start}\n{model_card(patch)}\n{_how_to(patch, repository)}\n{end}"
    before, found, rest = card.partition(start)
    _, closed, after = rest.partition(end)
    if found and closed:
        return before + section + after
    return f"{card.rstrip()}\n\n{section}\n" if card.strip() else f"{section}\n"


def _how_to(patch: Patch, repository: str) -> str:
    model = patch.model.base or "MODEL"
    return (
        "Served with it, on vLLM with vllm-surgery installed:\n\n"
        f"```console\n$ vllm-surgery serve {model} --patch hf://{repository}/{patch.name}.yaml@main\n```"
    )
