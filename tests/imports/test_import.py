# SPDX-License-Identifier: Apache-2.0
"""Lists of experts in other tools' forms, read for a model with four experts in each of two layers."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import refusal
from tests.folders import config_of, expert_tensors, mlp_tensors, write_folder
from vllm_surgery import ImportOptions, MismatchError, Patch, PatchError, UsageError, import_patch
from vllm_surgery.imports.convert import import_file, name_of_file
from vllm_surgery.imports.foreign import MAX_FOREIGN_BYTES, MOST_LINES
from vllm_surgery.model.checkpoint import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS = 4
PROFILE = {"version": 1, "model": "org/moe", "workload": "support chat", "pruned_experts": [[0, 3], [1, 0], [1, 2]]}
DROPPED: dict[str, Any] = {**PROFILE, "version": 2, "routing_mode": "post_topk_drop"}
RANKING = '{"0": [2, 0, 3, 1]}\n\n{"1": [1, 3, 0, 2]}\n'
GONE = {0: [3], 1: [0, 2]}
RANKED_GONE = {0: [1, 3], 1: [0, 2]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose routers choose two of four experts."""
    config = config_of((6, 6), 8, num_experts=EXPERTS, num_experts_per_tok=2, architectures=["SomeMoeForCausalLM"])
    return write_folder(tmp_path_factory.mktemp("models") / "moe", expert_tensors("own"), config)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "dense", mlp_tensors((6, 6)), config_of((6, 6)))


def written(folder: Path, content: object, name: str = "some_list.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def experts(patch: Patch) -> dict[int, list[int]]:
    return {item.layer: list(item.resolve(EXPERTS)) for item in patch.assignments()}


def imported(file: Path, model: Path, *, form: str | None = None, name: str | None = None, **options: Any) -> Patch:
    return import_patch(file, model, form=form, name=name, options=ImportOptions(**options))


def refused(file: Path, model: Path, **options: Any) -> str:
    return refusal(lambda: imported(file, model, **options)).removeprefix(f"{file}: ").removeprefix(f"{file}, ")


# What each form comes to


@pytest.mark.parametrize(
    ("content", "op"),
    [
        (PROFILE, "mask"),
        ({**PROFILE, "version": 2, "routing_mode": "pre_topk_mask"}, "mask"),
        (DROPPED, "zero"),
        ({"0": [3], "1": [2, 0]}, "mask"),
        ({"0": [3], "1": [2, 0], "5": []}, "mask"),
        ({"method": "x", "target_experts": 3, "per_layer_drop": {"0": [3], "1": [0, 2]}}, "mask"),
        ("0 3 -1\n1 0 -1\n\n1 2 -1\n", "mask"),
        ({"deactivate": {"0": [3], "1": [0, 2]}, "activate": {}}, "mask"),
        (
            {
                "layer_configs": {
                    "0": {"mode": "steermoe", "deactivate_ids": [3]},
                    "1": {"mode": "steermoe", "deactivate_ids": [0, 2], "activate_ids": []},
                }
            },
            "mask",
        ),
    ],
)
def test_a_list_becomes_a_patch(content: object, op: str, tmp_path: Path, model: Path) -> None:
    patch = import_patch(written(tmp_path, content), model)
    assert (patch.edits[0].op, len(patch.edits), experts(patch)) == (op, 1, GONE)


def test_a_ranking_loses_its_last_experts_as_vllm_ascend_counts_them(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, RANKING, "math.jsonl")
    assert experts(imported(file, model, prune_ratio=0.5)) == RANKED_GONE
    # int(4 * 0.7) experts are kept.
    assert experts(imported(file, model, prune_ratio=0.3)) == RANKED_GONE
    assert experts(imported(file, model, prune_ratio=0.25)) == {0: [1], 1: [2]}


def test_a_ranking_may_list_those_alone_that_are_kept(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, '{"0": [2, 0], "1": [1, 3]}\n', "math.jsonl")
    assert experts(imported(file, model, prune_ratio=0.5)) == RANKED_GONE


def test_a_ranking_of_steermoe_loses_those_chosen_least_for_what_is_wanted(tmp_path: Path, model: Path) -> None:
    rows = [
        {"layer": layer, "expert": expert, "risk_diff": difference, "Layer_Expert": f"L{layer}E{expert}"}
        for layer, expert, difference in [(0, 3, -0.5), (0, 1, 0.9), (1, 2, -0.1), (1, 0, -0.3), (1, 1, 0.2)]
    ]
    file, lines = written(tmp_path, rows), "".join(json.dumps(row) + "\n" for row in rows)
    assert experts(imported(file, model, deactivate=2)) == {0: [3], 1: [0]}
    assert experts(imported(file, model, deactivate=1, reverse=True)) == {0: [1]}
    assert experts(imported(written(tmp_path, lines, "rows.jsonl"), model, deactivate=3)) == GONE


def test_layers_are_told_from_drop_maps_by_the_word_that_is_given(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, '{"0": [3], "1": [2, 0]}\n', "dropped.jsonl")
    assert experts(import_patch(file, model, form="drop-map")) == GONE


# What a patch says of where it came from


def test_guard_and_provenance_say_where_the_patch_came_from(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, PROFILE, "Support Chat.json")
    patch = import_patch(file, model)
    assert patch.name == "support-chat"
    assert patch.model.given() == {
        "architectures": ["SomeMoeForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_experts": 4,
    }
    assert patch.provenance == {
        "source": "vllm-surgery import",
        "file": "Support Chat.json",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "form": "profile",
        "says": {"model": "org/moe", "workload": "support chat"},
    }
    assert Patch.parse(patch.to_yaml()) == patch


def test_a_patch_may_be_called_otherwise(tmp_path: Path, model: Path) -> None:
    assert import_patch(written(tmp_path, PROFILE), model, name="mine").name == "mine"
    assert refused(written(tmp_path, PROFILE), model, name="Mine").startswith("name: expected 1 to 64 lower-case")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.json", "a"),
        ("Math 541.v2.jsonl", "math-541.v2"),
        ("none.json", "imported"),
        ("…", "imported"),
        ("x" * 80, "x" * 64),
    ],
)
def test_a_file_gives_the_patch_its_name(file: str, name: str) -> None:
    assert name_of_file(file) == name


