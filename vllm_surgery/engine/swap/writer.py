# SPDX-License-Identifier: Apache-2.0
"""Writer of checkpoint tensors into a loaded model: only into the parts that are named.

Three ways, the first that is known to be exact for a part: columns of a linear layer whose weight is kept as the
checkpoint has it; a parameter that is used as it is stored; else vLLM's own layerwise reload of the part, which
repeats whatever packing and sharding the backend does. Each writes into the tensors that are there, so that pointers
in CUDA graphs stay good.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.masks.model import RouterMasks
from vllm_surgery.errors import CannotSwapError, EngineError
from vllm_surgery.model.conventions import classify_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vllm_surgery.engine.model_parts import ModulePart

    TensorOf = Callable[[str], torch.Tensor]


_GPU = "cuda"
"""What torch calls devices of NVIDIA and AMD, whose free memory it tells."""


class NotWrittenError(EngineError):
    """Failure to write a part, which holds what it held before."""


class Writer:
    """Writes into one model.

    Args:
        model: the served model, in this process.
        load_weights: vLLM's own, without this package's edits.
        vllm_config: of the server.

    Attributes:
        masks: of its routers.
    """

    def __init__(self, model: Any, load_weights: Callable[..., Any], vllm_config: Any) -> None:
        self._model = model
        self._load_weights = load_weights
        self.vllm_config = vllm_config
        self.masks = RouterMasks(model, vllm_config)

    def write(self, part: ModulePart, tensor_of: TensorOf, columns: Sequence[int] | None) -> None:
        """Writes checkpoint tensors into a part.

        Args:
            part: where.
            tensor_of: gives a tensor in checkpoint form, whole.
            columns: those of the tensor that may differ from what is there; None for all of it.

        Raises:
            NotWrittenError: vLLM didn't take the tensors; the part holds what it held before.
            EngineError: it took only some of them; what the part holds isn't known.
        """
        with torch.no_grad():
            if part.parameter is not None:
                _write_parameter(part, tensor_of)
            elif columns is not None and (local := local_columns(part.module)) is not None:
                _write_columns(part, tensor_of, columns, local)
            else:
                self._reload(part, tensor_of)

    def check_room(self, part: ModulePart, columns: Sequence[int] | None) -> None:
        """Checks that a part can be written, as far as memory goes: a reload needs room for it a second time.

        Raises:
            CannotSwapError: the device has less than that free.
        """
        in_place = part.parameter is not None or (columns is not None and local_columns(part.module) is not None)
        tensors = [*part.module.parameters()]
        if in_place or not tensors or tensors[0].device.type != _GPU:
            return
        needed, free = sum(tensor.nbytes for tensor in tensors), free_bytes(tensors[0].device)
        if needed > free:
            raise CannotSwapError(
                f"{part.path} needs {needed >> 20} MiB beside itself while it is loaded again, and {free >> 20} MiB "
                "are free: start with a lower --gpu-memory-utilization"
            )

    def _reload(self, part: ModulePart, tensor_of: TensorOf) -> None:
        initialize, finalize = touchpoints.RELOAD_BEGIN.get(), touchpoints.RELOAD_END.get()
        stream = _Stream(part, tensor_of)
        with touchpoints.SET_CONFIG.get()(self.vllm_config):
            with _put_back_on_error(part, stream):
                _forget_expert_kernels(part.module)
                initialize(part.module)
                self._load_weights(iter(stream))
                incomplete = [name for name, module in part.module.named_modules() if _waits_for_weights(module)]
                if incomplete:
                    raise EngineError(f"vLLM loaded only part of {incomplete[0] or type(part.module).__name__}")
            finalize(part.module, self.vllm_config.model_config)


class _Stream:
    """A part's tensors, as vLLM's loader asks for them.

    Attributes:
        begun: whether it has asked for one: until then it can't have written any.
    """

    def __init__(self, part: ModulePart, tensor_of: TensorOf) -> None:
        self._part, self._tensor_of = part, tensor_of
        self.begun = False

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self._part.tensors:
            self.begun = True
            yield _asked_for(self._part.module, name), self._tensor_of(name)


def free_bytes(device: torch.device) -> int:
    """Memory of a device that a reload can have: what nobody holds, and what torch holds and doesn't use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def local_columns(module: Any) -> range | None:
    """Columns of its checkpoint tensor that a linear layer holds on this rank.

    None where its weight isn't known to be kept as the checkpoint has it: packed, quantised, or not a linear layer.
    """
    weight = module._parameters.get("weight")
    method = getattr(module, "quant_method", None)
    size = getattr(module, "input_size_per_partition", None)
    if type(method) is not touchpoints.PLAIN_LINEAR.get() or size is None or weight is None:
        return None
    if tuple(weight.shape) != (module.output_size, size):
        return None
    return range(module.tp_rank * size, (module.tp_rank + 1) * size)


