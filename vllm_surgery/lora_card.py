# SPDX-License-Identifier: Apache-2.0
"""What is said of a LoRA adapter that was made from patches: how to serve it, and its model card."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from vllm_surgery.describe import count, model_card
from vllm_surgery.document import dump_yaml

if TYPE_CHECKING:
    from vllm_surgery.export_lora import Exported
    from vllm_surgery.stack import PatchSet

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