def test_a_file_for_another_model_is_noted(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--other" / "snapshots" / "abc"
    config = config_of((6, 6), 8, num_experts=EXPERTS, num_experts_per_tok=2)
    write_folder(snapshot, expert_tensors("own"), config)
    file = written(tmp_path, {**PROFILE, "model_revision": "def"})
    assert import_file(file, ModelFolder(snapshot)).notes == (
        "the file says that it is for model org/moe; this model is org/other",
        "the file says that it is for model_revision def; this model is abc",
    )


def test_what_a_file_says_of_itself_is_bounded(tmp_path: Path, model: Path) -> None:
    says = {f"key {number}": "long " * 1000 for number in range(500)}
    told = import_patch(written(tmp_path, {**PROFILE, **says}), model).provenance["says"]
    assert (len(told), max(map(len, told.values()))) == (20, 200)


# What is refused, by form


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 3}, "version: expected 1 or 2, got 3"),
        ({"version": True}, "version: expected 1 or 2, got True"),
        ({"version": 1.0}, "version: expected 1 or 2, got 1.0"),
        ({"version": "1"}, "version: expected 1 or 2, got '1'"),
        ({"version": 2}, "routing_mode: expected pre_topk_mask or post_topk_drop, got None"),
        (
            {"version": 2, "routing_mode": "drop"},
            "routing_mode: expected pre_topk_mask or post_topk_drop, got 'drop'",
        ),
        (
            {"routing_mode": "post_topk_drop"},
            "routing_mode: profiles of version 1 have none; they mask before the router chooses",
        ),
        ({"pruned_experts": {}}, "pruned_experts: expected a list of [layer, expert] pairs, got {}"),
        ({"pruned_experts": []}, "names no experts, so there is nothing to import"),
        ({"pruned_experts": [[0, 1, 2]]}, "pruned_experts[0]: expected a [layer, expert] pair, got [0, 1, 2]"),
        ({"pruned_experts": [[0, 1], 3]}, "pruned_experts[1]: expected a [layer, expert] pair, got 3"),
        ({"pruned_experts": [[0, True]]}, "pruned_experts[0]: expected an expert number, got True"),
        ({"pruned_experts": [[0, 1.0]]}, "pruned_experts[0]: expected an expert number, got 1.0"),
        ({"pruned_experts": [["0", 1]]}, "pruned_experts[0]: expected a layer number, got '0'"),
        (
            {"pruned_experts": [[-1, 1]]},
            "pruned_experts[0]: layer -1 can't be: expected a number from 0 to 9999",
        ),
        (
            {"pruned_experts": [[0, -1]]},
            "pruned_experts[0]: expert -1 can't be: expected a number from 0 to 1048575",
        ),
        ({"pruned_experts": [[0, 1], [0, 1]]}, "pruned_experts[1]: expert 1 of layer 0 stands twice"),
        ({"pruned_experts": [[0, 4]]}, "layer 0: index 4 is out of range: layer 0 has 4 experts"),
        ({"pruned_experts": [[2, 0]]}, "layer 2: layer 2 is out of range: the model has 2 layers"),
        (
            {"pruned_experts": [[0, 0], [0, 1], [0, 2]]},
            "layer 0: masks 3 of the 4 experts of layer 0: too few are left for the router, which chooses 2",
        ),
    ],
)
def test_a_profile_is_refused(change: dict[str, Any], reason: str, tmp_path: Path, model: Path) -> None:
    assert refused(written(tmp_path, {**PROFILE, **change}), model) == reason