def _write_columns(part: ModulePart, tensor_of: TensorOf, columns: Sequence[int], local: range) -> None:
    here = [column for column in columns if column in local]
    if not here:
        return
    (name,) = [name for name in part.tensors if name.endswith(".weight")]
    weight = part.module.weight.data
    values = tensor_of(name)[:, here].to(weight.device, weight.dtype)
    weight.index_copy_(1, torch.tensor([column - local.start for column in here], device=weight.device), values)


def _write_parameter(part: ModulePart, tensor_of: TensorOf) -> None:
    assert part.parameter is not None
    parameter = part.module._parameters[part.parameter]
    tensor = tensor_of(part.tensors[0])
    if parameter.shape != tensor.shape:
        raise EngineError(f"{part.path}.{part.parameter} is {list(parameter.shape)}, the tensor {list(tensor.shape)}")
    parameter.data.copy_(tensor)


def _asked_for(module: Any, name: str) -> str:
    """Name under which vLLM loads a tensor of the checkpoint into `module`.

    Once adapters may lie around experts, vLLM looks for each expert's tensors under names that checkpoints don't have;
    see `RoutedExperts.build_expert_params_mapping`.
    """
    role = classify_tensor(name)
    if role is None or role.expert is None:
        return name
    owner, _, parameter = name.rpartition(".")
    return f"{owner}.{getattr(module, 'lora_base_layer_prefix', '')}{parameter}"


def _forget_expert_kernels(module: Any) -> None:
    """Makes vLLM's CPU backend pack experts again, which it otherwise leaves out on every load but the first.

    See `UnquantizedFusedMoEMethod._setup_kernel`: it packs only where there is no kernel yet.
    """
    if touchpoints.PLATFORM.get().is_cpu():
        for method in _expert_methods(module):
            method.moe_kernel = None


def _expert_methods(module: Any) -> list[Any]:
    methods = [getattr(inner, "quant_method", None) for inner in module.modules()]
    return [method for method in methods if getattr(method, "moe_kernel", None) is not None]


def _waits_for_weights(module: Any) -> bool:
    return bool(module._parameters) and bool(touchpoints.RELOAD_INFO.get()(module).can_load())


@contextmanager
def _put_back_on_error(part: ModulePart, stream: _Stream) -> Iterator[None]:
    """Gives every layer that isn't fully loaded its old tensors and kernels back, if loading fails.

    Raises:
        NotWrittenError: it failed before any layer was written.
        EngineError: it failed after that.
    """
    kernels = [(method, method.moe_kernel, method.moe_quant_config) for method in _expert_methods(part.module)]
    try:
        yield
    except Exception as error:
        waiting = [inner for inner in part.module.modules() if inner._parameters]
        # A model that refuses to be reloaded may have put everything back itself.
        untouched = not stream.begun or all(touchpoints.RELOAD_INFO.get()(inner).can_load() for inner in waiting)
        for inner in part.module.modules():
            _put_back(inner)
        reason = f"{part.path}: {error if isinstance(error, EngineError) else f'{type(error).__name__}: {error}'}"
        if not untouched:
            raise EngineError(reason) from error
        for method, kernel, config in kernels:
            method.moe_kernel, method.moe_quant_config = kernel, config
        raise NotWrittenError(reason) from error


def _put_back(module: Any) -> None:
    info = touchpoints.RELOAD_INFO.get()(module)
    if info.can_load():
        if info.kernel_tensors is not None:
            touchpoints.RELOAD_PUT_BACK.get()(module, info)
        info.reset()
