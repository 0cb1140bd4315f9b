# SPDX-License-Identifier: Apache-2.0
"""Hooks in one layer that sum its units' activities over groups of a transcript's rows.

Sums are float64, of numbers in whatever format the model computes in. A hook never raises, since that would end the
engine; it never changes what the model computes with either.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from vllm_surgery.engine import touchpoints
from vllm_surgery.errors import EngineError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Rows:
    """Position of a layer in a transcript, which may arrive in several chunks.

    Args:
        total: rows of the transcript. What comes after them is none of it.
        groups: rows that are added up, each group apart.
    """

    def __init__(self, total: int, groups: tuple[range, ...]) -> None:
        self.total, self.groups, self.seen = total, groups, 0

    def take(self, count: int) -> list[slice]:
        """Slice of the next `count` rows for each group, often empty, counted from the first of them."""
        first = self.seen
        self.seen = min(first + count, self.total)
        return [_overlap(group, first, self.seen) for group in self.groups]


def _overlap(group: range, first: int, stop: int) -> slice:
    start, end = max(group.start, first) - first, min(group.stop, stop) - first
    return slice(start, max(end, start))


class _Recorder:
    """Base of recorders: one module of the model, and the first error there."""

    kind: str

    def __init__(self, layer: int, path: str, module: Any, rows: Rows) -> None:
        self.layer, self.path, self.module, self.rows = layer, path, module, rows
        self.error: str | None = None

    def _guarded(self, record: Callable[..., None], *args: Any) -> None:
        if self.error is not None or self.rows.seen >= self.rows.total:
            return
        try:
            record(*args)
        except Exception as error:  # See the module's docstring.
            self.error = one_line(f"{type(error).__name__}: {error}", 300)

    def _means(self, what: str, sums: list[torch.Tensor]) -> list[bytes]:
        """Mean per row of each group, as the bytes of float32 numbers; zeros for a group without rows."""
        counts = [max(len(group), 1) for group in self.rows.groups]
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        if not all(bool(torch.isfinite(mean).all()) for mean in means):
            raise EngineError(f"layer {self.layer}: {what} of {self.path} are not all finite numbers")
        return [mean.to("cpu", torch.float32).numpy().tobytes() for mean in means]


class NeuronRecorder(_Recorder):
    """Sums each neuron's activation ``act(gate) * up``, the input of a dense MLP's down projection."""

    kind = "neurons"

    def __init__(self, layer: int, path: str, module: Any, rows: Rows) -> None:
        super().__init__(layer, path, module, rows)
        self._handle: Any = None
        self._sums: list[torch.Tensor] = []
        self._sizes: list[torch.Tensor] = []

    def start(self) -> None:
        """Installs the hook."""
        self._handle = self.module.register_forward_pre_hook(lambda module, args: self._guarded(self._record, args[0]))

    def stop(self) -> None:
        """Removes the hook, if it is installed."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def result(self) -> dict[str, Any]:
        """The recorded means, as plain data.

        Returns:
            ``kind`` and ``layer``; ``offset``, the first of this rank's neurons; ``mean`` and ``size``, for each group
            the bytes of each neuron's mean activation and mean absolute activation, float32.

        Raises:
            EngineError: a number isn't finite.
        """
        linear = getattr(self.module, "base_layer", self.module)  # An adapter may lie around it.
        width = len(self._sums[0])
        offset = width * int(getattr(linear, "tp_rank", 0))
        means = self._means("activations", self._sums)
        sizes = self._means("activations", self._sizes)
        return {"kind": self.kind, "layer": self.layer, "offset": offset, "mean": means, "size": sizes}

    def _record(self, activations: torch.Tensor) -> None:
        rows = activations.reshape(-1, activations.shape[-1])
        if not self._sums:
            self._sums = [_zeros(rows.shape[-1], rows.device) for _ in self.rows.groups]
            self._sizes = [_zeros(rows.shape[-1], rows.device) for _ in self.rows.groups]
        for group, part in enumerate(self.rows.take(rows.shape[0])):
            if part.stop > part.start:
                self._sums[group] += rows[part].sum(0, dtype=torch.float64)
                self._sizes[group] += rows[part].abs().sum(0, dtype=torch.float64)


