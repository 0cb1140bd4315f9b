# SPDX-License-Identifier: Apache-2.0
"""The loops of one answer as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import one_line
from vllm_surgery.loops.answer_loops import merged_spans
from vllm_surgery.loops.loop import KINDS, MOTIF_TOKENS, Loop
from vllm_surgery.loops.watcher import detect

if TYPE_CHECKING:
    from vllm_surgery.loops.answers import Answer

_WORDS_LIMIT = 80
"""Characters shown of what repeats: a line of a terminal."""


def report_of(answer: Answer) -> dict[str, Any]:
    """Looks through an answer.

    Returns:
        ``line``; ``part`` and ``ending`` if they are known; ``tokens``; ``loops``, each with ``kind``, ``onset``,
        ``period``, ``copies``, ``end``, ``outcome``, with ``evidence`` if how the answer ended was needed, and for text
        also ``character``, where it begins, and ``words``, how it begins; ``looped_tokens``, how many are in loops of
        each kind that there is.
    """
    loops = detect(answer.tokens, answer.table, ending=answer.ending)
    looped = {kind: sum(end - first for first, end in merged_spans(loops, kind)) for kind in KINDS}
    return {
        "line": answer.line,
        **({"part": answer.part} if answer.part is not None else {}),
        **({"ending": answer.ending} if answer.ending != "unknown" else {}),
        "tokens": len(answer.tokens),
        "loops": [_of_loop(loop, answer) for loop in loops],
        "looped_tokens": {kind: tokens for kind, tokens in looped.items() if tokens},
    }


def _of_loop(loop: Loop, answer: Answer) -> dict[str, Any]:
    said = {
        "kind": loop.kind,
        "onset": loop.onset,
        "period": loop.period,
        "copies": round(loop.copies, 1),
        "end": loop.end,
        "outcome": loop.outcome,
        **({"evidence": loop.evidence} if loop.evidence != "stream" else {}),
    }
    if answer.text is None:
        return said
    start = answer.offsets[loop.onset]
    last = loop.onset + min(loop.period, MOTIF_TOKENS)
    stop = answer.offsets[last] if last < len(answer.offsets) else len(answer.text)
    return said | {"character": start, "words": one_line(answer.text[start:stop], _WORDS_LIMIT)}
