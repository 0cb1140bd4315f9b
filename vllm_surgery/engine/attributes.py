# SPDX-License-Identifier: Apache-2.0
"""Attributes of vLLM's objects that this package reads or sets, as touch points: one a class, for each use of it.

Objects get most attributes only when they are made, so these are looked for in their class and in its source. A process
that serves doesn't take the time for that; `vllm-surgery doctor` does, and a test fails for each that vLLM moves.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.touchpoints import TouchPoint
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

_REGISTER = {"register_parameter", "register_buffer"}
"""By these a layer of torch's gets an attribute."""


@dataclass(frozen=True)
class Attributes(TouchPoint):
    """A class of vLLM whose instances have attributes that this plugin reads or sets.

    Attributes:
        names: of the attributes.
    """

    names: tuple[str, ...] = ()

    def get(self) -> Any:
        """Class whose instances have the attributes.

        Raises:
            EngineError: this vLLM doesn't have it, or its instances lack one of the attributes.
        """
        owner = super().get()
        known = instance_attributes(owner)
        missing = [name for name in self.names if name not in known]
        if missing:
            raise EngineError(f"{self.module}.{self.path} has no {missing[0]} in this vLLM ({self.purpose})")
        return owner


@functools.cache
def instance_attributes(owner: type[Any]) -> frozenset[str]:
    """Names of all attributes that instances of a class can have: declared, assigned to ``self``, or registered."""
    names = set(dir(owner))
    package = owner.__module__.partition(".")[0]
    for base in owner.__mro__:
        names |= {*vars(base).get("__annotations__", {})}
        if base.__module__.partition(".")[0] == package:
            names |= {*_assigned(base)}
    return frozenset(names)


def _assigned(owner: type[Any]) -> Iterator[str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):  # Made by code, so there is none.
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Call(func=ast.Attribute(attr=how), args=[ast.Constant(value=str(name)), *_]) if how in _REGISTER:
                yield name


_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_LINEAR = "vllm.model_executor.layers.linear"
_CLIENTS = "vllm.v1.engine.core_client"
_LOADING = "knowing the model that is served, and the settings"
_SWAPPING = "swapping patches while serving"
_VERIFYING = "verifying that a swap reached the weights"
_OFFLINE = "swapping the patches of an offline engine"
_MASKING = "masking experts whose router has no bias"
_LOCALIZING = "seeing what units do, for `localize`"
_WATCHING = "watching for loops"
_ROUTES = "the routes under /v1/surgery"
_RESCUE = "rescuing answers that loop"
_SLOTS = "giving each request a patch of its own"
_EXPERT_SLOTS = "giving experts gains for single requests"
_NAMING = "choosing a patch by the model's name"

FOR_LOADING = (
    Attributes(
        "vllm.config.vllm",
        "VllmConfig",
        _LOADING,
        names=("additional_config", "model_config", "load_config", "parallel_config", "compilation_config"),
    ),
    Attributes("vllm.config.model", "ModelConfig", _LOADING, names=("model", "revision", "hf_config")),
    Attributes("vllm.config.load", "LoadConfig", _LOADING, names=("load_format",)),
    Attributes("vllm.config.parallel", "ParallelConfig", _LOADING, names=("enable_ep_weight_filter",)),
    Attributes("vllm.v1.worker.worker_base", "WorkerBase", _LOADING, names=("vllm_config", "get_model")),
    Attributes("vllm.v1.engine.core", "EngineCore", _LOADING, names=("model_executor",)),
    Attributes("vllm.model_executor.models.interfaces", "SupportsMultiModal", _LOADING, names=("get_language_model",)),
    Attributes("vllm.model_executor.models.llama", "LlamaForCausalLM", _LOADING, names=("load_weights",)),
)

FOR_SERVING = (
    Attributes(
        "vllm.entrypoints.cli.serve",
        "ServeSubcommand",
        "`vllm-surgery serve`",
        names=("subparser_init", "validate", "cmd"),
    ),
)