class ExpertRecorder(_Recorder):
    """Counts how often each expert is chosen, and sums the norms of its contributions.

    A contribution is an expert's output times its router weight, times the layer's own scale of all outputs. Each of
    a router's choices is asked for by itself, through the layer's own kernel with the weights of all others zero: the
    same in every number format, at the cost of the experts once more a choice. Kernels that choose experts
    themselves can't be asked so: they give no norms, and what they choose is computed beside them. In models whose
    experts work in a space of their own (latent experts) the norms are of that space.
    """

    kind = "experts"

    def __init__(self, layer: int, path: str, module: Any, rows: Rows) -> None:
        super().__init__(layer, path, module, rows)
        self._experts = int(module.moe_config.num_logical_experts)
        self._counts: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] | None = []

    def start(self) -> None:
        """Installs the hooks as attributes of the instance, which come before those of its class."""
        experts = self.module.routed_experts
        for point, make in self._hooks():
            if point.name in experts.__dict__:
                raise EngineError(f"{self.path}: {point.name} is already replaced by something else")
            experts.__dict__[point.name] = make(getattr(experts, point.name))

    def stop(self) -> None:
        """Removes the hooks, if they are installed."""
        for point, _ in self._hooks():
            found = self.module.routed_experts.__dict__.get(point.name)
            if getattr(found, "_vllm_surgery_recorder", None) is self:
                del self.module.routed_experts.__dict__[point.name]

    def result(self) -> dict[str, Any]:
        """The recorded means, as plain data.

        Returns:
            ``kind`` and ``layer``; ``frequency``, for each group the bytes of each expert's share of rows, float32;
            ``norm``, the same of the mean norm of its contribution, zero in rows that don't choose it, or None.

        Raises:
            EngineError: a number isn't finite.
        """
        frequency = self._means("choices", self._counts)
        norm = None if self._norms is None else self._means("contributions", self._norms)
        return {"kind": self.kind, "layer": self.layer, "frequency": frequency, "norm": norm}

    def _hooks(self) -> Iterator[tuple[touchpoints.TouchPoint, Callable[[Callable[..., Any]], Callable[..., Any]]]]:
        yield touchpoints.CHOSEN_EXPERTS, self._around_chosen
        yield touchpoints.UNCHOSEN_EXPERTS, self._around_unchosen

    def _around_chosen(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(
            x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            self._guarded(self._record, x, topk_weights, topk_ids, original)
            return original(x, topk_weights, topk_ids, *args, **kwargs)

        return self._mark(forward)

    def _around_unchosen(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(x: torch.Tensor, router_logits: torch.Tensor, input_ids: torch.Tensor | None = None) -> Any:
            self._guarded(self._record_logits, x, router_logits, input_ids)
            return original(x, router_logits, input_ids)

        return self._mark(forward)

    def _mark(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        hook._vllm_surgery_recorder = self  # type: ignore[attr-defined]
        return hook

    def _record_logits(self, x: torch.Tensor, logits: torch.Tensor, input_ids: torch.Tensor | None) -> None:
        route = touchpoints.MOE_ROUTING.of(self.module.router)
        # It may change the logits in place.
        weights, ids = route(x, logits.clone(), torch.int32, input_ids=input_ids)
        self._record(x, weights, ids, None)

    def _record(
        self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, apply: Callable[..., Any] | None
    ) -> None:
        if not self._counts:
            self._counts = [_zeros(self._experts, x.device) for _ in self.rows.groups]
            self._norms = None if apply is None else [_zeros(self._experts, x.device) for _ in self.rows.groups]
        for group, part in enumerate(self.rows.take(x.shape[0])):
            if part.stop > part.start:
                chosen = ids[part].long()
                self._add(self._counts[group], chosen, torch.ones_like(chosen, dtype=torch.float64))
                norms = None if apply is None else self._contributions(x[part], weights[part], ids[part], apply)
                if norms is None or self._norms is None:
                    self._norms = None
                else:
                    self._add(self._norms[group], chosen, norms)

    def _add(self, sums: torch.Tensor, chosen: torch.Tensor, values: torch.Tensor) -> None:
        # Beside routed experts there may be shared ones, and choices that are no expert.
        routed = (chosen >= 0) & (chosen < self._experts)
        sums.index_add_(0, chosen[routed], values[routed])

    def _contributions(
        self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, apply: Callable[..., Any]
    ) -> torch.Tensor | None:
        """Norm of each choice's contribution, ``[rows, choices]`` float64; None where the kernel gives no plain sum."""
        norms = torch.zeros(weights.shape, dtype=torch.float64, device=x.device)
        for choice in range(weights.shape[1]):
            alone = torch.zeros_like(weights)
            alone[:, choice] = weights[:, choice]
            # Kernels may work in place, so each is given tensors of its own.
            output = apply(x.clone(), alone, ids.clone())
            if not isinstance(output, torch.Tensor):
                return None
            norms[:, choice] = torch.linalg.vector_norm(self._whole(output), dim=-1, dtype=torch.float64)
        return norms * abs(float(self.module.routed_scaling_factor))

    def _whole(self, output: torch.Tensor) -> torch.Tensor:
        """Sum of `output` over all ranks, all of which come here, since they choose alike."""
        config = self.module.moe_config
        if (config.tp_size > 1 or config.ep_size > 1) and not touchpoints.OUTPUT_REDUCED.of(self.module):
            reduced: torch.Tensor = touchpoints.ALL_REDUCE.get()(output)
            return reduced
        return output


def _zeros(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64, device=device)
