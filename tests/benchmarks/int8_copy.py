# SPDX-License-Identifier: Apache-2.0
"""A copy of a model in INT8, and a patch for it: does an edit that was found on the one hold on the other?

    python -m tests.benchmarks.int8_copy --model DIR --patch FILE --out DIR

Writes `DIR/model`, whose projections are eight-bit integers with a scale for each output (activations are rounded as they
come, a scale for each token), and `DIR/patch.yaml`, without the seal, which is of the original's weights.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.quantised import KINDS, quantise_folder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from tests.quantised import Tensors


def nearest_codes(weight: torch.Tensor) -> Tensors:
    """The nearest codes of a weight ``[out, in]``, int8, and their scales ``[out, 1]``, float32."""
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return {"weight": (weight.float() / scales).round().to(torch.int8), "weight_scale": scales}


def copy_model(model: Path, folder: Path) -> None:
    """Writes the copy, in a folder that isn't there yet."""
    shutil.copytree(model, folder)
    # The tests' own codes have one that stands for another weight than the nearest.
    quantise_folder(folder, replace(KINDS["int8 per channel"], quantise=nearest_codes))


def copy_patch(patch: Path, file: Path) -> None:
    """Writes the patch without what is known of the original alone."""
    data = load_patch(str(patch)).to_data()
    kept = {key: value for key, value in data.items() if key not in {"seal", "provenance"}}
    file.write_text(Patch.from_data(kept).to_yaml())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.int8_copy")
    for name in ("--model", "--patch", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    copy_model(arguments.model, arguments.out / "model")
    copy_patch(arguments.patch, arguments.out / "patch.yaml")


if __name__ == "__main__":
    main()
