# SPDX-License-Identifier: Apache-2.0
"""Expert profiles of vLLM's pull request on run-time pruning: https://github.com/vllm-project/vllm/pull/37824.

Version 1 masks the router's logits before it chooses (`mask`). Version 2 says how: `pre_topk_mask` is the same,
`post_topk_drop` lets the router choose and takes the experts' outputs away, without renormalising (`zero`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError
from vllm_surgery.imports.experts import Collected, ExpertLists, words_of

if TYPE_CHECKING:
    from vllm_surgery.imports.experts import ExpertOp
    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.options import Counts, ImportOptions, Written
    from vllm_surgery.patch.document import Plain

_EXPERTS, _MODE = "pruned_experts", "routing_mode"
_OPS: dict[str, ExpertOp] = {"pre_topk_mask": "mask", "post_topk_drop": "zero"}
_PAIR = 2


def recognises(file: ForeignFile) -> bool:
    """True for an object with pruned experts."""
    return isinstance(file.value, dict) and _EXPERTS in file.value


def read(file: ForeignFile, _options: ImportOptions, _counts: Counts) -> ExpertLists:
    """The experts that a profile prunes.

    Raises:
        PatchError: it isn't one, or of a version that isn't known.
    """
    profile = file.value
    if not isinstance(profile, dict):
        raise PatchError(file.source, "", "is no expert profile: expected one JSON object")
    op, collected = _op(profile, file.source), Collected(file.source)
    pairs = profile.get(_EXPERTS)
    if not isinstance(pairs, list):
        raise PatchError(file.source, _EXPERTS, f"expected a list of [layer, expert] pairs, got {pairs!r}")
    for number, pair in enumerate(pairs):
        place = f"{_EXPERTS}[{number}]"
        if not (isinstance(pair, list) and len(pair) == _PAIR):
            raise PatchError(file.source, place, f"expected a [layer, expert] pair, got {pair!r}")
        collected.add(pair[0], pair[1], place)
    return ExpertLists(op, collected.layers(), words_of(profile, {"version"}))


def _op(profile: dict[str, Plain], source: str) -> ExpertOp:
    version, mode = profile.get("version"), profile.get(_MODE)
    if type(version) is not int or version not in {1, 2}:
        raise PatchError(source, "version", f"expected 1 or 2, got {version!r}")
    if version == 1:
        if mode is not None:
            raise PatchError(source, _MODE, "profiles of version 1 have none; they mask before the router chooses")
        return "mask"
    if not isinstance(mode, str) or mode not in _OPS:
        raise PatchError(source, _MODE, f"expected {' or '.join(_OPS)}, got {mode!r}")
    return _OPS[mode]


def write(written: Written) -> str:
    """A profile: of version 1 where it can say it, else of version 2."""
    mode = next(name for name, op in _OPS.items() if op == written.op)
    told = {
        "version": 1 if written.op == "mask" else 2,
        **({_MODE: mode} if written.op == "zero" else {}),
        **({"model": written.base} if written.base else {}),
        **({"model_revision": written.revision} if written.revision else {}),
        _EXPERTS: [[layer, expert] for layer, experts in written.layers.items() for expert in experts],
    }
    return json.dumps(told, indent=None) + "\n"
