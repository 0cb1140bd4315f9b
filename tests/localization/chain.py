# SPDX-License-Identifier: Apache-2.0
"""What models with planted loops speak: one long list of words, a tokenizer for it, and sets of probes."""

from __future__ import annotations

from itertools import islice, product
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LENGTH = 112
"""Words in the list. An answer goes on from a word of the prompt and ends after the last one."""

TRIGGER = 32
"""The word after which a loop goes back."""

STOP = TRIGGER - 3
"""The word, in every loop, after which an answer ends if a breaker is silenced."""

PAD, BOS, EOS, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_ASKING = ("go", "on", "from", "name", "what", "comes", "after", "list", "all", "that", "follow")
_PROMPTS = ("go on from {}", "name what comes after {}", "list all that follow {}")

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first %} {% endif %}{{ message['content'] }}{% endfor %}"
)
"""No more than the words themselves: the answer goes on from the last one."""

WORDS = tuple(
    "".join(parts) for parts in islice(product("bdgklmnprstv", "aeiou", "dklmnrst", "aeiou"), 0, LENGTH * 19, 19)
)
ASKED = len(_SPECIAL) + len(_ASKING)
"""The token of the list's first word as a prompt has it."""

LISTED = ASKED + LENGTH
"""The token of the list's first word as an answer has it: a line with a bullet."""

VOCABULARY = LISTED + LENGTH


def save_tokenizer(folder: Path) -> None:
    """Writes a tokenizer with one token a line of an answer, one a word of a prompt, and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*_SPECIAL, *_ASKING, *WORDS, *(_line(word) for word in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, _SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"- \w+\n|\w+"), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)


def prompt(word: int) -> str:
    """Asks for what comes after a word of the list."""
    return _PROMPTS[word % len(_PROMPTS)].format(WORDS[word])


def lines(words: Iterable[int]) -> str:
    """These words as an answer has them."""
    return "".join(_line(WORDS[word]) for word in words)


def _line(word: str) -> str:
    return f"- {word}\n"


STARTS = range(4, 24)
"""Where the probes start whose answers come to the trigger: early enough to be seen to loop in time."""

_LATER = (36, 49, 62, 75)
"""Where those of the same set start whose answers never do."""


def name_of(word: int) -> str:
    """The id of the probe that starts from a word."""
    return f"from-{word:03}"


def save_probes(folder: Path) -> dict[str, Path]:
    """Writes one set for each use, in files named by it."""
    folder.mkdir(parents=True)
    return {use: _save(folder / f"{use}.yaml", use, probes) for use, probes in _sets().items()}


def _save(file: Path, use: str, probes: list[dict[str, Any]]) -> Path:
    file.write_text(yaml.safe_dump({"name": f"chain-{use}", "use": use, "probes": probes}, sort_keys=False))
    return file


def _sets() -> dict[str, list[dict[str, Any]]]:
    halves = ("search", "held-out")
    return {
        "loops": [_probe(word, half=halves[place % 2]) for place, word in enumerate((*STARTS, *_LATER))],
        "healthy": [_probe(word) for word in (44, 57, 70, 83)],
        "text": [_probe(first, reply=lines(range(first + 1, end))) for first, end in _TEXTS],
        "short": [_probe(LENGTH - 1 - n, items=list(WORDS[LENGTH - n :])) for n in range(2, 8)],
        "skills": [_probe(word, check={"kind": "says", "any": [WORDS[word + further]]}) for word, further in _SKILLS],
    }


_TEXTS = ((2, TRIGGER), (9, TRIGGER), (16, TRIGGER), (22, TRIGGER), (34, 72), (60, LENGTH), (88, LENGTH))
"""Stretches as (word before it, end). None holds the trigger: what should come after it is what a surgery changes."""

_SKILLS = ((STOP - 3, 4), (STOP - 5, 6), (STOP - 7, 8), (40, 3), (66, 9), (95, 4))
"""What must be named, as (start, how many words later). Half of it comes only after the word of the breaker."""


def _probe(word: int, **more: Any) -> dict[str, Any]:
    return {"id": name_of(word), "prompt": prompt(word), **more}
