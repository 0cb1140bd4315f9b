# SPDX-License-Identifier: Apache-2.0
"""Does a model's answer run in circles? Detectors that read tokens as they come and never stop a request.

    watcher = Watcher(TokenTable.from_tokenizer(tokenizer))
    watcher.feed([17, 4, 99])  # as often as tokens come
    loops = watcher.finish()

Nothing here knows vLLM.
"""

from vllm_surgery.loops.loop import KINDS, Kind, Loop, Outcome
from vllm_surgery.loops.thresholds import MAX_PERIOD, Thresholds
from vllm_surgery.loops.tokens import TokenTable
from vllm_surgery.loops.watcher import Watcher, detect

__all__ = ["KINDS", "MAX_PERIOD", "Kind", "Loop", "Outcome", "Thresholds", "TokenTable", "Watcher", "detect"]
