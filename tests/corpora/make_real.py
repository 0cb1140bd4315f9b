# SPDX-License-Identifier: Apache-2.0
"""Has a model answer list and chat prompts, greedily and sampled, and keeps the answers with their tokens.

    python -m tests.corpora.make_real --model DIR [--source smollm2|qwen2.5-coder|gemma3] [--batch 64]

One call answers one batch of what is still missing in FILE and says how many are left, so that the work may be spread
over several goes. Rerun on another machine the answers differ in places: the last bits of float32 sums depend on the
processor and on what else is in the batch. The labels belong to the answers that are kept in the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.corpora.files import read_records, write_records

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).parent / "data"
ANSWERS = DATA / "answers.jsonl.gz"
DTYPE = "float32"
CONTEXT = 1024


@dataclass(frozen=True)
class Source:
    """A model whose answers are kept, and how it is asked.

    Attributes:
        file: where its answers are.
        max_tokens: of an answer.
        seeds: of sampled answers, besides the greedy one.
        kinds: of prompts.
        completion: whether the prompt is text to go on with (a model without a chat template): BOS, the prompt, an
            empty line, and the first entry's number.
    """

    file: Path
    max_tokens: int
    seeds: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ("list", "chat")
    completion: bool = False


SOURCES = {
    "smollm2": Source(ANSWERS, max_tokens=768, seeds=(1, 2)),
    "qwen2.5-coder": Source(DATA / "answers_qwen.jsonl.gz", max_tokens=512),
    "gemma3": Source(DATA / "answers_gemma.jsonl.gz", max_tokens=512, kinds=("list",), completion=True),
}


@dataclass(frozen=True)
class Request:
    """One answer to be made.

    Attributes:
        id: kind of prompt, its number in its file, and how it is sampled: `list-007-greedy`, `chat-003-seed1`.
        seed: of the sampling at temperature 0.7, top-p 0.95; None for greedy.
    """

    id: str
    prompt: str
    seed: int | None

    @property
    def sampling(self) -> dict[str, Any]:
        if self.seed is None:
            return {"temperature": 0.0}
        return {"temperature": 0.7, "top_p": 0.95, "seed": self.seed}


def requests(source: Source = SOURCES["smollm2"]) -> Iterator[Request]:
    """All that are to be made, greedy ones first."""
    for seed in (None, *source.seeds):
        for kind in source.kinds:
            for number, prompt in enumerate((DATA / f"{kind}_prompts.txt").read_text("utf-8").splitlines()):
                yield Request(f"{kind}-{number:03d}-{'greedy' if seed is None else f'seed{seed}'}", prompt, seed)


def answer(model: Path, source: Source, wanted: list[Request]) -> list[dict[str, Any]]:
    """The answers of one batch, with all that it takes to make them again."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    llm = vllm.LLM(
        str(model),
        dtype=DTYPE,
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=len(wanted),
        kv_cache_memory_bytes=3 << 30,
    )
    sampling = [vllm.SamplingParams(max_tokens=source.max_tokens, **one.sampling) for one in wanted]
    ask = _complete if source.completion else _chat
    outputs = ask(llm, [one.prompt for one in wanted], sampling)
    end = llm.get_tokenizer().eos_token_id
    made_with = {"dtype": DTYPE, "vllm": vllm.__version__, "batch": len(wanted)}
    return [
        _record(one, source, output.outputs[0], end) | made_with for one, output in zip(wanted, outputs, strict=True)
    ]


def _chat(llm: Any, prompts: list[str], sampling: list[Any]) -> Any:
    return llm.chat([[{"role": "user", "content": one}] for one in prompts], sampling, use_tqdm=True)


def _complete(llm: Any, prompts: list[str], sampling: list[Any]) -> Any:
    tokenizer = llm.get_tokenizer()
    encoded = [tokenizer.encode(f"{one}\n\n1.", add_special_tokens=False) for one in prompts]
    return llm.generate([{"prompt_token_ids": [tokenizer.bos_token_id, *ids]} for ids in encoded], sampling)


def _record(request: Request, source: Source, completion: Any, end: int) -> dict[str, Any]:
    tokens = list(completion.token_ids)
    if tokens and tokens[-1] == end:
        tokens.pop()
    return {
        **asdict(request),
        "sampling": {**request.sampling, "max_tokens": source.max_tokens},
        "finish_reason": completion.finish_reason,
        "text": completion.text,
        "token_ids": tokens,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpora.make_real", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--source", choices=SOURCES, default="smollm2", help="which it is (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="answers a call (default: %(default)s)")
    arguments = parser.parse_args()
    source = SOURCES[arguments.source]
    kept = read_records(source.file) if source.file.exists() else []
    missing = [one for one in requests(source) if one.id not in {record["id"] for record in kept}]
    if missing:
        write_records(source.file, kept + answer(arguments.model, source, missing[: arguments.batch]))
    print(f"{max(0, len(missing) - arguments.batch)} answers are left to make")
    return 0


if __name__ == "__main__":
    sys.exit(main())
