# SPDX-License-Identifier: Apache-2.0
"""vLLM's offline engine, for trials and searches, which meet ``vllm.LLM`` here alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.requests.admission import board_of
from vllm_surgery.engine.requests.offline import change_slots, slot_swapper
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.settings import KEY, Settings
from vllm_surgery.engine.swap.engines import OfflineEngine, run_sync
from vllm_surgery.engine.swap.source_checkpoint import local_folder
from vllm_surgery.engine.swap.transaction import SwapCoordinator
from vllm_surgery.errors import CannotSwapError, EngineError, UsageError, first_problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_surgery.client.protocol import SwapReport
    from vllm_surgery.engine.swap.transaction import Swapper
    from vllm_surgery.patch.patch_set import PatchSet

_FIXED = {"enforce_eager": True, "enable_prefix_caching": False}
"""Hooks don't run in compiled code, and rows that a cache has aren't seen by them. A search swaps all the time, so
there is nothing to win by either."""
_WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""On a CPU, unless a user says otherwise: where a step computes a part of the prompt of a request with a seed, vLLM
winds its generator back, and torch's for CPUs can't be wound back, which ends the engine. Without it vLLM has room for
as many tokens in a step as its context has, where that is more than its default."""
_QUIET = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
"""Results alone go to stdout, and hundreds of swaps needn't be told one by one."""


NO_SLOTS_HERE = "candidates are swapped in one by one"


def start_engine(model: str, arguments: Sequence[str], slots: int = 0) -> Any:
    """Starts a `vllm.LLM` for a search.

    Args:
        model: its folder, or its name on the Hub.
        arguments: options of `vllm serve` that are about the engine.
        slots: for patches. Where this vLLM or this model can't have them, the engine has none, and a warning says so.

    Raises:
        EngineError: this vLLM can't be patched.
        SystemExit: vLLM doesn't know the arguments.
        UsageError: it refuses what they say.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for point in (*touchpoints.FOR_LOADING, touchpoints.CLI_PARSER):
        point.get()
    try:
        return _start(_options(model, arguments), slots)
    except ValidationError as error:
        raise UsageError(f"vLLM refuses its options: {first_problem(error)[1]}") from None


def _options(model: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a `vllm.LLM` for a search."""
    from vllm import EngineArgs

    parser = EngineArgs.add_cli_args(touchpoints.CLI_PARSER.get()(prog="vllm-surgery localize"))
    options: dict[str, Any] = vars(EngineArgs.from_cli_args(parser.parse_args(["--model", model, *arguments]))) | _FIXED
    if touchpoints.PLATFORM.get().is_cpu():
        options |= {name: value for name, value in _WHOLE_PROMPTS.items() if options[name] is None}
    return options


def _start(options: dict[str, Any], slots: int) -> Any:
    """The engine, with slots if it can have them."""
    from vllm import LLM

    if slots:
        try:
            return LLM(**options | {"additional_config": _with_slots(options["additional_config"], slots)})
        except EngineError as error:  # Refused before anything was started.
            logger.warning("vllm-surgery: %s: %s", NO_SLOTS_HERE, error)
    return LLM(**options)


def _with_slots(additional_config: Any, slots: int) -> dict[str, Any]:
    """An ``additional_config`` of vLLM's with slots in it, unless it says itself how many."""
    given = dict(additional_config or {})
    return {**given, KEY: {"slots": slots, **given.get(KEY, {})}}


def stop_engine(llm: Any) -> None:
    """Ends the engine's processes. Left to Python's exit, they outlive an error that holds on to the engine."""
    llm.llm_engine.engine_core.shutdown()


def require_swaps(llm: Any) -> None:
    """Checks that patches can be swapped on this engine.

    Raises:
        CannotSwapError: they can't, and why.
    """
    status = run_sync(swapper_of(llm).status())
    if status.cannot_swap_reason is not None:
        raise CannotSwapError(f"a search swaps patches, and here they can't be swapped: {status.cannot_swap_reason}")


def folder_of(llm: Any) -> Path:
    """Folder that the engine's model was loaded from.

    Raises:
        CannotSwapError: it isn't on this machine.
    """
    found: Path = local_folder(llm.llm_engine.vllm_config)
    return found


class ServedModel(NamedTuple):
    """Identity of a served model and of its engine.

    Attributes:
        name: as vLLM's metrics name it.
        path: its folder, or its name on the Hub.
        max_tokens: of a prompt and its answer together.
        engine: with its version.
    """

    name: str
    path: str
    max_tokens: int
    engine: str


def served_model(llm: Any) -> ServedModel:
    """Identity of the model in an engine."""
    import vllm

    config = llm.llm_engine.vllm_config.model_config
    return ServedModel(str(config.served_model_name), config.model, config.max_model_len, f"vLLM {vllm.__version__}")


def swap_patches(llm: Any, patches: PatchSet) -> SwapReport:
    """Replaces the patches of an idle ``vllm.LLM`` as one transaction; see `vllm_surgery.swap` for what it raises."""
    return run_sync(swapper_of(llm).swap(patches))


def swap_weights(llm: Any, patches: PatchSet) -> SwapReport:
    """As `swap_patches`, always in the weights; for requests that are under no patch in a slot."""
    return run_sync(SwapCoordinator(OfflineEngine(llm)).swap(patches))


def slot_count(llm: Any) -> int:
    """How many patches the engine has room for beside its weights."""
    if board_of(llm.llm_engine.input_processor) is None:
        return 0
    return Settings.of(llm.llm_engine.vllm_config.additional_config).slots


def fill_slot(llm: Any, patches: PatchSet) -> None:
    """Puts a patch set into a slot, for requests that choose it.

    Raises:
        SurgeryError: refused with the reason; nothing was changed.
    """
    change_slots(llm, [patches])


def free_slots(llm: Any, names: Sequence[str]) -> None:
    """Offers patches in slots no more."""
    change_slots(llm, free=names)


def swapper_of(llm: Any) -> Swapper:
    """Swapper of an idle ``vllm.LLM``: of its slots where it has them, of its weights elsewhere."""
    board = board_of(llm.llm_engine.input_processor)
    return SwapCoordinator(OfflineEngine(llm)) if board is None else slot_swapper(llm, board)


def sampling_params(**values: Any) -> Any:
    """``vllm.SamplingParams`` of these values."""
    from vllm import SamplingParams

    return SamplingParams(**values)
