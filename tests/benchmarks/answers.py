# SPDX-License-Identifier: Apache-2.0
"""Greedy answers of one arm: vLLM's offline engine with the plugin's own setting, in a process of its own.

As a program it takes a `Job` as JSON on stdin and writes its `Answers` as JSON to the file named by its argument.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.fresh_process import run_fresh

CONTEXT = 1024
KV_CACHE_BYTES = 1 << 30
"""Room for all prompts at once with a model of 135 million parameters in float32 (46 KB a token)."""


@dataclass(frozen=True)
class Job:
    """What one arm has to do.

    Attributes:
        model: the folder, absolute.
        patches: as plain data.
        batches: groups of prompts; a group is answered together.
        max_tokens: of one answer.
    """

    model: str
    patches: list[dict[str, Any]]
    batches: list[list[str]]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        tokens: without the one that ended it.
        complete: whether the model ended it itself.
    """

    prompt: str
    text: str
    tokens: list[int]
    complete: bool


@dataclass(frozen=True)
class Answers:
    """What one arm gave.

    Attributes:
        id: of the patch set that the engine says it serves; None without a patch.
        batches: the answers, as the prompts stood.
        engine: version of vLLM and number format of the weights.
    """

    id: str | None
    batches: list[list[Answer]]
    engine: str


def answer(job: Job) -> Answers:
    """Carries `job` out in a fresh process. Its progress goes to stderr.

    Raises:
        subprocess.CalledProcessError: it failed; the reason is on stderr.
    """
    data = run_fresh("tests.benchmarks.answers", asdict(job))
    batches = [[Answer(**item) for item in batch] for batch in data["batches"]]
    return Answers(data["id"], batches, data["engine"])


def _answer_here(job: Job) -> Answers:
    import vllm

    llm = vllm.LLM(
        job.model,
        dtype="float32",  # Said, since vLLM takes bfloat16 for a float32 checkpoint.
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        max_model_len=CONTEXT,
        additional_config={"vllm_surgery": {"patches": job.patches}} if job.patches else {},
    )
    sampling = vllm.SamplingParams(temperature=0, max_tokens=job.max_tokens)
    (report,) = llm.collective_rpc("vllm_surgery_report")
    dtype = str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    batches = [_answer_batch(llm, batch, sampling) for batch in job.batches]
    return Answers(report["id"], batches, f"vLLM {vllm.__version__}, {dtype}")


def _answer_batch(llm: Any, prompts: list[str], sampling: Any) -> list[Answer]:
    outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
    end = llm.get_tokenizer().eos_token_id
    answers = []
    for prompt, output in zip(prompts, outputs, strict=True):
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        complete = completion.finish_reason == "stop"
        if complete and tokens[-1:] == [end]:
            tokens.pop()
        answers.append(Answer(prompt, completion.text, tokens, complete))
    return answers


def main() -> None:
    answers = _answer_here(Job(**json.load(sys.stdin)))
    Path(sys.argv[1]).write_text(json.dumps(asdict(answers)))


if __name__ == "__main__":
    main()