FOR_SWAPPING = (
    Attributes(
        "vllm.config.vllm", "VllmConfig", _SWAPPING, names=("cache_config", "kv_transfer_config", "offload_config")
    ),
    Attributes("vllm.config.model", "ModelConfig", _SWAPPING, names=("quantization",)),
    Attributes("vllm.config.load", "LoadConfig", _SWAPPING, names=("download_dir",)),
    Attributes(
        "vllm.config.parallel",
        "ParallelConfig",
        _SWAPPING,
        names=("data_parallel_size", "enable_eplb", "enable_elastic_ep"),
    ),
    Attributes("vllm.config.offload", "OffloadConfig", _SWAPPING, names=("uva", "prefetch")),
    Attributes("vllm.config.offload", "UVAOffloadConfig", _SWAPPING, names=("cpu_offload_gb",)),
    Attributes("vllm.config.offload", "PrefetchOffloadConfig", _SWAPPING, names=("offload_group_size",)),
    Attributes("vllm.v1.worker.worker_base", "WorkerBase", _SWAPPING, names=("execute_model",)),
    Attributes(
        "vllm.model_executor.model_loader.reload.types",
        "LayerReloadingInfo",
        _SWAPPING,
        names=("can_load", "kernel_tensors", "reset"),
    ),
    Attributes(
        _LINEAR,
        "RowParallelLinear",
        _SWAPPING,
        names=("quant_method", "input_size_per_partition", "output_size", "tp_rank", "params_dtype"),
    ),
    Attributes(
        f"{_FUSED_MOE}.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod",
        _SWAPPING,
        names=("w13_weight", "moe_kernel", "moe_quant_config"),
    ),
    Attributes(
        f"{_FUSED_MOE}.routed_experts", "RoutedExperts", _SWAPPING, names=("quant_method", "lora_base_layer_prefix")
    ),
    Attributes(
        f"{_FUSED_MOE}.routed_experts",
        "RoutedExperts",
        _VERIFYING,
        names=("global_num_experts", "hidden_size", "params_dtype"),
    ),
    TouchPoint(_LINEAR, "UnquantizedLinearMethod.apply", _VERIFYING, ("layer", "x", "bias")),
    TouchPoint(
        f"{_FUSED_MOE}.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod.apply",
        _VERIFYING,
        ("layer", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"),
    ),
    Attributes(
        "vllm.v1.engine.async_llm",
        "AsyncLLM",
        _SWAPPING,
        names=("renderer", "engine_core", "is_sleeping", "errored", "shutdown"),
    ),
    Attributes(_CLIENTS, "AsyncMPClient", _SWAPPING, names=("collective_rpc_async",)),
    Attributes("vllm.entrypoints.llm", "LLM", _OFFLINE, names=("llm_engine", "collective_rpc")),
    Attributes(
        "vllm.v1.engine.llm_engine",
        "LLMEngine",
        _OFFLINE,
        names=(
            "is_sleeping",
            "reset_prefix_cache",
            "reset_mm_cache",
            "reset_encoder_cache",
            "set_weight_version",
            "vllm_config",
            "engine_core",
        ),
    ),
    Attributes(_CLIENTS, "EngineCoreClient", _OFFLINE, names=("shutdown",)),
)

FOR_MASKING = (
    Attributes("vllm.config.compilation", "CompilationConfig", _MASKING, names=("mode", "cudagraph_mode")),
    Attributes(f"{_FUSED_MOE}.runner.moe_runner", "MoERunner", _MASKING, names=("router", "moe_config", "forward")),
    Attributes(
        f"{_FUSED_MOE}.config", "FusedMoEConfig", _MASKING, names=("num_logical_experts", "hidden_dim", "in_dtype")
    ),
    Attributes(
        f"{_FUSED_MOE}.router.fused_topk_bias_router",
        "FusedTopKBiasRouter",
        _MASKING,
        names=("e_score_correction_bias",),
    ),
    Attributes(_LINEAR, "LinearBase", _MASKING, names=("input_size",)),
)

FOR_LOCALIZING = (
    Attributes("vllm.v1.worker.worker_base", "WorkerBase", _LOCALIZING, names=("model_config",)),
    Attributes("vllm.config.model", "ModelConfig", _LOCALIZING, names=("hf_text_config", "max_model_len")),
    Attributes("vllm.config.compilation", "CompilationMode", _LOCALIZING, names=("NONE",)),
    Attributes("vllm.config.compilation", "CUDAGraphMode", _LOCALIZING, names=("NONE",)),
    Attributes("vllm.config.parallel", "ParallelConfig", _LOCALIZING, names=("prefill_context_parallel_size",)),
    Attributes("vllm.lora.layers.base_linear", "BaseLinearLayerWithLoRA", _LOCALIZING, names=("base_layer",)),
    Attributes(
        f"{_FUSED_MOE}.runner.moe_runner",
        "MoERunner",
        _LOCALIZING,
        names=("routed_experts", "routed_scaling_factor"),
    ),
    Attributes(f"{_FUSED_MOE}.config", "FusedMoEConfig", _LOCALIZING, names=("tp_size", "ep_size")),
)

FOR_WATCHING = (
    Attributes("vllm.v1.engine.async_llm", "AsyncLLM", _WATCHING, names=("output_processor",)),
    Attributes("vllm.v1.engine.llm_engine", "LLMEngine", _WATCHING, names=("output_processor",)),
    Attributes("vllm.v1.engine.output_processor", "OutputProcessor", _WATCHING, names=("request_states", "tokenizer")),
    Attributes("vllm.v1.engine.output_processor", "RequestState", _WATCHING, names=("external_req_id", "detokenizer")),
    Attributes("vllm.v1.engine", "EngineCoreOutput", _WATCHING, names=("request_id", "new_token_ids", "finish_reason")),
    Attributes("vllm.config.model", "ModelConfig", _WATCHING, names=("served_model_name",)),
    Attributes("vllm.config.parallel", "ParallelConfig", _WATCHING, names=("_api_process_count",)),
)

FOR_RESCUE = (
    Attributes(
        "vllm.v1.engine.output_processor",
        "OutputProcessor",
        _RESCUE,
        names=(
            "request_states",
            "external_req_ids",
            "lora_states",
            "tokenizer",
            "tracing_enabled",
            "add_request",
            "process_outputs",
        ),
    ),
    Attributes(
        "vllm.v1.engine.output_processor",
        "RequestState",
        _RESCUE,
        names=(
            "request_id",
            "external_req_id",
            "parent_req",
            "queue",
            "lora_name",
            "output_kind",
            "detokenizer",
            "logprobs_processor",
            "weight_version_starts",
            "routed_experts_chunks",
            "sampling_mask_chunks",
            "make_request_output",
            "sent_tokens_offset",
        ),
    ),
    Attributes("vllm.v1.engine.output_processor", "RequestOutputCollector", _RESCUE, names=("request_id", "put")),
    Attributes(
        "vllm.v1.engine.output_processor", "OutputProcessorOutput", _RESCUE, names=("request_outputs", "reqs_to_abort")
    ),
    Attributes("vllm.v1.engine", "EngineCoreOutput", _RESCUE, names=("finish_reason", "events")),
    Attributes("vllm.v1.engine.parallel_sampling", "ParentRequest", _RESCUE, names=("child_requests",)),
    Attributes(
        "vllm.v1.engine.detokenizer",
        "IncrementalDetokenizer",
        _RESCUE,
        names=("output_token_ids", "num_output_tokens", "update", "get_next_output_text"),
    ),
    Attributes("vllm.outputs", "RequestOutput", _RESCUE, names=("outputs",)),
    Attributes("vllm.outputs", "CompletionOutput", _RESCUE, names=("token_ids", "finish_reason")),
    Attributes("vllm.v1.engine.logprobs", "LogprobsProcessor", _RESCUE, names=("logprobs", "cumulative_logprob")),
    Attributes("vllm.logprobs", "Logprob", _RESCUE, names=("logprob",)),
    Attributes("vllm.v1.metrics.stats", "LoRARequestStates", _RESCUE, names=("request_finished",)),
    Attributes("vllm.v1.engine", "FinishReason", _RESCUE, names=("REPETITION", "LENGTH", "ABORT")),
    Attributes("vllm.sampling_params", "RequestOutputKind", _RESCUE, names=("FINAL_ONLY", "CUMULATIVE")),
    Attributes(
        "vllm.v1.engine",
        "EngineCoreRequest",
        _RESCUE,
        names=(
            "request_id",
            "prompt_token_ids",
            "prompt_embeds",
            "mm_features",
            "sampling_params",
            "resumable",
            "trace_headers",
        ),
    ),
    Attributes(
        "vllm.sampling_params",
        "SamplingParams",
        _RESCUE,
        names=(
            "extra_args",
            "structured_outputs",
            "prompt_logprobs",
            "logprob_token_ids",
            "thinking_token_budget",
            "max_tokens",
            "min_tokens",
            "repetition_penalty",
            "temperature",
            "seed",
            "detokenize",
        ),
    ),
    Attributes("vllm.v1.engine.async_llm", "AsyncLLM", _RESCUE, names=("input_processor", "engine_core", "generate")),
    Attributes("vllm.v1.engine.llm_engine", "LLMEngine", _RESCUE, names=("input_processor", "engine_core")),
    Attributes(_CLIENTS, "EngineCoreClient", _RESCUE, names=("add_request", "abort_requests")),
    Attributes(_CLIENTS, "AsyncMPClient", _RESCUE, names=("add_request_async", "abort_requests_async")),
    Attributes("vllm.config.model", "ModelConfig", _RESCUE, names=("runner_type",)),
)

FOR_ROUTES = (
    Attributes("vllm.v1.engine.async_llm", "AsyncLLM", _ROUTES, names=("vllm_config",)),
    Attributes(_CLIENTS, "AsyncMPClient", _ROUTES, names=("client_index",)),
)

FOR_SLOTS = (
    Attributes("vllm.v1.engine.input_processor", "InputProcessor", _SLOTS, names=("process_inputs_async",)),
    Attributes(
        "vllm.config.vllm",
        "VllmConfig",
        _SLOTS,
        names=("lora_config", "scheduler_config", "speculative_config", "kv_transfer_config"),
    ),
    Attributes("vllm.config.model", "ModelConfig", _SLOTS, names=("runner_type",)),
    Attributes("vllm.config.scheduler", "SchedulerConfig", _SLOTS, names=("max_num_batched_tokens",)),
    Attributes("vllm.config.compilation", "CompilationConfig", _SLOTS, names=("max_cudagraph_capture_size",)),
    Attributes(
        "vllm.config.parallel", "ParallelConfig", _SLOTS, names=("use_ubatching", "prefill_context_parallel_size")
    ),
    Attributes("vllm.config.cache", "CacheConfig", _SLOTS, names=("kv_sharing_fast_prefill",)),
    Attributes("vllm.config.kv_transfer", "KVTransferConfig", _SLOTS, names=("kv_connector",)),
    Attributes("vllm.config.speculative", "SpeculativeConfig", _SLOTS, names=("enable_adaptive_verification",)),
    Attributes("vllm.v1.worker.worker_base", "WorkerBase", _SLOTS, names=("model_runner",)),
    Attributes("vllm.v1.engine.core", "EngineCore", _SLOTS, names=("scheduler",)),
    Attributes("vllm.v1.core.sched.scheduler", "Scheduler", _SLOTS, names=("requests",)),
    Attributes("vllm.v1.request", "Request", _SLOTS, names=("sampling_params",)),
    Attributes(
        "vllm.v1.engine",
        "EngineCoreRequest",
        _SLOTS,
        names=("request_id", "sampling_params", "cache_salt", "resumable"),
    ),
    Attributes("vllm.sampling_params", "SamplingParams", _SLOTS, names=("extra_args",)),
    Attributes("vllm.v1.engine.llm_engine", "LLMEngine", _SLOTS, names=("input_processor",)),
    Attributes(_CLIENTS, "SyncMPClient", _SLOTS, names=("call_utility",)),
    Attributes(_CLIENTS, "AsyncMPClient", _SLOTS, names=("call_utility_async",)),
    Attributes(_CLIENTS, "InprocClient", _SLOTS, names=("engine_core",)),
    Attributes(_LINEAR, "LinearBase", _SLOTS, names=("input_size", "quant_method", "requires_unquantized_input")),
)

FOR_V1_SLOTS = (
    Attributes("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", _SLOTS, names=("requests", "input_batch")),
    Attributes("vllm.v1.worker.gpu_input_batch", "InputBatch", _SLOTS, names=("req_ids",)),
    Attributes("vllm.v1.worker.gpu_input_batch", "CachedRequestState", _SLOTS, names=("sampling_params",)),
)

FOR_V2_SLOTS = (
    Attributes("vllm.v1.core.sched.output", "SchedulerOutput", _SLOTS, names=("scheduled_new_reqs",)),
    Attributes("vllm.v1.core.sched.output", "NewRequestData", _SLOTS, names=("req_id", "sampling_params")),
    Attributes("vllm.v1.worker.gpu.input_batch", "InputBatch", _SLOTS, names=("req_ids", "num_scheduled_tokens")),
)

FOR_EXPERT_SLOTS = (
    Attributes(
        f"{_FUSED_MOE}.runner.moe_runner",
        "MoERunner",
        _EXPERT_SLOTS,
        names=("is_monolithic", "do_naive_dispatch_combine", "routed_experts"),
    ),
    Attributes(f"{_FUSED_MOE}.routed_experts", "RoutedExperts", _EXPERT_SLOTS, names=("apply_router_weight_on_input",)),
    Attributes(f"{_FUSED_MOE}.config", "FusedMoEConfig", _EXPERT_SLOTS, names=("is_sequence_parallel",)),
)

FOR_NAMING = (
    Attributes(
        "vllm.entrypoints.serve.engine.serving",
        "BaseServing",
        _NAMING,
        names=("models", "create_error_response"),
    ),
    Attributes(
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels",
        _NAMING,
        names=("is_base_model", "lora_requests", "base_model_paths", "input_processor"),
    ),
    Attributes(
        "vllm.entrypoints.openai.chat_completion.protocol",
        "ChatCompletionRequest",
        _NAMING,
        names=("model", "user", "request_id", "vllm_xargs", "use_beam_search"),
    ),
)
