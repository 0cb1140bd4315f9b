# SPDX-License-Identifier: Apache-2.0
"""What slots take of a large model on a GPU, by calculation: the table in docs/slots.md.

python -m tests.docs.slot_sizes
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.markdown import table

SLOTS = 8
BATCH = 24
NEURON_BYTES, EXPERT_BYTES = 8, 5
"""A gain and an addend in float32; a gain in float32 and a mask."""
ACTIVATION_BYTES = 2
"""Of bfloat16."""


@dataclass(frozen=True)
class Shape:
    """A model, as far as slots depend on it.

    Attributes:
        name: of the model.
        layers: how many there are, all alike.
        width: neurons of a layer's dense MLP.
        experts: routed experts of a layer.
        chosen: of which each token gets so many.
        parameters: that one token is multiplied by.
    """

    name: str
    layers: int
    width: int
    experts: int
    chosen: int
    parameters: float

    @property
    def table_bytes(self) -> int:
        """Of the tables of all slots, the row for no patch among them."""
        return (SLOTS + 1) * self.layers * (NEURON_BYTES * self.width + EXPERT_BYTES * self.experts)

    @property
    def operations(self) -> int:
        """On numbers, for one token: a gain and an addend, a mask of all logits, a gain of the chosen experts."""
        return self.layers * (2 * self.width + self.experts + self.chosen)

    def step_bytes(self, tokens: int) -> int:
        """Read and written in one step that computes so many tokens, each of another patch as far as there are some.

        The rows of their slots are read once. Activations are read and written once more, which is left out where a
        compiler joins the gain with the activation function before it.
        """
        rows = min(tokens, SLOTS + 1)
        neurons = self.layers * self.width
        return NEURON_BYTES * rows * neurons + 2 * ACTIVATION_BYTES * tokens * neurons


SHAPES = (
    Shape("31B, dense (Gemma 4)", layers=60, width=21_504, experts=0, chosen=0, parameters=31e9),
    Shape("26B-A4B, experts (Gemma 4)", layers=30, width=2_112, experts=128, chosen=8, parameters=4e9),
)


def lines() -> list[str]:
    """The table."""
    return table(["model", "tables", "operations a token", f"bytes of a step, {BATCH} tokens"], map(_row, SHAPES))


def _row(shape: Shape) -> list[str]:
    tables = f"{shape.table_bytes / 1e6:.1f} MB"
    operations = f"{shape.operations / 1e6:.2f} million ({_share(shape.operations, 2 * shape.parameters)})"
    step = shape.step_bytes(BATCH)
    return [shape.name, tables, operations, f"{step / 1e6:.0f} MB ({_share(step, 2 * shape.parameters)})"]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2g} %"


if __name__ == "__main__":
    print("\n".join(lines()))
