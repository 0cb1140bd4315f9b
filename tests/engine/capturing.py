# SPDX-License-Identifier: Apache-2.0
"""What engines record of passages, and what their answers are before and after, in a process of their own.

There it takes a JSON list of engines on stdin and pickles a list of `Recorded` to the file named by its argument.
"""

from __future__ import annotations

import gc
import json
import pickle
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.program import run_program
from tests.engine.settled import in_turn
from vllm_surgery.localization.transcripts import Passage

if TYPE_CHECKING:
    from vllm_surgery.localization.ranking.activity import Activity

PROGRAM = "from tests.engine.capturing import main; main()"
"""Not this module as a program: what it pickles goes by the module's own name."""

PASSAGES = [
    Passage([5, 17, 33, 90, 200, 41, 7, 12, 41, 7, 12, 41], start=4, repeats=8),
    Passage([12, 300, 65, 8, 19, 111], start=3),
    Passage([7, 9, 80, 81, 44, 80, 81, 44, 80, 81], start=2, repeats=5),
]


@dataclass
class Engine:
    """An engine that is looked into.

    Attributes:
        model: the folder.
        options: for `vllm.LLM`.
        patches: that it serves, as plain data.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    patches: list[Any] = field(default_factory=list)


@dataclass
class Recorded:
    """What came of it.

    Attributes:
        error: with which the engine refused.
        before: answers before it was looked into.
        after: answers afterwards.
        left: on each rank, how many hooks were left in the model.
    """

    activity: Activity | None
    error: str | None
    before: list[Any]
    after: list[Any]
    left: list[int]


def record(*engines: Engine) -> list[Recorded]:
    """What each engine recorded of `PASSAGES`."""
    pickled, _ = run_program("-c", PROGRAM, given=[asdict(engine) for engine in engines])
    recorded: list[Recorded] = pickle.loads(pickled)
    return recorded


def _record(engine: Engine) -> Recorded:
    from vllm import LLM

    from vllm_surgery import SurgeryError
    from vllm_surgery.localization.ranking.activity import measure_activity

    llm = LLM(
        engine.model,
        kv_cache_memory_bytes=1 << 27,
        max_model_len=128,
        skip_tokenizer_init=True,
        additional_config={"vllm_surgery": {"patches": engine.patches}},
        **{"dtype": "float32", "enforce_eager": True, **engine.options},
    )
    before, activity, error = _answers(llm), None, None
    try:
        activity = measure_activity(llm, PASSAGES)
    except SurgeryError as refusal:
        error = str(refusal)
    left = llm.collective_rpc(_hooks_left)
    recorded = Recorded(activity, error, before, _answers(llm), left)
    del llm
    gc.collect()
    return recorded


def _answers(llm: Any) -> list[Any]:
    """Tokens and log-probabilities. Each passage is asked alone, past what caches hold of it."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True, detokenize=False)
    answers = []
    for passage in PASSAGES:
        llm.reset_prefix_cache()
        [output] = llm.generate([{"prompt_token_ids": passage.tokens}], sampling, use_tqdm=False)
        steps = output.outputs[0].logprobs
        answers.append([sorted((token, chance.logprob) for token, chance in step.items()) for step in steps])
    return answers


def _hooks_left(worker: Any) -> int:
    return sum(
        len(module._forward_pre_hooks) + sum(name.startswith("forward_") for name in vars(module))
        for module in worker.get_model().modules()
    )


def main() -> None:
    recorded = list(in_turn(_record, [Engine(**engine) for engine in json.load(sys.stdin)]))
    Path(sys.argv[1]).write_bytes(pickle.dumps(recorded))
