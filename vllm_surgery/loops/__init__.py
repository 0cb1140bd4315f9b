# SPDX-License-Identifier: Apache-2.0
"""Loop detectors: they read an answer's tokens as they come, say whether it runs in circles, and never stop a request.

    watcher = Watcher(TokenTable.from_tokenizer(tokenizer))
    watcher.feed([17, 4, 99])  # as often as tokens come
    loops = watcher.finish()

Nothing here knows vLLM.
"""

from vllm_surgery.loops.loop import KINDS, Ending, Evidence, Kind, Loop, Outcome, ending_of
from vllm_surgery.loops.thresholds import MAX_PERIOD, Thresholds
from vllm_surgery.loops.tokens import TokenTable
from vllm_surgery.loops.watcher import Watcher, detect

__all__ = [
    "KINDS",
    "MAX_PERIOD",
    "Ending",
    "Evidence",
    "Kind",
    "Loop",
    "Outcome",
    "Thresholds",
    "TokenTable",
    "Watcher",
    "detect",
    "ending_of",
]
