# SPDX-License-Identifier: Apache-2.0
"""Drift of a patch's next-token distributions on healthy text, over the full vocabulary.

With transformers in float32 in this process, and no server, so that whole distributions can be compared. The edits are
the planner's and the arithmetic is the package's own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.drift import Drift
from vllm_surgery.evaluation.network import load_network, run_by_transformers
from vllm_surgery.loops.tokenizers import load_tokenizer
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.probes import Form, Probe
    from vllm_surgery.planning.planner import Plan, TensorEdit


def exact_drifts(
    model: Path, patches: Mapping[str, Any], probes: Sequence[Probe], form: Form = "chat", *, quiet: bool = False
) -> dict[str, list[Drift]]:
    """The drift of every text under each patch.

    Args:
        model: the model's folder; a model without quantised weights that fits this machine's memory in float32.
        patches: as plain data, by any names.
        probes: with a reply each. The token that ends a reply counts as part of it.
        form: how prompts are put to the model.
        quiet: no progress.

    Raises:
        UsageError: torch or transformers isn't there, or it can't load or run the model or its tokenizer.
        SurgeryError: a patch isn't for this model.
    """
    folder = ModelFolder(model)
    plans = {name: check_patches(_alone(Patch.from_data(patch, name)), folder) for name, patch in patches.items()}
    tokenizer = _load_tokenizer(model, form)
    network = load_network(model, "a comparison of whole distributions")
    import torch
    from tqdm import tqdm

    drifts: dict[str, list[Drift]] = {name: [] for name in patches}
    with torch.inference_mode():
        for probe in tqdm(probes, desc="exact probabilities", unit="text", disable=quiet):
            tokens, start = _encode(tokenizer, probe, form)
            with run_by_transformers(model):
                base = _log_probabilities(network, tokens, start)
            for name, edits in plans.items():
                with _patched(network, edits):
                    after = _log_probabilities(network, tokens, start)
                drifts[name].append(_drift(probe.id, base, after, tokens[0, start:]))
    return drifts


def _alone(patch: Patch) -> PatchSet:
    return PatchSet((SourcedPatch(patch.name, patch),))


def _load_tokenizer(model: Path, form: Form) -> Any:
    tokenizer = load_tokenizer(str(model), local=True)
    if form == "chat" and getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(f"exact probabilities: {model} has no chat template: ask with --form completion")
    return tokenizer


def _encode(tokenizer: Any, probe: Probe, form: Form) -> tuple[Any, int]:
    """The exchange's tokens up to the one that ends the reply, and where the reply starts."""
    asked = probe.asked(form)
    if form == "chat":
        turns = [{"role": "user", "content": asked}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        asked = (tokenizer.bos_token or "") + asked
    before = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
    text = asked + (probe.reply or "") + (tokenizer.eos_token or "")
    whole = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return whole, before.shape[1]


def _log_probabilities(network: Any, tokens: Any, start: int) -> Any:
    return network(tokens).logits[0, start - 1 : -1].double().log_softmax(-1)


def _drift(text: str, base: Any, patched: Any, targets: Any) -> Drift:
    places = range(len(targets))
    return Drift(
        text=text,
        tokens=len(targets),
        kl=float((base.exp() * (base - patched)).sum()),
        agreed=int((base.argmax(-1) == patched.argmax(-1)).sum()),
        base_loss=-float(base[places, targets].sum()),
        loss=-float(patched[places, targets].sum()),
        rest=0.0,
    )


@contextmanager
def _patched(network: Any, edits: Plan) -> Iterator[None]:
    for layer in edits.engine_masks():
        raise UsageError(
            f"exact probabilities: transformers can't mask experts of layer {layer}, whose router has no bias"
        )
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    places = [(edit, *_place(tensors, edit)) for edit in edits.edits]
    originals = {name: tensors[name].data for _, name, _ in places}
    try:
        for name, original in originals.items():
            tensors[name].data = original.clone()
        for edit, name, expert in places:
            target = tensors[name].data if expert is None else tensors[name].data[expert]
            target.copy_(_edited(target, edit))
        yield
    finally:
        for name, original in originals.items():
            tensors[name].data = original


def _place(tensors: Mapping[str, Any], edit: TensorEdit) -> tuple[str, int | None]:
    """The tensor that an edit is for, and which expert's part where transformers has all experts of a layer in one."""
    if edit.tensor in tensors:
        return edit.tensor, None
    role = classify_tensor(edit.tensor)
    if role is not None and role.expert is not None:
        for name, tensor in tensors.items():
            other = classify_tensor(name)
            if other is None or other.expert is not None or other.block != "experts":
                continue
            alike = (other.layer, other.part.name) == (role.layer, role.part.name)
            if alike and tuple(tensor.shape[1:]) == edit.shape:
                return name, role.expert
    raise UsageError(f"exact probabilities: transformers calls {edit.tensor} by another name")


def _edited(tensor: Any, edit: TensorEdit) -> Any:
    """The edit as the engine carries it out: rounded to the checkpoint's own numbers, which float32 holds exactly."""
    from vllm_surgery.weights.arithmetic import apply_edit
    from vllm_surgery.weights.tensors import torch_dtype

    return apply_edit(tensor.to(torch_dtype(edit.dtype)), edit).to(tensor.dtype)
