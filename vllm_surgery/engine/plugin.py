# SPDX-License-Identifier: Apache-2.0
"""Entry point for vLLM, which calls `register` in every process, in some more than once."""

from __future__ import annotations

import logging

from vllm_surgery.engine.settings import DISABLE_VARIABLE, disabled

NAME = "vllm_surgery"
"""The name of the entry point, the same in each of vLLM's plugin groups."""

GROUP = "vllm.general_plugins"

ENDPOINT_GROUP = "vllm.endpoint_plugins"
"""vLLM loads a plugin of this group only where `VLLM_PLUGINS` names it."""

logger = logging.getLogger("vllm.vllm_surgery")


def register() -> None:
    """Entry point of the group ``vllm.general_plugins``. Re-entrant; heavy imports wait until it is called."""
    if disabled():
        logger.debug("vllm-surgery: off, because %s is set", DISABLE_VARIABLE)
        return
    from vllm_surgery.engine.install import install

    install()
