# SPDX-License-Identifier: Apache-2.0
"""Answers of offline vLLM engines, each arm with its own model, patches and options, in a process of their own.

As a program it takes a JSON list of arms on stdin and writes a line of JSON for each to the file named by its argument.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import traceback
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.engine.circumstances import circumstances
from tests.engine.digest import digests
from tests.engine.hooked import hooked
from tests.engine.program import ended
from tests.engine.settled import in_turn

PROMPTS = [[5, 17, 33, 90], [200, 41, 7], [12, 300, 65, 8, 19, 111]]
"""Token ids, for models without a tokenizer."""

_FAILED = "failed"


@dataclass
class Arm:
    """One engine.

    Attributes:
        model: the folder.
        patches: file names or plain data; None for no setting at all.
        options: for `vllm.LLM`.
        prompts: text for chat, or token ids. Each is answered alone: a batch's size shows in the last bits.
        swaps: patch sets, as plain data, that are swapped in one after another before the answers.
        later: patch sets that are swapped in after the answers, each with answers of its own.
        reload: whether to load the weights a second time before the answers, after all swaps.
        unpacked: whether linear layers keep their weights as the checkpoint has them, which is what GPUs do.
        digest: whether to hash every weight that can be read, in an engine of this process.
        ask_before: whether to answer all prompts once before the swaps too, so that caches hold them.
        forget_kernels: whether swaps get around what keeps vLLM from packing experts again.
        hide: tensors with this in their name don't reach vLLM in a swap.
        ready_bytes: how much of a swap may be held ready, where it isn't the default.
        own_experts: whether vLLM's CPU kernel for experts, which knows nothing of expert parallelism, is taught it.
        embeds: whether vLLM's Gemma 3n with towers, which fails where it only reads, makes its own embeddings.
        experts_in_torch: whether vLLM's kernel for experts beside LoRA adapters, which is for GPUs, is done in torch.
        settings: of the package, beside `patches`.
        adapters: for each prompt the folder of a LoRA adapter, or None. Where given, all are answered in one batch.
        fills: patches, as plain data, that are put into slots after all swaps.
        choices: for each prompt the name of its patch, or None for the default. Where given, all are answered in one
            batch.
        in_turn: whether they are answered one after another all the same.
    """

    model: str
    patches: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prompts: list[Any] = field(default_factory=lambda: PROMPTS)
    max_tokens: int = 12
    swaps: list[list[Any]] = field(default_factory=list)
    later: list[list[Any]] = field(default_factory=list)
    reload: bool = False
    unpacked: bool = False
    ready_bytes: int | None = None
    digest: bool = False
    ask_before: bool = False
    forget_kernels: bool = True
    hide: str | None = None
    own_experts: bool = False
    embeds: bool = False
    experts_in_torch: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    adapters: list[str | None] | None = None
    fills: list[Any] = field(default_factory=list)
    choices: list[str | None] | None = None
    in_turn: bool = False


class Failure(dict[str, Any]):
    """The answers of an arm whose engine failed: whoever looks at them fails, with the engine's words."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason

    def __missing__(self, key: str) -> Any:
        raise AssertionError(f"there is no {key}, since the arm failed:\n{self._reason}")


def run_arms(*arms: Arm, **environment: str) -> list[dict[str, Any]]:
    """The answers of each arm: tokens, log-probabilities, weight version, and what each rank says that it applied.

    One that fails takes no other with it: those that are left get a process that hasn't seen it.
    """
    answers: list[dict[str, Any]] = []
    while len(answers) < len(arms):
        given = [asdict(arm) for arm in arms[len(answers) :]]
        done = ended("-m", "tests.engine.offline", given=given, **environment)
        answers += [_read(json.loads(line), done.log) for line in done.written.splitlines()]
        if done.code != 0:
            assert len(answers) < len(arms), done.failure
            answers.append(Failure(done.failure))
    return answers


def _read(answer: dict[str, Any], log: str) -> dict[str, Any]:
    return Failure(answer[_FAILED]) if _FAILED in answer else {**answer, "log": log}


def _answer(arm: Arm) -> dict[str, Any]:
    with circumstances(arm):
        return _answer_there(arm)


