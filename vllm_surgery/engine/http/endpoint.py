# SPDX-License-Identifier: Apache-2.0
"""vLLM's entry for plugins that bring HTTP routes. Loaded in the API server's processes alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import ModelSummary
from vllm_surgery.engine.file_watcher import FileWatcher
from vllm_surgery.engine.http.access import CHANGES_OFF, Access, check_root_path
from vllm_surgery.engine.http.routes import ACCESS, SERVICE, answer_error, router
from vllm_surgery.engine.http.service import SurgeryService
from vllm_surgery.engine.metrics import process_metrics
from vllm_surgery.engine.offers import loading_lost
from vllm_surgery.engine.plugin import NAME
from vllm_surgery.engine.requests.admission import board_of
from vllm_surgery.engine.requests.engines import ServedLedgers
from vllm_surgery.engine.requests.header import PatchHeader
from vllm_surgery.engine.requests.leader import SlotLeader
from vllm_surgery.engine.requests.metrics import InstrumentedSlots, SlotGauge
from vllm_surgery.engine.requests.openai import install_model_names
from vllm_surgery.engine.requests.planning import SlotPlanner
from vllm_surgery.engine.requests.swapper import SlotSwapper
from vllm_surgery.engine.server_config import logger, model_facts, weight_patches
from vllm_surgery.engine.settings import Settings, disabled
from vllm_surgery.engine.swap.engines import ServedEngine
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper
from vllm_surgery.engine.swap.transaction import SwapCoordinator
from vllm_surgery.engine.weight_version import served_patch
from vllm_surgery.errors import EngineError, MixedWeightsError, SurgeryError
from vllm_surgery.imports.remote_folders import patch_folder
from vllm_surgery.patch.folders import PatchLibrary
from vllm_surgery.patch.watched_files import WatchedFiles

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from fastapi import FastAPI
    from starlette.datastructures import State

    from vllm_surgery.engine.requests.ledger import Fill
    from vllm_surgery.engine.swap.transaction import Swapper
    from vllm_surgery.patch.patch_set import PatchSet


class SurgeryEndpoint:
    """Entry point of the group ``vllm.endpoint_plugins``: the routes under ``/v1/surgery``.

    Args:
        make_swapper: makes what carries swaps out, given vLLM's engine client.
    """

    name = NAME
    required_tasks = None  # Every kind of model can be edited.

    def __init__(self, make_swapper: Callable[[Any], Swapper] | None = None) -> None:
        self._make_swapper = make_swapper or _coordinator
        self._following: asyncio.Task[None] | None = None
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes to vLLM's application."""
        if not _off():
            self._app = app
            app.include_router(router)
            app.add_exception_handler(SurgeryError, answer_error)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Creates the state that the routes need, and starts to watch files where that was asked for.

        Raises:
            UsageError: a patch folder isn't there, or the root path hides our routes from vLLM's check of keys.
            MixedWeightsError: the engine's workers, on several machines, were started with different patches.
        """
        if _off():
            return
        check_root_path(getattr(args, "root_path", None))
        if engine_client is None:  # vLLM's render server, which has no engine. The routes say so.
            setattr(state, ACCESS, Access.of(args, remote=False))
            return
        config = engine_client.vllm_config
        settings = Settings.of(config.additional_config)
        summary = _summary(config, args)
        slots = self._slots(engine_client, summary.name) if settings.slots else None
        if slots is None and self._app is not None:
            _add_header(self._app, _served_patch(config))
        swapper = slots or InstrumentedSwapper(self._make_swapper(engine_client), process_metrics(), summary.name)
        await _look(swapper)
        paths = settings.watched_files()
        files = WatchedFiles(paths) if paths else None
        watcher = FileWatcher(files, swapper, logger) if files and _is_first(engine_client) else None
        service = SurgeryService(
            swapper,
            PatchLibrary([patch_folder(folder) for folder in settings.patch_dirs]),
            summary,
            inline=settings.allow_inline,
            files=files,
            watcher=watcher,
            slots=slots,
            on_loop=None if settings.on_loop is None else str(settings.policies().default),
            refuses=None if settings.allow_swaps else CHANGES_OFF,
        )
        access = Access.of(args, remote=settings.allow_remote_swaps, changes=settings.allow_swaps)
        setattr(state, ACCESS, access)
        setattr(state, SERVICE, service)
        if watcher:
            watcher.on_snapshot = swapper.show_desired
            self._following = asyncio.create_task(watcher.run(), name="vllm-surgery follows files")
            self._following.add_done_callback(_report_end)
            logger.info("vllm-surgery: following %s", ", ".join(paths))

    def _slots(self, engine_client: Any, model_name: str) -> InstrumentedSlots:
        """Changes the slots of this server; from now on models can be named with a patch, and answers name theirs.

        Raises:
            EngineError: this vLLM lacks a touch point.
        """
        board = board_of(engine_client.input_processor)
        if board is None:
            raise EngineError("the plugin did not see this server's requests being set up, so they can't have slots")
        install_model_names()
        if self._app is not None:
            _add_header(self._app)
        planner = SlotPlanner(engine_client.vllm_config)

        async def plan(patches: PatchSet, kept: bool) -> Fill:
            return await asyncio.to_thread(planner.fill, patches, kept=kept)

        metrics = process_metrics()
        leader = SlotLeader(ServedLedgers(engine_client), board, SlotGauge(metrics, model_name).show)
        return InstrumentedSlots(SlotSwapper(ServedEngine(engine_client), leader, plan), metrics, model_name)


async def _look(swapper: Swapper) -> None:
    """Asks for the state, for `/metrics`. What is wrong is told to whoever asks for it later.

    Raises:
        MixedWeightsError: nothing that this engine answers could be right.
    """
    try:
        await swapper.status()
    except MixedWeightsError as error:
        logger.critical("vllm-surgery refuses to serve: %s; start all nodes with the same patch", error)
        raise
    except SurgeryError:
        return


def _served_patch(config: Any) -> Callable[[], str]:
    """Gives the id of the patch in the weights whenever it is asked."""
    at_start = weight_patches(config).id
    alone = getattr(getattr(config, "parallel_config", None), "_api_process_count", 1) == 1
    return lambda: served_patch(at_start, alone=alone)


def _add_header(app: FastAPI, served: Callable[[], str] | None = None) -> None:
    """Puts the header into answers. An application that has started, as vLLM's has, takes no middleware any more."""
    if app.middleware_stack is None:
        app.add_middleware(PatchHeader, served=served)
    else:
        app.middleware_stack = PatchHeader(app.middleware_stack, served)


def _off() -> bool:
    """True where there is nothing to tell or change: no patch can be applied, or none is to be."""
    return disabled() or loading_lost() is not None


def _coordinator(engine_client: Any) -> SwapCoordinator:
    return SwapCoordinator(ServedEngine(engine_client))


def _is_first(engine_client: Any) -> bool:
    """True in the one of the API server's processes that watches files. More than one would do no harm."""
    return int(getattr(engine_client.engine_core, "client_index", 0)) == 0


def _summary(config: Any, args: Namespace) -> ModelSummary:
    facts = model_facts(config)
    served = getattr(args, "served_model_name", None) or [args.model]
    return ModelSummary(
        name=served[0],
        architectures=list(facts.architectures),
        layers=facts.num_hidden_layers,
        experts=facts.num_experts,
    )


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.critical("vllm-surgery: the watched files are no longer followed: %r", error)
