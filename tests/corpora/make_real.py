# SPDX-License-Identifier: Apache-2.0
"""Has the demo model answer list and chat prompts, greedily and sampled, and keeps the answers with their tokens.

    python -m tests.corpora.make_real --model DIR [--out FILE] [--batch 64]

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
MAX_TOKENS = 768
SEEDS = (1, 2)
DTYPE = "float32"


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


def requests() -> Iterator[Request]:
    """All that are to be made, greedy ones first."""
    for seed in (None, *SEEDS):
        for kind in ("list", "chat"):
            for number, prompt in enumerate((DATA / f"{kind}_prompts.txt").read_text("utf-8").splitlines()):
                yield Request(f"{kind}-{number:03d}-{'greedy' if seed is None else f'seed{seed}'}", prompt, seed)


def answer(model: Path, wanted: list[Request]) -> list[dict[str, Any]]:
    """The answers of one batch, with all that it takes to make them again."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    llm = vllm.LLM(
        str(model),
        dtype=DTYPE,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=len(wanted),
        kv_cache_memory_bytes=3 << 30,
    )
    outputs = llm.chat(
        [[{"role": "user", "content": one.prompt}] for one in wanted],
        [vllm.SamplingParams(max_tokens=MAX_TOKENS, **one.sampling) for one in wanted],
        use_tqdm=True,
    )
    end = llm.get_tokenizer().eos_token_id
    made_with = {"dtype": DTYPE, "vllm": vllm.__version__, "batch": len(wanted)}
    return [_record(one, output.outputs[0], end) | made_with for one, output in zip(wanted, outputs, strict=True)]


def _record(request: Request, completion: Any, end: int) -> dict[str, Any]:
    tokens = list(completion.token_ids)
    if tokens and tokens[-1] == end:
        tokens.pop()
    return {
        **asdict(request),
        "sampling": {**request.sampling, "max_tokens": MAX_TOKENS},
        "finish_reason": completion.finish_reason,
        "text": completion.text,
        "token_ids": tokens,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpora.make_real", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--out", type=Path, default=ANSWERS, help="what is extended (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="answers a call (default: %(default)s)")
    arguments = parser.parse_args()
    kept = read_records(arguments.out) if arguments.out.exists() else []
    missing = [one for one in requests() if one.id not in {record["id"] for record in kept}]
    if missing:
        write_records(arguments.out, kept + answer(arguments.model, missing[: arguments.batch]))
    print(f"{max(0, len(missing) - arguments.batch)} answers are left to make")
    return 0


if __name__ == "__main__":
    sys.exit(main())
