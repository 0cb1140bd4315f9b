# SPDX-License-Identifier: Apache-2.0
"""Keeping patches out of the key of vLLM's compile cache.

Everything in `additional_config` is part of that key, but a patch changes numbers, not the graph: without this, every
edit of a patch file would cost a whole compilation.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.settings import KEY

if TYPE_CHECKING:
    from collections.abc import Callable


def compute_hash_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Around `VllmConfig.compute_hash`."""

    def compute_hash(self: Any) -> Any:
        settings = self.additional_config
        if not isinstance(settings, dict) or KEY not in settings:
            return original(self)
        without = copy.copy(self)
        without.additional_config = {key: value for key, value in settings.items() if key != KEY}
        return original(without)

    return compute_hash
