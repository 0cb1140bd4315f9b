# SPDX-License-Identifier: Apache-2.0
"""A bake is the original with a patch carried out, and nothing else; a bake that fails leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from tests.folders import write_model
from tests.models import patch_of
from vllm_surgery import CheckpointError, MismatchError, ModelFolder, Patch, PatchSet, SurgeryError, UsageError
from vllm_surgery.offline import bake as module
from vllm_surgery.offline.bake import bake
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (6, 6, 6)
GAINS = {(0, 1): -1.0, (0, 5): 0.9, (2, 0): 0.0}
TOUCHED = {(0, 1), (0, 5), (2, 0)}


def patches(gains: dict[tuple[int, int], float], name: str = "test") -> PatchSet:
    return PatchSet((SourcedPatch("a.yaml", Patch.from_data(patch_of(gains, name))),))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=[1, 3], ids=["single", "sharded"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model", WIDTHS, shards=request.param, dtype="BF16")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("kept")
    return folder


def tensors(folder: Path) -> dict[str, Any]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def test_each_column_is_its_original_times_its_gain(model: Path, tmp_path: Path) -> None:
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    before, after = tensors(model), tensors(tmp_path / "out")
    for (layer, index), gain in GAINS.items():
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        expected = (before[name][:, index].float() * gain).bfloat16()
        assert after[name][:, index].tolist() == expected.tolist()


def test_every_other_number_is_what_it_was(model: Path, tmp_path: Path) -> None:
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    before, after = tensors(model), tensors(tmp_path / "out")
    for layer, index in TOUCHED:
        for side in (before, after):
            side[f"model.layers.{layer}.mlp.down_proj.weight"][:, index] = 0
    assert {name: tensor.tolist() for name, tensor in before.items()} == {
        name: tensor.tolist() for name, tensor in after.items()
    }


def test_files_index_and_headers_stay(model: Path, tmp_path: Path) -> None:
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    before, after = contents(model), contents(tmp_path / "out")
    assert after.keys() - before.keys() == {"vllm_surgery.json"}
    for name, content in before.items():
        if name.endswith(".safetensors"):
            length = 8 + int.from_bytes(content[:8], "little")
            assert after[name][:length] == content[:length]
            assert len(after[name]) == len(content)
        elif name != "README.md":
            assert after[name] == content


def test_the_original_stays(model: Path, tmp_path: Path) -> None:
    before = contents(model)
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert contents(model) == before


def test_a_patch_and_its_inverse_give_the_original_back(model: Path, tmp_path: Path) -> None:
    gains = {(0, 1): -1.0, (1, 2): 4.0, (2, 3): -0.5}
    bake(patches(gains), ModelFolder(model), tmp_path / "there")
    inverse = {unit: 1 / gain for unit, gain in gains.items()}
    bake(patches(inverse), ModelFolder(tmp_path / "there"), tmp_path / "back")
    weights = {name: content for name, content in contents(model).items() if name.endswith(".safetensors")}
    assert weights.items() <= contents(tmp_path / "back").items()


def test_untouched_files_are_links_and_touched_ones_are_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINKED_BYTES", 0)
    baked = bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").samefile(model / "config.json")
    touched = {stored.file.name for name, stored in ModelFolder(model).stored.items() if "0.mlp.down" in name}
    assert not any((tmp_path / "out" / name).samefile(model / name) for name in touched)
    assert baked.linked == sum(1 for name in contents(model) if (tmp_path / "out" / name).samefile(model / name))


def test_small_files_are_copied_so_that_an_edit_of_one_is_no_edit_of_the_other(model: Path, tmp_path: Path) -> None:
    assert bake(patches(GAINS), ModelFolder(model), tmp_path / "out").linked == 0
    before = (model / "config.json").read_bytes()
    with (tmp_path / "out" / "config.json").open("r+b") as config:
        config.write(b" ")
    assert (model / "config.json").read_bytes() == before


def test_on_request_everything_is_copied(model: Path, tmp_path: Path) -> None:
    baked = bake(patches(GAINS), ModelFolder(model), tmp_path / "out", link=False)
    assert baked.linked == 0
    assert not any((tmp_path / "out" / name).samefile(model / name) for name in contents(model))


def test_a_folder_of_links_as_the_hub_cache_has_gives_files(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    model.rename(cache / "blobs")
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    bake(patches(GAINS), ModelFolder(snapshot), tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / "extra" / "notes.txt").read_text() == "kept"


def test_links_within_the_folder_are_followed_those_to_folders_too(model: Path, tmp_path: Path) -> None:
    (model / "linked").symlink_to("extra")
    (model / "extra" / "circle").symlink_to("..")
    (model / "notes.txt").symlink_to("extra/notes.txt")
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    for name in ("linked/notes.txt", "notes.txt"):
        assert (tmp_path / "out" / name).read_text() == "kept"
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["secret.txt", "folder", "circle/secret.txt"])
def test_a_link_out_of_the_folder_is_refused_rather_than_published(model: Path, tmp_path: Path, name: str) -> None:
    secrets = tmp_path / "elsewhere"
    secrets.mkdir()
    (secrets / "secret.txt").write_text("mine")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(secrets if name == "folder" else secrets / "secret.txt")
    with pytest.raises(CheckpointError, match=f"^{model / name}: is a link that leads out of the model's folder"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "pytorch_model.bin", "original/consolidated.00.pth", "model.Q8_0.gguf"]
)
def test_other_copies_of_the_weights_are_left_out_and_named(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    assert bake(patches(GAINS), ModelFolder(model), tmp_path / "out").left_out == (name,)
    assert not (tmp_path / "out" / name).exists()


def test_a_backup_beside_an_index_is_left_out(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", WIDTHS, shards=3)
    first = min(model.glob("*.safetensors"))
    (model / "original.safetensors").write_bytes(first.read_bytes())
    assert bake(patches(GAINS), ModelFolder(model), tmp_path / "out").left_out == ("original.safetensors",)


def test_a_backup_without_an_index_is_refused_since_engines_load_one_or_the_other(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", WIDTHS, shards=1)
    (model / "original.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"is both in model.safetensors and in original.safetensors"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")


def test_a_stale_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", WIDTHS, shards=3)
    (model / "model.safetensors").write_bytes(min(model.glob("*.safetensors")).read_bytes())
    with pytest.raises(CheckpointError, match=r"model.safetensors lies beside an index that doesn't name it"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")


def test_what_was_done_is_written_into_the_folder(model: Path, tmp_path: Path) -> None:
    wanted = patches(GAINS)
    bake(wanted, ModelFolder(model), tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "vllm_surgery.json").read_bytes())["baked"]
    assert entry["id"] == wanted.id
    assert [Patch.from_data(data) for data in entry["patches"]] == [member.patch for member in wanted.members]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# Mine\n")
    assert f"Edited by vllm-surgery: `{wanted.id}`" in card


def test_a_second_bake_is_recorded_after_the_first(model: Path, tmp_path: Path) -> None:
    first, second = patches({(0, 0): 2.0}, "first"), patches({(1, 1): -1.0}, "second")
    bake(first, ModelFolder(model), tmp_path / "one")
    bake(second, ModelFolder(tmp_path / "one"), tmp_path / "two")
    record = json.loads((tmp_path / "two" / "vllm_surgery.json").read_bytes())
    assert [entry["id"] for entry in record["baked"]] == [first.id, second.id]
    assert len(json.loads((tmp_path / "one" / "vllm_surgery.json").read_bytes())["baked"]) == 1


@pytest.mark.parametrize(
    ("content", "said"), [("{", "can't be read as JSON"), ('{"lora": {}}', "is no record of a bake")]
)
def test_a_record_of_something_else_writes_nothing(model: Path, tmp_path: Path, content: str, said: str) -> None:
    (model / "vllm_surgery.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"vllm_surgery.json: {said}"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert nothing_beside(tmp_path)


def nothing_beside(tmp_path: Path) -> bool:
    return [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_patch_for_another_model_writes_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="index 6 is out of range"):
        bake(patches({(0, 6): -1.0}), ModelFolder(model), tmp_path / "out")
    assert nothing_beside(tmp_path)


@pytest.mark.parametrize("inside", ["", "out"])
def test_the_models_own_folder_is_refused(model: Path, inside: str) -> None:
    before = contents(model)
    with pytest.raises(UsageError, match=r"lies in the model's own folder; a bake is a copy$"):
        bake(patches(GAINS), ModelFolder(model), model / inside)
    assert contents(model) == before


def test_a_taken_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=f"^{tmp_path}/out: already exists$"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "_rewrite", full)
    with pytest.raises(SurgeryError, match=r"out: can't be written: No space left on device; nothing was left behind$"):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert nothing_beside(tmp_path)


def test_a_folder_that_cant_be_made_is_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="file/out: can't be written: "):
        bake(patches(GAINS), ModelFolder(model), tmp_path / "file" / "out")


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.3])
def test_a_killed_bake_leaves_no_half_folder(model: Path, tmp_path: Path, moment: float) -> None:
    """The process is killed while it waits in the middle of its work, after some of the files were copied."""
    file = tmp_path / "patch.json"
    file.write_text(json.dumps(patch_of(GAINS)))
    code = (
        "import sys, time; from vllm_surgery import bake, cli\n"
        "copy = bake._Copy._copy\n"
        f"def slow(*args): print('copying', flush=True); copy(*args); time.sleep({moment} and 60)\n"
        "bake._Copy._copy = slow; bake._rewrite = lambda *_: time.sleep(60)\n"
        "cli.main(['bake', sys.argv[1], '--model', sys.argv[2], '--out', sys.argv[3]])"
    )
    command = [sys.executable, "-c", code, str(file), str(model), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    bake(patches(GAINS), ModelFolder(model), tmp_path / "out")
    assert (tmp_path / "out" / "vllm_surgery.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "patch.json"]