def test_experts_may_all_be_silenced_but_not_masked(tmp_path: Path, model: Path) -> None:
    pairs = [[0, expert] for expert in range(EXPERTS)]
    assert experts(import_patch(written(tmp_path, {**DROPPED, "pruned_experts": pairs}), model)) == {0: [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "ratio", "reason"),
    [
        (
            RANKING,
            None,
            "ranks each layer's experts, and doesn't say how many are taken out: give --prune-ratio (vLLM-Ascend's "
            "expert_prune_ratio); or --as drop-map if these are the experts to take out",
        ),
        (RANKING, 1.0, "--prune-ratio 1: expected a share from 0 to below 1"),
        (RANKING, -0.5, "--prune-ratio -0.5: expected a share from 0 to below 1"),
        (RANKING, float("nan"), "--prune-ratio nan: expected a share from 0 to below 1"),
        (RANKING, 0.0, "--prune-ratio 0: keeps all 4 experts of layer 0"),
        (
            RANKING,
            0.75,
            "layer 0: masks 3 of the 4 experts of layer 0: too few are left for the router, which chooses 2",
        ),
        ('{"0": [2, 0, 3, 1]}\n', 0.5, "ranks no experts of layer 1, which has some"),
        ('{"0": [2, 0]}\n{"1": [1]}\n', 0.5, "layer 1: ranks 1 of its 4 experts, and 2 are kept at a ratio of 0.5"),
        ('{"0": [2, 9]}\n{"1": [1, 0]}\n', 0.5, "layer 0: ranks expert 9; the layer has 4 experts"),
        ('{"0": [2, 0]}\n{"1": [1, 0]}\n{"2": [1, 0]}\n', 0.5, "layer 2: the model has no routed experts there"),
        ('{"0": [2, 0]}\n{"0": [1, 0]}\n', 0.5, "line 2: layer 0 stands twice"),
        ('{"0": [2, 2]}\n{"1": [1, 0]}\n', 0.5, "line 1.0[1]: expert 2 of layer 0 stands twice"),
        ('{"0": [2, true]}\n{"1": [1, 0]}\n', 0.5, "line 1.0[1]: expected an expert number, got True"),
        ('{"0": [2, 1.5]}\n{"1": [1, 0]}\n', 0.5, "line 1.0[1]: expected an expert number, got 1.5"),
        ('{"0": [2, 0]}\n{"1": [1, 0], "1": [2, 3]}\n', 0.5, "line 2: 1: the key '1' stands twice in one mapping"),
        ('{"0": [2, 0]}\n{"1": [1, 0]}\nmore\n', 0.5, "line 3: line 1, column 1: is not JSON: Expecting value"),
    ],
)
def test_a_ranking_is_refused(content: str, ratio: float | None, reason: str, tmp_path: Path, model: Path) -> None:
    assert refused(written(tmp_path, content, "math.jsonl"), model, prune_ratio=ratio) == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"0": [3, 3]}, "0[1]: expert 3 of layer 0 stands twice"),
        ({"0": [[3]]}, "0[0]: expected an expert number, got [3]"),
        ({"0": ["3"]}, "0[0]: expected an expert number, got '3'"),
        ({"0": []}, "names no experts, so there is nothing to import"),
        ({"0": [7]}, "layer 0: index 7 is out of range: layer 0 has 4 experts"),
        ({"per_layer_drop": [3]}, "per_layer_drop: expected layers with lists of their experts, got [3]"),
        (
            {"per_layer_drop": {"-1": [3]}},
            "per_layer_drop.-1: expected a layer's number from 0 to 9999 as the key, got '-1'",
        ),
        ({"per_layer_drop": {"0": 3}}, "per_layer_drop.0: expected a list of experts, got 3"),
        ('{"0": [3], "0": [2]}', "0: the key '0' stands twice in one mapping"),
    ],
)
def test_a_drop_map_is_refused(content: object, reason: str, tmp_path: Path, model: Path) -> None:
    assert refused(written(tmp_path, content), model) == reason


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (
            "0 3 -1\n1 2 1\n",
            {},
            "line 2: activates expert 2 of layer 1: no patch makes a router choose an expert; --leave-out-activated "
            "takes those that are deactivated alone",
        ),
        ("0 3 -1\n0 3\n", {}, "line 2: expected `LAYER EXPERT -1` or `1`, got '0 3'"),
        ("0 3 -1\n0 3 -1\n", {}, "line 2: expert 3 of layer 0 stands twice"),
        ("-1 3 -1\n", {}, "line 1: layer -1 can't be: expected a number from 0 to 9999"),
        ("0 3 1\n", {"leave_out_activated": True}, "names no experts, so there is nothing to import"),
        (
            {"layer_configs": {"0": {"mode": "add", "deactivate_ids": [3]}}},
            {},
            "layer_configs.0: expected settings with the mode steermoe; no other can be said by a patch",
        ),
        ({"layer_configs": []}, {}, "layer_configs: expected layers with their settings"),
        ({"deactivate": [3]}, {}, "deactivate: expected layers with lists of their experts, got [3]"),
        (
            [{"layer": 0, "expert": 3, "risk_diff": -0.5}],
            {},
            "ranks experts, and doesn't say how many are deactivated: give --deactivate N (SteerMoE's num_neg_experts)",
        ),
        (
            [{"layer": 0, "expert": 3, "risk_diff": -0.5}],
            {"deactivate": 2},
            "has 1 experts that are chosen less often, fewer than 2",
        ),
        (
            [{"layer": 0, "expert": 3, "risk_diff": -0.5}],
            {"deactivate": 0},
            "--deactivate 0: expected 1 expert or more",
        ),
        (
            [{"layer": 0, "expert": 3, "risk_diff": -0.5}, {"layer": 0}],
            {"deactivate": 1},
            "[1]: expected an object with layer, expert and risk_diff",
        ),
        (
            [{"layer": 0, "expert": 3, "risk_diff": True}],
            {"deactivate": 1},
            "[0].risk_diff: expected a number, got True",
        ),
        (
            [{"layer": 0.0, "expert": 3, "risk_diff": -1}],
            {"deactivate": 1},
            "[0].layer: expected a layer number, got 0.0",
        ),
    ],
)
def test_a_list_of_steermoe_is_refused(
    content: object, options: dict[str, Any], reason: str, tmp_path: Path, model: Path
) -> None:
    assert refused(written(tmp_path, content), model, **options) == reason