def _answer_there(arm: Arm) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from vllm_surgery.engine.settings import disabled

    text = bool(arm.prompts) and isinstance(arm.prompts[0], str)
    llm = LLM(
        arm.model,
        kv_cache_memory_bytes=1 << 27,
        max_model_len=1024 if text else 128,
        skip_tokenizer_init=not text,
        additional_config={} if arm.patches is None else {"vllm_surgery": {"patches": arm.patches, **arm.settings}},
        **{"dtype": "auto", "enforce_eager": True, "enable_prefix_caching": False, **arm.options},
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=arm.max_tokens, logprobs=2, ignore_eos=not text, detokenize=text
    )
    ask = partial(_ask, llm, _each(sampling, arm.choices), text=text)
    before = _numbers(_all(arm, ask)) if arm.ask_before else None
    swaps = [_swap(llm, patches) for patches in arm.swaps]
    if arm.fills:
        _fill(llm, arm.fills)
    if arm.reload:
        llm.collective_rpc("reload_weights")
    outputs = _all(arm, ask)
    answers = [output.outputs[0] for output in outputs]
    version = llm.llm_engine.get_weight_version()
    result = {
        **_numbers(outputs),
        "text": [answer.text for answer in answers],
        "weight_version": version,
        "weight_versions": [
            [span.version for span in getattr(answer, "weight_versions", None) or []] for answer in answers
        ],
        "config_hash": llm.llm_engine.vllm_config.compute_hash(),
        "reports": None if disabled() else llm.collective_rpc("vllm_surgery_report"),
        "slots": None if disabled() else llm.collective_rpc("vllm_surgery_slots"),
        "hooked": hooked(llm),
        "swaps": swaps,
        **(digests(llm) if arm.digest else {"digest": None}),
        "before": before,
        "graphs": _graphs(),
        "libraries": _libraries(),
        "watched": _watched(),
        "counters": _counters(llm) if arm.options.get("disable_log_stats") is False else None,
    }
    result["later"] = [_later(llm, arm, ask, patches) for patches in arm.later]
    del llm, ask
    gc.collect()
    return result


def _later(llm: Any, arm: Arm, ask: Any, patches: list[Any]) -> dict[str, Any]:
    """What a swap reported, and what is answered after it."""
    swap = _swap(llm, patches)
    return {
        "swap": swap,
        **_numbers(_all(arm, ask)),
        **(digests(llm) if arm.digest else {"digest": None}),
        "graphs": _graphs(),
    }


def _all(arm: Arm, ask: Any) -> list[Any]:
    """The outputs for all prompts of an arm."""
    if arm.adapters is None and arm.choices is None:
        return [output for prompt in arm.prompts for output in ask([prompt])]
    if arm.in_turn:
        llm, each = ask.args
        return [output for prompt, own in zip(arm.prompts, each, strict=True) for output in _ask(llm, own, [prompt])]
    if arm.adapters is None:
        return list(ask(arm.prompts))
    requests = [_lora_request(arm.adapters, folder) for folder in arm.adapters]
    return list(ask(arm.prompts, lora_request=requests))


def _each(sampling: Any, choices: list[str | None] | None) -> Any:
    """The parameters of each prompt, where prompts choose patches."""
    if choices is None:
        return sampling
    each = [sampling.clone() for _ in choices]
    for params, choice in zip(each, choices, strict=True):
        params.extra_args = None if choice is None else {"patch": choice}
    return each


def _fill(llm: Any, patches: list[Any]) -> None:
    from vllm_surgery import Patch
    from vllm_surgery.api import patch_set
    from vllm_surgery.engine.requests.offline import change_slots

    change_slots(llm, [patch_set(Patch.from_data(patch, patch["name"])) for patch in patches])


def _numbers(outputs: list[Any]) -> dict[str, Any]:
    """Tokens and log-probabilities, which tell one set of weights from another; and how many of each prompt's tokens
    were found in a cache."""
    answers = [output.outputs[0] for output in outputs]
    return {
        "cached": [output.num_cached_tokens for output in outputs],
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [
            [sorted((token, chance.logprob) for token, chance in step.items()) for step in answer.logprobs]
            for answer in answers
        ],
    }


def _swap(llm: Any, patches: list[Any]) -> dict[str, Any]:
    """What a swap reported, or the error that refused it."""
    from vllm_surgery import Patch, SurgeryError, swap

    try:
        return swap(llm, [Patch.from_data(patch, patch["name"]) for patch in patches]).model_dump()
    except SurgeryError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _graphs() -> int:
    """How many graphs torch has traced in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _counters(llm: Any) -> dict[str, int]:
    """vLLM's own counters by name."""
    return {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}


def _watched() -> float:
    """How many tokens the detectors of this process have read."""
    from prometheus_client import REGISTRY

    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name == "vllm_surgery_output_tokens_total")


def _libraries() -> list[str]:
    """Which of vLLM's libraries for CPUs this process has."""
    return sorted({*re.findall(r"/vllm/(_C\w*\.\S+)", Path("/proc/self/maps").read_text())})


def _ask(llm: Any, sampling: Any, prompts: list[Any], *, text: bool = False, **options: Any) -> list[Any]:
    """The outputs for prompts that are handed over at once."""
    if text:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return list(llm.chat(chats, sampling, use_tqdm=False, **options))
    tokens = [{"prompt_token_ids": prompt} for prompt in prompts]
    return list(llm.generate(tokens, sampling, use_tqdm=False, **options))


def _lora_request(adapters: list[str | None], folder: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    return None if folder is None else LoRARequest(folder, adapters.index(folder) + 1, folder)


def _attempt(arm: Arm) -> dict[str, Any]:
    try:
        return _answer(arm)
    except Exception:
        return {_FAILED: traceback.format_exc()}


def main() -> None:
    with Path(sys.argv[1]).open("w") as file:
        for answer in in_turn(_attempt, [Arm(**arm) for arm in json.load(sys.stdin)]):
            print(json.dumps(answer), file=file, flush=True)
            if _FAILED in answer:
                return


if __name__ == "__main__":
    main()
