# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Signs of other scripts are what these texts are made of.)
"""Reasoning in circles: self-correction in German, Chinese, Spanish, French and Japanese, and plans without a cue.

Templates of ours, as `tests.corpora.reasoning` is for English: they say how text of this form is treated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import NOUNS, PEOPLE, VERBS, name
from tests.corpora.loops.text_loop import TextLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

TURNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "german": (
        "Ich soll bestimmen, was {x} ist. Es kommt {a} in Frage, vielleicht auch {b}.",
        (
            "Moment, ich rechne noch einmal nach. Das Ergebnis ist {a}.", "Nein, eigentlich ist es {b}.",
            "Warte, nochmal: {a}.", "Doch, es bleibt bei {b}.", "Halt, das stimmt nicht. Es muss {a} sein.",
            "Hm, {a} passt nicht zu {x}.", "Aber nein, {b} ist falsch.", "Stopp, vielleicht doch {a}?",
            "Also, lass mich das nochmal prüfen: {b}.", "Oder ist es {a}? Ich bin nicht sicher.",
        ),
    ),
    "chinese": (
        "我要判断{x}是什么。可能是{a}，也可能是{b}。",
        (
            "等等，我再检查一下。答案是{a}。", "不对，应该是{b}。", "等一下，也许是{a}。", "嗯，{a}不符合条件。",
            "其实是{b}。", "让我重新考虑一下，{x}是{a}吗？", "不，还是{b}。", "再想想，{a}好像不对。", "或者是{a}？我不确定。",
        ),
    ),
    "spanish": (
        "Tengo que decidir qué es {x}. Puede ser {a} o {b}.",
        (
            "Espera, voy a comprobarlo otra vez. Es {a}.", "No, en realidad es {b}.", "Un momento, puede ser {a}.",
            "Hmm, {a} no encaja con {x}.", "Pero espera, {b} está mal.", "Déjame revisar: el resultado es {a}.",
            "Bueno, entonces es {b}.", "A ver, otra vez: {a}.", "¿O es {a}? No estoy seguro.", "Mejor dicho, {b}.",
        ),
    ),
    "french": (
        "Je dois dire ce qu'est {x}. C'est {a} ou bien {b}.",
        (
            "Attends, je vérifie encore une fois. C'est {a}.", "Non, en fait c'est {b}.", "Attendez, peut-être {a}.",
            "Hmm, {a} ne va pas avec {x}.", "Mais non, {b} est faux.", "Laisse-moi revoir : le résultat est {a}.",
            "Un instant, je me suis trompé : {b}.", "Bon, reprenons : {a}.", "Ou alors {a} ? Je ne suis pas sûr.",
        ),
    ),
    "japanese": (
        "{x}が何かを決めます。{a}か{b}のどちらかです。",
        (
            "待って、もう一度確認します。答えは{a}です。", "いや、実は{b}です。", "ちょっと待って、{a}かもしれません。",
            "うーん、{a}は条件に合いません。", "やはり{b}です。", "もう一度考えます。{x}は{a}ですか？", "違う、{b}のはずです。",
            "いいえ、{a}です。", "でも、{b}は間違いです。",
        ),
    ),
}  # fmt: skip
"""By language: how the answer begins, and the turns among which it goes round."""

_OTHER_THINGS = {
    "chinese": ("三", "四", "甲", "乙", "北京", "上海"),
    "japanese": ("三", "四", "東京", "大阪", "左", "右"),
}


def _things(random: Random, language: str) -> tuple[str, str, str]:
    if language in _OTHER_THINGS:
        a, b, x = random.sample(_OTHER_THINGS[language], 3)
        return a, b, x
    number = random.randrange(2, 90)
    pairs = ((str(number), str(number + 1)), tuple(random.sample(PEOPLE, 2)), (name(random), name(random)))
    a, b = random.choice(pairs)
    return a, b, name(random)


def circle_in(language: str) -> Callable[[Random], TextLoop]:
    """Makes circles of self-correction in a language, of five turns or more that come in no order."""

    def make(random: Random) -> TextLoop:
        start, all_turns = TURNS[language]
        a, b, x = _things(random, language)
        said = random.sample(all_turns, random.randrange(4, len(all_turns) + 1))
        line = [one.format(a=a, b=b, x=x) for one in said]
        separator = random.choice(("\n", "\n\n", "" if language in _OTHER_THINGS else " "))
        turns = separator.join(random.choice(line) for _ in range(random.randrange(40, 90)))
        return TextLoop(("doom",), random.choice(("<think>\n", "")) + start.format(a=a, b=b, x=x) + "\n", turns)

    return make


_PLANS = (
    "First I will {v} the {a}.", "Then I need to {v} the {b}.", "After that I should look at the {a} again.",
    "I have to make sure that the {b} is right.", "Next I will write the {a}.", "The {a} should come before the {b}.",
    "I will begin with the {b}.", "Now let me think about the {a}.", "I should also {v} the {a} and the {b}.",
    "Finally I will check the {b}.", "The user wants the {a}, so I must {v} it.", "I need to read the {b} first.",
)  # fmt: skip


def plan(random: Random) -> TextLoop:
    """The same five to nine steps of a plan in another order each time, without a word of doubt, and no work done."""
    a, b = random.sample(NOUNS, 2)
    verb = random.choice(VERBS).rstrip("s")
    steps = [one.format(a=a, b=b, v=verb) for one in random.sample(_PLANS, random.randrange(5, 10))]
    said: list[str] = []
    for _ in range(random.randrange(9, 16)):
        random.shuffle(steps)
        said += steps if random.random() < 0.7 else steps[:-1]
    separator = random.choice((" ", "\n", "\n\n"))
    return TextLoop(("doom", "decay"), f"Let me plan how to work on the {a}.\n\n", separator.join(said))


FAMILIES: dict[str, tuple[int, Callable[[Random], TextLoop]]] = {
    **{f"doom:{language}": (40, circle_in(language)) for language in TURNS},
    "doom:plan": (60, plan),
}
