# SPDX-License-Identifier: Apache-2.0
"""2,500 files and folders against the tools: each is read or refused in one line, and nothing is left or changed."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patches_of
from tests.folders import mlp_tensors, write_model
from tests.hostile.generated import WORDS, mutated, patch, safetensors, spoil, value
from vllm_surgery import ModelFolder, SurgeryError
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.folders import PatchLibrary
from vllm_surgery.patch.watched_files import WatchedFiles
from vllm_surgery.planning.check import check_patches, seal_patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCHES, FILES, MODELS = 10, 150, 60
SHAPES = {name: list(tensor.shape) for name, tensor in mlp_tensors((6, 6)).items()}
WANTED = patches_of({"op": "negate", "neurons": {"1": [2]}}, {"op": "scale", "factor": 0.9, "neurons": {"0": [1]}})


def refused_in_one_line(action: Callable[[], object]) -> bool:
    """True if it was refused, in one printable line; every other error is a fault."""
    try:
        action()
    except SurgeryError as error:
        assert str(error).isprintable()
        assert str(error)
        return True
    return False


def file_of(chance: random.Random) -> bytes:
    text = json.dumps(patch(chance), indent=chance.choice([None, 2])).encode()
    return chance.choice([text, mutated(text, chance), chance.randbytes(500), b"&a [*a]", b"\xef\xbb\xbf" + text])


@pytest.mark.parametrize("seed", range(BATCHES))
def test_patch_files(tmp_path: Path, seed: int) -> None:
    chance, refused = random.Random(seed), 0
    folder = tmp_path / "patches"
    folder.mkdir()
    file = folder / "a.yaml"
    for _ in range(FILES):
        file.write_bytes(file_of(chance))
        no = refused_in_one_line(lambda: load_patch(file))
        assert (WatchedFiles([file]).read().patches is None) == no
        (listed,) = PatchLibrary([folder]).listing()
        assert (listed.id is None) == no
        refused += no
    assert 0 < refused < FILES, "the generator makes sound ones and others"


def spoil_model(folder: Path, chance: random.Random) -> None:
    """Spoils a model's folder in one way or another."""
    config = json.loads((folder / "config.json").read_bytes())
    spoil(config, chance)
    name = chance.choice(
        [word for word in WORDS if word and len(word.encode("utf-8", "replace")) < 200 and "\0" not in word]
    )
    plain = name.encode("utf-8", "replace").decode().replace("/", "_").strip(".") or "x"
    index = {"weight_map": chance.choice([value(chance), {key: chance.choice(WORDS) for key in SHAPES}])}
    ways: list[Callable[[], Any]] = [
        lambda: (folder / "model.safetensors").write_bytes(safetensors(chance, SHAPES)),
        lambda: (folder / "model.safetensors").write_bytes(safetensors(chance, SHAPES)),
        lambda: (folder / "config.json").write_text(json.dumps(config)),
        lambda: (folder / "model.safetensors.index.json").write_text(json.dumps(index)),
        lambda: (folder / f"{plain}.safetensors").write_bytes(safetensors(chance, SHAPES)),
        lambda: (folder / plain).symlink_to(chance.choice(["/etc/passwd", "..", ".", "nowhere", "config.json", plain])),
        lambda: os.mkfifo(folder / f"{plain}.json"),
        lambda: (folder / "config.json").write_bytes(mutated(json.dumps(config).encode(), chance)),
        lambda: (folder / "vllm_surgery.json").write_text(json.dumps(value(chance))),
    ]
    chance.choice(ways)()


@pytest.mark.parametrize("seed", range(BATCHES))
def test_model_folders(tmp_path: Path, seed: int) -> None:
    chance, baked = random.Random(seed), 0
    sound = write_model(tmp_path / "sound", (6, 6))
    for number in range(MODELS):
        model = write_model(tmp_path / f"model{number}", (6, 6))
        spoil_model(model, chance)
        before = sorted(tmp_path.iterdir())
        refused_in_one_line(lambda model=model: check_patches(WANTED, ModelFolder(model)))
        out = tmp_path / f"out{number}"
        if refused_in_one_line(lambda model=model, out=out: bake(WANTED, ModelFolder(model), out)):
            assert sorted(tmp_path.iterdir()) == before, "a bake that fails leaves nothing"
        else:
            baked += 1
            assert not any(file.is_symlink() for file in out.rglob("*"))
        refused_in_one_line(lambda model=model: diff(ModelFolder(sound), ModelFolder(model)))
        refused_in_one_line(lambda model=model: seal_patch(WANTED.members[0], ModelFolder(model)))
    assert 0 < baked < MODELS, "the generator makes sound ones and others"


@pytest.mark.parametrize("seed", range(BATCHES))
def test_names_of_patch_files(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(patch(random.Random(0))))
    for _ in range(40):
        name = (
            mutated(chance.choice(WORDS).encode("utf-8", "replace")[:100], chance)[:200]
            .replace(b"/", b"")
            .replace(b"\0", b"")
        )
        with open(os.path.join(os.fsencode(folder), name + b".yaml"), "wb") as file:  # noqa: PTH118, PTH123 - bytes
            file.write(file_of(chance))
    library = PatchLibrary([folder])
    for listed in library.listing():
        assert listed.name.isprintable()
        refused_in_one_line(lambda name=listed.name: library.load(name))
    assert "a" in library.names()
