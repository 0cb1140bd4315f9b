# SPDX-License-Identifier: Apache-2.0
"""Touch points with vLLM's internals, each detected by looking for it, never by version.

`vllm-surgery doctor` tries them all; a test fails for each that vLLM moves.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WRAPPED = "__vllm_surgery_wrapped__"


@dataclass(frozen=True)
class TouchPoint:
    """Attribute of vLLM that this plugin calls or wraps.

    Attributes:
        module: the module that owns it.
        path: the attribute, with dots, inside the module.
        purpose: what is lost without it, for people.
        parameters: the names that its signature must have.
    """

    module: str
    path: str
    purpose: str
    parameters: tuple[str, ...] = ()

    def owner(self) -> Any:
        """Class or module that holds the attribute.

        Raises:
            EngineError: this vLLM doesn't have it.
        """
        try:
            owner: Any = importlib.import_module(self.module)
            for step in self.path.split(".")[:-1]:
                owner = getattr(owner, step)
        except (ImportError, AttributeError) as error:
            raise EngineError(f"this vLLM has no {self.module}.{self.path} ({self.purpose}): {error}") from None
        return owner

    @property
    def name(self) -> str:
        """Name of the attribute: the last step of the path."""
        return self.path.rsplit(".", 1)[-1]

    def get(self) -> Any:
        """The attribute itself.

        Raises:
            EngineError: this vLLM doesn't have it, or it takes other parameters.
        """
        found = getattr(self.owner(), self.name, None)
        if found is None:
            raise EngineError(f"this vLLM has no {self.module}.{self.path} ({self.purpose})")
        if self.parameters:
            known = inspect.signature(inspect.unwrap(found)).parameters
            missing = [name for name in self.parameters if name not in known]
            if missing:
                raise EngineError(f"{self.module}.{self.path} takes no {missing[0]} in this vLLM ({self.purpose})")
        return found

    @property
    def there(self) -> bool:
        """True if this vLLM has it as it should be."""
        try:
            self.get()
        except EngineError:
            return False
        return True

    def of(self, instance: Any) -> Any:
        """The attribute of one object, or of a class below the one that owns it."""
        return getattr(instance, self.name)

    def wrap(self, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replaces the function by ``make(original)``, once in this process, however often it is called."""
        original = self.get()
        if not hasattr(original, _WRAPPED):
            setattr(self.owner(), self.name, _marked(make(original), original))

    @contextmanager
    def wrapped(self, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """Replaces the function by ``make(original)`` until the block ends."""
        owner, original = self.owner(), self.get()
        setattr(owner, self.name, _marked(make(original), original))
        try:
            yield
        finally:
            setattr(owner, self.name, original)


def _marked(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(replacement, original)
    setattr(replacement, _WRAPPED, original)
    return replacement


CREATE_CONFIG = TouchPoint(
    "vllm.engine.arg_utils",
    "EngineArgs.create_engine_config",
    "refusing a wrong patch before any process is started",
)
LOAD_MODEL = TouchPoint(
    "vllm.v1.worker.gpu_worker",
    "Worker.load_model",
    "applying patches while weights are loaded",
    ("load_dummy_weights",),
)
MODEL_BUILT = TouchPoint(
    "vllm.model_executor.model_loader.utils",
    "record_metadata_for_reloading",
    "reaching each newly built model before its weights are loaded",
    ("model",),
)
WORKER_BASE = TouchPoint("vllm.v1.worker.worker_base", "WorkerBase", "asking every worker what it applied")
ENGINE_READY = TouchPoint(
    "vllm.v1.engine.core",
    "EngineCore._initialize_kv_caches",
    "verifying all ranks once their weights are loaded",
)
SET_WEIGHT_VERSION = TouchPoint(
    "vllm.v1.engine.core",
    "EngineCore.set_weight_version",
    "carrying the patch id in every output",
    ("weight_version",),
)
COLLECTIVE_RPC = TouchPoint(
    "vllm.v1.executor.abstract", "Executor.collective_rpc", "asking every worker what it applied", ("method",)
)
CONFIG_HASH = TouchPoint(
    "vllm.config.vllm", "VllmConfig.compute_hash", "keeping vLLM's compile cache when a patch is edited"
)
SERVE_COMMAND = TouchPoint("vllm.entrypoints.cli.serve", "cmd_init", "`vllm-surgery serve`")
CLI_LOGGING = TouchPoint("vllm.logger", "configure_logging_from_args", "taking vLLM's options for its log")
CLI_PARSER = TouchPoint("vllm.utils.argparse_utils", "FlexibleArgumentParser", "`vllm-surgery serve`")

_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"
RELOAD_BEGIN = TouchPoint(_RELOAD, "initialize_layerwise_reload", "swapping patches while serving", ("model",))
RELOAD_END = TouchPoint(
    _RELOAD, "finalize_layerwise_processing", "swapping patches while serving", ("model", "model_config")
)
RELOAD_INFO = TouchPoint(_RELOAD, "get_layerwise_info", "telling whether a part was loaded whole", ("layer",))
RELOAD_PUT_BACK = TouchPoint(_RELOAD, "_place_kernel_tensors", "undoing a reload that failed", ("layer", "info"))
SET_CONFIG = TouchPoint("vllm.config", "set_current_vllm_config", "swapping patches while serving", ("vllm_config",))
PLATFORM = TouchPoint("vllm.platforms", "current_platform", "knowing how weights are packed, and what a CPU can't do")
PLAIN_LINEAR = TouchPoint(
    "vllm.model_executor.layers.linear", "UnquantizedLinearMethod", "knowing how weights are packed"
)
ROUTED_EXPERTS = TouchPoint(
    "vllm.model_executor.layers.fused_moe.routed_experts",
    "RoutedExperts",
    "swapping patches while serving",
)
MASKING = TouchPoint(
    "vllm.model_executor.layers.fused_moe.runner.moe_runner",
    "MoERunner._apply_quant_method",
    "masking experts whose router has no bias",
    ("hidden_states", "router_logits"),
)
_EXPERTS_MODULE = "vllm.model_executor.layers.fused_moe.routed_experts"
_LOCALIZING = "seeing what experts do, for `localize`"
CHOSEN_EXPERTS = TouchPoint(
    _EXPERTS_MODULE, "RoutedExperts.forward_modular", _LOCALIZING, ("x", "topk_weights", "topk_ids")
)
UNCHOSEN_EXPERTS = TouchPoint(
    _EXPERTS_MODULE, "RoutedExperts.forward_monolithic", _LOCALIZING, ("x", "router_logits", "input_ids")
)
ALL_REDUCE = TouchPoint("vllm.distributed", "tensor_model_parallel_all_reduce", _LOCALIZING)
OUTPUT_REDUCED = TouchPoint(MASKING.module, "MoERunner._fused_output_is_reduced", _LOCALIZING)
_CLIENT = "vllm.v1.engine.core_client"
PAUSE = TouchPoint(
    _CLIENT, "AsyncMPClient.pause_scheduler_async", "holding tokens during a swap", ("mode", "clear_cache")
)
CLEAR_INPUTS = TouchPoint("vllm.renderers.base", "BaseRenderer.clear_mm_cache_async", "clearing caches during a swap")
RESUME = TouchPoint("vllm.v1.engine.async_llm", "AsyncLLM.resume_generation", "going on after a swap")
UPDATE_WEIGHT_VERSION = TouchPoint(
    "vllm.v1.engine.async_llm", "AsyncLLM.update_weight_version", "carrying the patch id in every output"
)
ENGINE_DIED = TouchPoint("vllm.v1.engine.async_llm", "AsyncLLM.errored", "giving up a swap when the engine dies")
CALL_ALL_ENGINES = TouchPoint(
    _CLIENT,
    "AsyncMPClient.call_utility_all_async",
    "hearing every engine of a server, not only the first",
    ("method",),
)
_WATCHING = "watching for loops"
ASYNC_ENGINE = TouchPoint("vllm.v1.engine.async_llm", "AsyncLLM.__init__", _WATCHING, ("vllm_config",))
SYNC_ENGINE = TouchPoint("vllm.v1.engine.llm_engine", "LLMEngine.__init__", _WATCHING, ("vllm_config",))
PROCESS_OUTPUTS = TouchPoint(
    "vllm.v1.engine.output_processor",
    "OutputProcessor.process_outputs",
    _WATCHING,
    ("engine_core_outputs", "engine_core_timestamp", "iteration_stats"),
)
OUTPUTS_HAVE_VERSIONS = TouchPoint(
    PROCESS_OUTPUTS.module,
    PROCESS_OUTPUTS.path,
    "telling the patch by the tokens themselves",
    ("weight_version",),
)
ABORT_REQUESTS = TouchPoint("vllm.v1.engine.output_processor", "OutputProcessor.abort_requests", _WATCHING)

_RESCUE = "rescuing answers that loop"
_OUTPUTS = "vllm.v1.engine.output_processor"
ADMIT_OUTPUTS = TouchPoint(_OUTPUTS, "OutputProcessor.add_request", _RESCUE, ("request",))
FINISH_REQUEST = TouchPoint(_OUTPUTS, "OutputProcessor._finish_request", _RESCUE, ("req_state",))
COUNT_FINISHED = TouchPoint(
    _OUTPUTS, "OutputProcessor._update_stats_from_finished", _RESCUE, ("req_state", "finish_reason", "iteration_stats")
)
TRACE_FINISHED = TouchPoint(
    _OUTPUTS, "OutputProcessor.do_tracing", _RESCUE, ("engine_core_output", "req_state", "iteration_stats")
)
MAKE_OUTPUT = TouchPoint(
    _OUTPUTS,
    "RequestState.make_request_output",
    _RESCUE,
    ("new_token_ids", "pooling_output", "finish_reason", "stop_reason"),
)
DETOKENIZER = TouchPoint(
    "vllm.v1.engine.detokenizer", "IncrementalDetokenizer.from_new_request", _RESCUE, ("tokenizer", "request")
)
FINISH_REASONS = TouchPoint("vllm.v1.engine", "FinishReason", _RESCUE)
EVENT_TYPES = TouchPoint("vllm.v1.engine", "EngineCoreEventType", _RESCUE)
OUTPUT_KINDS = TouchPoint("vllm.sampling_params", "RequestOutputKind", _RESCUE)

_SLOTS = "giving each request a patch of its own"
INPUT_PROCESSOR = TouchPoint("vllm.v1.engine.input_processor", "InputProcessor.__init__", _SLOTS, ("vllm_config",))
PROCESS_INPUTS = TouchPoint(
    "vllm.v1.engine.input_processor", "InputProcessor.process_inputs", _SLOTS, ("request_id", "resumable")
)
VALIDATION_ERROR = TouchPoint("vllm.exceptions", "VLLMValidationError", _SLOTS)
PREPROCESS_REQUEST = TouchPoint("vllm.v1.engine.core", "EngineCore.preprocess_add_request", _SLOTS, ("request",))
ADD_REQUEST = TouchPoint("vllm.v1.engine.core", "EngineCore.add_request", _SLOTS, ("request",))
V1_INPUTS = TouchPoint(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner._prepare_inputs",
    _SLOTS,
    ("scheduler_output", "num_scheduled_tokens"),
)
_V2 = "vllm.v1.worker.gpu.model_runner"
V2_ADD = TouchPoint(_V2, "GPUModelRunner.add_requests", _SLOTS, ("scheduler_output",))
V2_INPUTS = TouchPoint(_V2, "GPUModelRunner.prepare_inputs", _SLOTS, ("scheduler_output",))
V2_REMOVE = TouchPoint(_V2, "GPUModelRunner._remove_request", _SLOTS, ("req_id",))
APPLY_WEIGHTS = TouchPoint(
    "vllm.model_executor.layers.linear", "UnquantizedLinearMethod.apply", _SLOTS, ("layer", "x", "bias")
)
MOE_DISPATCH = TouchPoint(
    "vllm.model_executor.layers.fused_moe.runner.moe_runner",
    "MoERunner._maybe_dispatch",
    "masking experts for single requests",
    ("hidden_states", "router_logits"),
)
MOE_ROUTING = TouchPoint(
    "vllm.model_executor.layers.fused_moe.router.base_router",
    "BaseRouter._compute_routing",
    "asking a router which experts it chooses",
    ("hidden_states", "router_logits"),
)
_BY_NAME = "choosing a patch by the model's name"
CHECK_MODEL = TouchPoint("vllm.entrypoints.serve.engine.serving", "BaseServing._check_model", _BY_NAME, ("request",))
SHOW_MODELS = TouchPoint(
    "vllm.entrypoints.openai.models.serving", "OpenAIServingModels.show_available_models", _BY_NAME
)
MODEL_NAME = TouchPoint(
    "vllm.entrypoints.openai.models.serving", "OpenAIServingModels.model_name", _BY_NAME, ("lora_request",)
)
BEAM_SEARCH = TouchPoint("vllm.entrypoints.llm", "LLM.beam_search", "refusing beam search under a patch")

_KERNELS = "telling whether a quantised checkpoint can be served on this CPU"
_CPU_LINEAR = "vllm.model_executor.kernels.linear.scaled_mm.cpu"
_CPU_EXPERTS = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
_ZEN_EXPERTS = "vllm.model_executor.layers.fused_moe.experts.zentorch_moe"
INT4_WEIGHTS = TouchPoint("vllm._custom_ops", "cpu_gemm_wna16", _KERNELS)
FP8_BLOCKS = TouchPoint(_CPU_LINEAR, "CPUFp8BlockScaledMMKernel.is_supported", _KERNELS)
FP8_BLOCKS_AND_INPUTS = TouchPoint(_CPU_LINEAR, "CPUFp8W8A8BlockScaledMMKernel.is_supported", _KERNELS)
FP8_EXPERTS = TouchPoint(_CPU_EXPERTS, "CPUExpertsFp8._supports_current_device", _KERNELS)
FP8_EXPERTS_AND_INPUTS = TouchPoint(_CPU_EXPERTS, "CPUExpertsFp8W8A8._supports_current_device", _KERNELS)
INT4_EXPERTS = TouchPoint(_CPU_EXPERTS, "CPUExpertsInt4._supports_current_device", _KERNELS)
ZEN_INT4_EXPERTS = TouchPoint(_ZEN_EXPERTS, "ZentorchExpertsInt4._supports_current_device", _KERNELS)
INT8_EXPERTS = TouchPoint(_CPU_EXPERTS, "CPUExpertsInt8._supports_current_device", _KERNELS)
ZEN_INT8_EXPERTS = TouchPoint(_CPU_EXPERTS, "ZenCPUExpertsInt8._supports_current_device", _KERNELS)
MXFP4_EXPERTS = TouchPoint(_CPU_EXPERTS, "CPUExpertsMxfp4._supports_current_device", _KERNELS)

FOR_LOADING = (
    CREATE_CONFIG,
    LOAD_MODEL,
    MODEL_BUILT,
    WORKER_BASE,
    ENGINE_READY,
    COLLECTIVE_RPC,
)
"""Without any one of these no server with patches is started: they could not be applied, or not be verified."""

FOR_SWAPPING = (
    RELOAD_BEGIN,
    RELOAD_END,
    RELOAD_INFO,
    RELOAD_PUT_BACK,
    SET_CONFIG,
    PLATFORM,
    PLAIN_LINEAR,
    ROUTED_EXPERTS,
    PAUSE,
    CLEAR_INPUTS,
    RESUME,
    SET_WEIGHT_VERSION,
    UPDATE_WEIGHT_VERSION,
    ENGINE_DIED,
)
"""Without any one of these a server still serves its patches, but says that it can't swap them."""

FOR_MASKING = (MASKING, MOE_ROUTING)
"""Without any one of these a server refuses masks in layers whose router has no bias of its own."""

FOR_LOCALIZING = (CHOSEN_EXPERTS, UNCHOSEN_EXPERTS, ALL_REDUCE, OUTPUT_REDUCED, MOE_ROUTING)
"""Without any one of these `localize` measures the neurons of models without experts, and refuses others."""

FOR_SERVING = (SERVE_COMMAND, CLI_PARSER)
"""What the command line alone needs. Without these, `vllm serve` with the plugin still works."""

ENDPOINT_PLUGINS = TouchPoint("vllm.plugins", "load_endpoint_plugins", "the routes under /v1/surgery")

FOR_WATCHING = (ASYNC_ENGINE, SYNC_ENGINE, PROCESS_OUTPUTS, ABORT_REQUESTS)
"""Without any one of these a server still serves its patches, but doesn't watch for loops."""

FOR_RESCUE = (
    ADMIT_OUTPUTS,
    FINISH_REQUEST,
    COUNT_FINISHED,
    TRACE_FINISHED,
    MAKE_OUTPUT,
    DETOKENIZER,
    FINISH_REASONS,
    EVENT_TYPES,
    OUTPUT_KINDS,
)
"""Without any one of these no server that rescues answers is started."""

FOR_TELLING = (SET_WEIGHT_VERSION, OUTPUTS_HAVE_VERSIONS)
"""Without any one of these outputs don't say which weights made them: servers of several API processes aren't watched
for loops."""

NICE_TO_HAVE = (CONFIG_HASH, CALL_ALL_ENGINES, CLI_LOGGING)
"""Without the first, compiled servers are refused masks and slots, and compile anew for each patch. Older vLLM lacks
the others: without the second, servers of several engines can't swap; where the third is missing there are no such
options."""

FOR_KERNELS = (
    INT4_WEIGHTS,
    FP8_BLOCKS,
    FP8_BLOCKS_AND_INPUTS,
    FP8_EXPERTS,
    FP8_EXPERTS_AND_INPUTS,
    INT4_EXPERTS,
    ZEN_INT4_EXPERTS,
    INT8_EXPERTS,
    ZEN_INT8_EXPERTS,
    MXFP4_EXPERTS,
)
"""Without these a quantised checkpoint that this machine's CPU can't serve is not refused before it is loaded."""

FOR_ROUTES = (ENDPOINT_PLUGINS,)
"""Without any one of these a server has no routes of ours: its patches are those that it was started with."""

FOR_SLOTS = (
    INPUT_PROCESSOR,
    PROCESS_INPUTS,
    VALIDATION_ERROR,
    PREPROCESS_REQUEST,
    ADD_REQUEST,
    APPLY_WEIGHTS,
)
"""Without any one of these no server with slots is started."""

FOR_V1_SLOTS = (V1_INPUTS,)
FOR_V2_SLOTS = (V2_ADD, V2_INPUTS, V2_REMOVE)
"""By which each of vLLM's model runners says whose tokens come next; a server needs those of its own."""

FOR_EXPERT_SLOTS = (MOE_DISPATCH, MOE_ROUTING)
"""Without any one of these experts can't be changed for single requests."""

FOR_NAMING = (CHECK_MODEL, SHOW_MODELS, MODEL_NAME, BEAM_SEARCH)
"""Without any one of these no server with routes and slots is started: a model's name could choose no patch."""
