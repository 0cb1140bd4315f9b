# SPDX-License-Identifier: Apache-2.0
"""Neuron edits as a LoRA adapter in PEFT's format, so that one server can answer with and without them.

A gain on neuron n changes column n of a down projection W [H, I] and nothing else. With k edited neurons the change
has rank k, and LoRA says it without any fitting: row j of A [r, I] is 1 at the j-th edited neuron, column j of B [H,
r] is what the edit adds to that neuron's column, and the scale is r / r = 1. All layers have the rank of the one with
the most edits; where there are fewer, rows of A and columns of B are zero.

How exact that is:

- In the file: the difference d of an edited and an original weight w is rounded once, to float32. (Both are numbers
  of the checkpoint's own format, the edited one made by `weights.arithmetic`. In a float64 checkpoint d is first
  rounded to float64.) So w + d, again rounded to float32, is off by at most one unit in the last place of d: w + d is
  within half such a unit of the edited weight e, and the float32 number nearest to w + d is no farther from it than e
  is, since e is one too. It is e itself for gains of -1, 0 and 0.5 to 2, where d needs no rounding; for 3, where the
  sum takes it back; and in 16-bit checkpoints for all gains from 2^-11 to 2^11 and their negatives. Only the sign of
  a zero weight may differ.
- In the engine: vLLM rounds A and B to the dtype that it serves (A's zeros and ones stay what they are), multiplies,
  and adds the product to the unedited layer's output. So answers equal the patched server's up to rounding, not bit
  for bit. On SmolLM2-135M in float32, with six neurons of four layers edited, greedy tokens were the same and
  log-probabilities differed by less than 3e-5, as did those of requests without the adapter in the same batch
  (``pytest -rP tests/engine/test_lora.py``). In bfloat16 answers can take another way.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from tqdm import tqdm

from vllm_surgery.atomic_files import atomic_folder, check_target
from vllm_surgery.errors import MismatchError, SurgeryError, UsageError
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.model.tensor_info import FLOAT_DTYPES
from vllm_surgery.offline.bake import CARD_FILE, RECORD_FILE
from vllm_surgery.patch.describe import count, model_card
from vllm_surgery.patch.document import dump_yaml
from vllm_surgery.patch.units import NEURON_KINDS, units_in_words
from vllm_surgery.planning.check import check_patches
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Kind
    from vllm_surgery.planning.planner import Plan, TensorEdit

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `--max-lora-rank`: `MaxLoRARanks` in its config/lora.py. Adapters may have any rank up to it."""

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

_PREFIX = "base_model.model."  # PEFT's, before every name of the model's own. vLLM takes it off.


@dataclass(frozen=True)
class Exported:
    """An adapter that was written.

    Attributes:
        folder: where it lies.
        id: of the patches.
        base: the model that it is for: its name on the Hugging Face Hub where that is known, else its folder.
        rank: of the adapter: the most neurons that are edited in one layer.
        max_lora_rank: the least that vLLM must be started with to load it.
        units: neurons that got a gain.
        modules: down projections that it changes.
    """

    folder: Path
    id: str
    base: str
    rank: int
    max_lora_rank: int
    units: int
    modules: int