def test_activated_experts_can_be_left_out(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, "0 3 -1\n1 2 1\n1 1 1\n")
    found = import_file(file, ModelFolder(model), options=ImportOptions(leave_out_activated=True))
    assert (experts(found.patch), found.notes) == ({0: [3]}, ("2 expert(s) that the file activates are left out",))


# What is refused whatever the form


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"",
            "is in no form that can be imported; those are an expert profile of vLLM's pull request on pruning (RIY)",
        ),
        (b"hello\n", "is in no form that can be imported; "),
        (b"[1, 2]", "is in no form that can be imported; "),
        (b'{"version": 1, "name": "a"}', "is in no form that can be imported; "),
        (b"{}", "is in no form that can be imported; "),
        (b'{"0": [3], ', "line 1, column 12: is not JSON: Expecting property name enclosed in double quotes"),
        (b'{"0": [NaN]}', "0[0]: NaN is not a finite number"),
        (b'{"0": [1e999]}', "0[0]: 1e999 is not a finite number"),
        (b'{"0": [' + b"9" * 100 + b"]}", "0[0]: a number of 100 characters; at most 64 are read"),
        (b'{"0": [99999999999999999999]}', "0[0]: a whole number beyond 64 bits"),
        (b'{"0": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is nested deeper than 32 levels"),
        (b'{"0": ' + b"[" * 40 + b"]" * 40 + b"}", "0[0][0]"),
        (b'{"' + b"9" * 5000 + b'": [3]}', "is in no form that can be imported; "),
        (b"\xff\xfe", "byte 0: is not UTF-8 text"),
        (
            (81).to_bytes(8, "little") + b"{" + bytes(80) + b"\xff",
            "is a safetensors file, which lists no experts; a patch names a direction in one by the op `project` (docs/",
        ),
        (pickle.dumps({"layer": [0]}), "is a Python pickle, which can run code when it is read; write what is in it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 7\n",
            "can't be imported: it is a Git LFS pointer; `git lfs pull` fetches the file that it stands for",
        ),
        (b" " * (MAX_FOREIGN_BYTES + 1), "is too long: at most 16777216 bytes (16 MiB) are read"),
        (b'{"0": [1]}\n' * (MOST_LINES + 1), "has 100001 lines; at most 100000 are read"),
    ],
)
def test_a_file_is_refused(content: bytes, reason: str, tmp_path: Path, model: Path) -> None:
    file = tmp_path / "list.json"
    file.write_bytes(content)
    assert refused(file, model).startswith(reason)


