# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Signs of other scripts.)
"""Words that begin a sentence of self-correction, in the languages in which models reason."""

from __future__ import annotations

from vllm_surgery.loops.characters import WHOLE, classes
from vllm_surgery.loops.counters import FACTOR
from vllm_surgery.loops.scanner import MODULUS, word_hash

_PHRASES = {
    "en": """wait; hmm; hm; actually; alternatively; oh; hold on; let me re; let me recheck; let me check; let me
          double; let me reconsider; let me rethink; let me verify; let me recount; let me think; let me try; let me
          start; let me see; on second thought; scratch that; maybe; or maybe; perhaps; sorry; my mistake""",
    "de": """moment; warte; nein; doch; halt; stopp; hm; hmm; oder; eigentlich; tatsächlich; lass mich; vielleicht;
        nochmal; noch einmal; ich prüfe; ich rechne; ich zähle""",
    "es": """espera; un momento; no; hmm; en realidad; déjame; dejame; a ver; o es; mejor dicho; quizás; tal vez;
          perdón; de hecho; otra vez""",
    "fr": """attends; attendez; non; hmm; en fait; laisse; laissez; un instant; ou alors; reprenons; peut être; pardon;
        à vrai dire; voyons; attention""",
    "pt": "espere; espera; não; um momento; na verdade; deixe me; deixa eu; talvez; ou será; na realidade",
    "it": "aspetta; no; un momento; in realtà; fammi; forse; anzi; vediamo; oppure",
    "ru": "подожди; подождите; стоп; нет; хм; на самом деле; или; возможно; давай; давайте; погоди",
    "nl": "wacht; nee; eigenlijk; hmm; laat me; misschien; of toch",
    "zh": """等等; 等一下; 不对; 不，; 其实; 嗯; 让我; 再想; 或者; 不过; 实际上; 且慢; 重新; 也许; 再检查; 慢着; 错了;
        我再""",
    "ja": """待って; ちょっと待; いや; いいえ; うーん; やはり; やっぱり; もう一度;
        違う; 違います; でも; 実は; あれ; えっと; いえ""",
    "ko": "잠깐; 아니; 음; 사실; 다시; 혹시; 아마",
}
_OPENERS = (
    "but so ok okay and well no yes aber also und mais et bon alors mas então pero y bueno entonces ma e но и "
    "а maar en 那 那么 但 但是 嗯 だ が"
)


def _is_whole(character: str) -> bool:
    return bool(classes()[ord(character)] == WHOLE)


def units_of(phrase: str) -> list[int]:
    """The hashes of a phrase's words, as the scanner makes them."""
    spaced = "".join(f" {one} " if _is_whole(one) else one for one in phrase)
    return [word_hash(word) for word in spaced.replace("，", " ").split()]


def _prefix_hashes(phrase: str) -> list[int]:
    hashes = [0]
    for unit in units_of(phrase):
        hashes.append((hashes[-1] * FACTOR + unit) % MODULUS)
    return hashes[1:]


_ALL = [one.strip() for phrases in _PHRASES.values() for one in phrases.split(";")]
_NO = "no"

CUES = tuple({_prefix_hashes(one)[-1] for one in _ALL if one != _NO})
"""Hashes of phrases that begin a turn where they begin a sentence."""

ENDING_CUES = (_prefix_hashes(_NO)[-1],)
"""Of those that do only if a comma follows: "No. 7" is a number, and "no" an answer."""

PREFIXES = tuple({hash_ for one in _ALL for hash_ in _prefix_hashes(one)[:-1]} - set(CUES))
"""Of their beginnings."""

OPENERS = tuple({unit for one in _OPENERS.split() for unit in units_of(one)} - set(CUES) - set(ENDING_CUES))
"""Words that may stand before a cue."""