def export_lora(patches: PatchSet, model: ModelFolder, out: Path, *, progress: bool = False) -> Exported:
    """Writes `patches` as a LoRA adapter for `model`, for vLLM's `--enable-lora` and for PEFT.

    The folder is written aside and renamed at the end. Memory: twice the adapter, and two copies of one tensor.

    Args:
        patches: neuron edits alone.
        model: what they are for; it isn't touched.
        out: where to; nothing may be there but an empty folder.
        progress: whether to show a bar on stderr.

    Raises:
        UsageError: `out` is taken, or lies in the model's own folder.
        MismatchError: the patches are not for this model, or say what no adapter can: experts, masks, more neurons in
            one layer than vLLM's largest rank.
        SurgeryError: the checkpoint can't be read, a difference is no finite float32 number, or `out` can't be written.
            Nothing is left behind.
    """
    check_target(out, model.path, "an adapter goes into a folder of its own")
    _check_no_experts(patches)
    plan = check_patches(patches, model)
    rank = _rank(plan, patches)
    base = model.facts.base or str(model.path)
    done = Exported(out, patches.id, base, rank, _max_lora_rank(rank), plan.units, len(plan.edits))
    tensors = _tensors(model, tqdm(plan.edits, unit="tensor", disable=None if progress else True, leave=False), rank)
    with atomic_folder(out) as folder:
        # The library's own writing of files makes them readable for their owner alone.
        (folder / WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
        _write_json(folder / CONFIG_FILE, _config(plan, done))
        _write_json(folder / RECORD_FILE, _record(done, patches))
        card = adapter_card(done, patches)
        (folder / CARD_FILE).write_text(card, encoding="utf-8", errors="backslashreplace")
    return done


def _check_no_experts(patches: PatchSet) -> None:
    for item in patches.assignments():
        if item.kind not in NEURON_KINDS:
            raise MismatchError(
                item.source,
                item.place,
                "a LoRA adapter can't hold edits of routed experts or inside them, only of the neurons of dense MLPs "
                "and of shared experts; bake the patch instead",
            )


def _rank(plan: Plan, patches: PatchSet) -> int:
    """The most neurons that are edited in one layer.

    Raises:
        UsageError: there is nothing to export.
        MismatchError: vLLM has no rank as large.
        SurgeryError: the plan changes other tensors than down projections, or not by whole columns.
    """
    if not plan.edits:
        raise UsageError("no patch was given, so there is nothing to export")
    counts = Counter({_place(edit): len(edit.indices) for edit in plan.edits})
    (((kind, layer), rank),) = counts.most_common(1)
    if rank > RANKS[-1]:
        first = next(item for item in patches.assignments() if (item.kind, item.layer) == (kind, layer))
        raise MismatchError(
            first.source,
            first.place,
            f"{rank} {units_in_words(kind)} of layer {layer} are edited, each takes a rank, and the largest LoRA rank "
            f"of vLLM is {RANKS[-1]}; bake the patch instead",
        )
    return rank


def _max_lora_rank(rank: int) -> int:
    return next(allowed for allowed in RANKS if allowed >= rank)


def _place(edit: TensorEdit) -> tuple[Kind, int]:
    role = classify_tensor(edit.tensor)
    if role is None or role.part.name != "down" or edit.axis != role.part.unit_axis or edit.dtype not in FLOAT_DTYPES:
        raise SurgeryError(f"{edit.tensor}: is edited, and the adapter can only hold columns of plain down projections")
    return role.kind, role.layer


def _tensors(model: ModelFolder, edits: Iterable[TensorEdit], rank: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for edit in edits:
        module = _PREFIX + _module(edit)
        delta = _delta(read_tensor(model.stored[edit.tensor]), edit)
        tensors[f"{module}.lora_A.weight"] = _selection(edit, rank)
        tensors[f"{module}.lora_B.weight"] = torch.nn.functional.pad(delta, (0, rank - delta.shape[1]))
    return tensors


def _module(edit: TensorEdit) -> str:
    return edit.tensor.removesuffix(".weight")


def _selection(edit: TensorEdit, rank: int) -> torch.Tensor:
    """A: a row for each edited neuron, 1 at its index."""
    selection = torch.zeros(rank, edit.shape[1])
    selection[torch.arange(len(edit.indices)), torch.tensor(edit.indices)] = 1
    return selection


def _delta(original: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """The change of each column that the edit names, [H, k] in float32, rounded once.

    Raises:
        SurgeryError: it isn't a finite number there, because a weight isn't or is too large.
    """
    wide = torch.float64 if original.dtype == torch.float64 else torch.float32
    indices = torch.tensor(edit.indices)
    before, after = (
        tensor.index_select(edit.axis, indices).to(wide) for tensor in (original, apply_edit(original, edit))
    )
    delta = (after - before).float()
    if not bool(delta.isfinite().all()):
        raise SurgeryError(
            f"{edit.tensor}: the edit changes weights by more than float32 can say; bake the patch instead"
        )
    return delta


def _config(plan: Plan, done: Exported) -> dict[str, Any]:
    """PEFT's description of the adapter.

    Modules are named in full: PEFT would look for ``down_proj`` alone in every layer, and in a vision tower too. vLLM
    goes by the names of the tensors.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": done.base,
        "r": done.rank,
        "lora_alpha": done.rank,
        "target_modules": [_module(edit) for edit in plan.edits],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _record(done: Exported, patches: PatchSet) -> dict[str, Any]:
    """Provenance of the adapter, for tools."""
    content = [member.patch.to_data() for member in patches.members]
    return {"lora": {"id": done.id, "rank": done.rank, "patches": content}}


_TEXT = """---
{header}---
# `{id}` as a LoRA adapter

Made by `vllm-surgery export-lora`: {what}.
A picks the edited neurons, B holds what the edit adds to their columns, and the scale is 1.

## Serving it

```sh
{command}
```

where FOLDER is this folder. Requests whose `model` is `{id}` get the edit, requests for the
model itself don't, and both may be in one batch.

`--max-loras` is one more than the adapters in use because of vLLM on CPU: there, version 0.32 gives requests without an
adapter the one in its last place (vLLM's pull request 48421). On GPUs one place for each adapter is enough. vLLM's GPU
kernels for LoRA know float16 and bfloat16 alone.

## How exact it is

The tensors are float32. There, an original weight plus the adapter's difference is the edited weight, off by at most
one unit in the last place of the difference: by nothing for gains of -1, 0, 3 and 0.5 to 2, nor in 16-bit checkpoints
for any gain from 2^-11 to 2^11. An engine rounds the difference to the dtype that it serves, and adds its product to
the layer's output. So answers equal those of the patched model up to rounding, not bit for bit. On SmolLM2-135M in
float32, vLLM's greedy tokens were the same and log-probabilities differed by less than 3e-5. In bfloat16, whose
rounding is 65,536 times coarser, answers can take another way. For exact answers serve the patch itself.
"""


def serve_command(done: Exported, folder: str) -> str:
    """The command that serves the model both with and without the adapter, which lies in `folder`."""
    adapter = shlex.quote(f"{done.id}={folder}")
    # One place more than there are adapters: see the card.
    places = f"--max-lora-rank {done.max_lora_rank} --max-loras 2"
    return f"vllm serve {shlex.quote(done.base)} --enable-lora {places} --lora-modules {adapter}"


def adapter_card(done: Exported, patches: PatchSet) -> str:
    """The adapter's model card in Markdown: what it is, how to serve it, how exact it is, and the patches."""
    card = _TEXT.format(
        header=dump_yaml({"library_name": "peft", "base_model": done.base, "tags": ["lora", "vllm-surgery"]}),
        id=done.id,
        what=f"{count(done.units, 'neuron')} in {count(done.modules, 'down projection')}, rank {done.rank}",
        command=serve_command(done, "FOLDER"),
    )
    return card + "".join("\n" + model_card(member.patch) for member in patches.members)