def test_files_that_cant_be_read_are_refused(tmp_path: Path, model: Path) -> None:
    assert refused(tmp_path / "list.json", model) == "no such file"
    assert refused(tmp_path, model) == "is a folder"
    assert refusal(lambda: import_patch(tmp_path / "x", model, form="riy"), UsageError).endswith("no such file")


def test_a_form_that_isnt_known_is_refused(tmp_path: Path, model: Path) -> None:
    said = "no form is called 'riy'; there are profile, ranking, drop-map, steermoe"
    assert refusal(lambda: import_patch(written(tmp_path, PROFILE), model, form="riy"), UsageError) == said


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("ranking", "line 1.version: expected a layer's number from 0 to 9999 as the key, got 'version'"),
        ("drop-map", "version: expected a layer's number from 0 to 9999 as the key, got 'version'"),
        ("steermoe", "[0]: expected an object with layer, expert and risk_diff"),
    ],
)
def test_a_profile_is_no_other_form(form: str, reason: str, tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, PROFILE)
    assert refused(file, model, form=form, prune_ratio=0.5, deactivate=1) == reason


@pytest.mark.parametrize("form", ["profile", "ranking", "drop-map", "steermoe"])
def test_text_is_no_form_that_it_is_called(form: str, tmp_path: Path, model: Path) -> None:
    said = refused(written(tmp_path, "hello"), model, form=form, prune_ratio=0.5, deactivate=1)
    assert "expected" in said


def test_a_dense_model_has_no_experts(tmp_path: Path, dense: Path) -> None:
    file = written(tmp_path, PROFILE)
    said = refusal(lambda: import_patch(file, dense), MismatchError)
    assert said == f"{file}: names routed experts, and {dense} has none"


def test_a_model_that_cant_be_masked_is_refused_in_the_planners_words(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in expert_tensors("own").items() if ".mlp.gate." not in name}
    bare = write_folder(tmp_path / "bare", tensors, config_of((6, 6), 8, num_experts=EXPERTS))
    file = written(tmp_path, PROFILE)
    said = "layer 0: touches no tensor: layer 0 has no router in a naming that is known"
    assert refusal(lambda: import_patch(file, bare), MismatchError) == f"{file}: {said}"


def test_a_patch_is_no_list(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, import_patch(written(tmp_path, PROFILE), model).to_json(), "patch.json")
    assert refusal(lambda: import_patch(file, model), PatchError).startswith(f"{file}: is in no form")
