# SPDX-License-Identifier: Apache-2.0
"""Judges a trial and says it in Markdown."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from tests.benchmarks.intervals import Estimate, mcnemar, ratio_over_groups, wilson
from tests.benchmarks.loop_rules import Outcome, entries, has_left_a_loop, outcome
from tests.benchmarks.markdown import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.benchmarks.answers import Answer
    from tests.benchmarks.divergence import Drift
    from tests.benchmarks.short_lists import ShortList
    from tests.benchmarks.trial import Arm, Trial


def render(trial: Trial, short_lists: Sequence[ShortList]) -> str:
    """The whole report."""
    return "\n".join(
        [
            f"# Loops on list prompts: {trial.patch_id}",
            "",
            f"{trial.engine}, greedy, chat template, {trial.max_tokens} new tokens; intervals are 95 %.",
            "",
            *_loops(trial),
            *_changes(trial),
            *_changed_prompts(trial),
            *_short(trial, short_lists),
            *_healthy(trial),
            *_healthy_by_reply(trial),
        ]
    )


def outcomes(answers: Iterable[Answer]) -> list[Outcome]:
    """How each answer ended."""
    return [outcome(answer.tokens, answer.text, answer.complete) for answer in answers]


def _loops(trial: Trial) -> list[str]:
    rows = [_loops_row(arm) for arm in trial.arms]
    prompts = len(trial.arms[0].lists)
    head = ["arm", "neurons", "norm", "verbatim", "decay", "any loop", "rate (Wilson)", "looped, then left"]
    head += ["ended by itself", "of these in a loop", "mean tokens", "median distinct entries"]
    note = (
        "`norm`: of the edited down-projection columns, relative to the patch's. `distinct entries`: different lines "
        "or pieces of an answer, whether right or not; an answer without a list has few."
    )
    return [f"## Loops ({prompts} prompts)", "", *table(head, rows), "", note, ""]


def _loops_row(arm: Arm) -> list[str]:
    found = outcomes(arm.lists)
    looped = sum(kind != "none" for kind in found)
    ended = [kind for kind, answer in zip(found, arm.lists, strict=True) if answer.complete]
    return [
        arm.name,
        _neurons(arm),
        "" if arm.norm_ratio is None else f"{arm.norm_ratio:.2f}",
        str(found.count("verbatim")),
        str(found.count("decay")),
        str(looped),
        _percent(wilson(looped, len(found))),
        str(sum(_has_left(answer, kind) for answer, kind in zip(arm.lists, found, strict=True))),
        str(len(ended)),
        str(sum(kind != "none" for kind in ended)),
        f"{sum(len(answer.tokens) for answer in arm.lists) / len(arm.lists):.1f}",
        f"{median(_distinct(answer) for answer in arm.lists):g}",
    ]


def _has_left(answer: Answer, found: Outcome) -> bool:
    return found == "none" and has_left_a_loop(answer.tokens, answer.text, answer.complete)


def _distinct(answer: Answer) -> int:
    return len(set(entries(answer.text)) - {""})


def _neurons(arm: Arm) -> str:
    shown = ", ".join(f"{layer}/{index}" for layer, index in arm.neurons[:3])
    return shown + (", ..." if len(arm.neurons) > 3 else "")


def _changes(trial: Trial) -> list[str]:
    base = trial.arm("unpatched")
    rows = [_changes_row(base, arm) for arm in trial.arms if arm is not base]
    head = ["arm", "rescued", "newly looping", "looping in both", "of these the other kind", "McNemar p"]
    head += ["rescued, loops left included", "newly", "McNemar p", "same text"]
    return ["## Against the unpatched arm, prompt by prompt", "", *table(head, rows), ""]


def _changes_row(base: Arm, arm: Arm) -> list[str]:
    before, after = outcomes(base.lists), outcomes(arm.lists)
    paired = mcnemar([kind != "none" for kind in before], [kind != "none" for kind in after])
    ever = mcnemar(_ever_looped(base.lists, before), _ever_looped(arm.lists, after))
    other = sum(first != second and "none" not in (first, second) for first, second in zip(before, after, strict=True))
    return [
        arm.name,
        *map(str, (paired.rescued, paired.newly, paired.both, other)),
        f"{paired.p:.3f}",
        *map(str, (ever.rescued, ever.newly)),
        f"{ever.p:.3f}",
        str(_same(base.lists, arm.lists)),
    ]


def _ever_looped(answers: Sequence[Answer], found: Sequence[Outcome]) -> list[bool]:
    return [kind != "none" or _has_left(answer, kind) for answer, kind in zip(answers, found, strict=True)]


def _changed_prompts(trial: Trial) -> list[str]:
    """What became of the prompts that the patch rescued or made loop: an answer that stops at once is rescued too."""
    base, patched = trial.arm("unpatched"), trial.arm("patch")
    rows = [
        [before.prompt, *_described(before, old), *_described(after, new)]
        for before, after, old, new in zip(
            base.lists, patched.lists, outcomes(base.lists), outcomes(patched.lists), strict=True
        )
        if (old == "none") != (new == "none")
    ]
    head = ["prompt", "unpatched", "distinct entries", "tokens", "patch", "distinct entries", "tokens"]
    return ["Prompts that loop in one of the two arms, unpatched or patch:", "", *table(head, rows), ""]


def _described(answer: Answer, found: Outcome) -> list[str]:
    how = "ended" if answer.complete else "cut"
    kind = "left a loop" if _has_left(answer, found) else found
    return [f"{kind}, {how}", str(_distinct(answer)), str(len(answer.tokens))]


def _short(trial: Trial, short_lists: Sequence[ShortList]) -> list[str]:
    base, patched = trial.arm("unpatched"), trial.arm("patch")
    rows = [_short_row(base, arm, short_lists) for arm in trial.arms]
    lines = [f"## Short lists with a known answer ({len(short_lists)})", ""]
    lines += [*table(["arm", "right", "lost", "won", "same text"], rows), "", "Texts that the patch changes:", ""]
    for one, before, after in zip(short_lists, base.short, patched.short, strict=True):
        if before.text != after.text:
            lines += [f"**{one.prompt}**", "", *_quoted("unpatched", one, before), *_quoted("patch", one, after)]
    return lines


def _short_row(base: Arm, arm: Arm, short_lists: Sequence[ShortList]) -> list[str]:
    before, after = _right(short_lists, base.short), _right(short_lists, arm.short)
    paired = mcnemar(before, after)
    return [arm.name, str(sum(after)), str(paired.rescued), str(paired.newly), str(_same(base.short, arm.short))]


def _right(short_lists: Sequence[ShortList], answers: Sequence[Answer]) -> list[bool]:
    return [one.is_right(answer.text, answer.complete) for one, answer in zip(short_lists, answers, strict=True)]


def _quoted(name: str, one: ShortList, answer: Answer) -> list[str]:
    verdict = "right" if one.is_right(answer.text, answer.complete) else "not right"
    end = "" if answer.complete else ", cut"
    return [f"{name} ({verdict}, {len(answer.tokens)} tokens{end}):", "", "```text", answer.text.strip(), "```", ""]


def _healthy(trial: Trial) -> list[str]:
    arms = [arm for arm in trial.arms if arm.drifts]
    tokens = sum(drift.tokens for drift in arms[0].drifts)
    head = [
        "arm",
        "KL(unpatched \u2016 arm), nats a token",
        "top-1 agreement",
        "perplexity, unpatched",
        "perplexity, arm",
    ]
    rows = [[arm.name, *_drift_cells(arm.drifts)] for arm in arms]
    title = f"## Healthy text ({len(arms[0].drifts)} replies, {tokens} tokens; intervals resample replies)"
    return [title, "", *table(head, rows), ""]


def _healthy_by_reply(trial: Trial) -> list[str]:
    rows = [[drift.reply, str(drift.tokens), *_drift_cells([drift])] for drift in trial.arm("patch").drifts]
    head = ["reply, under the patch", "tokens", "KL", "top-1 agreement", "perplexity, unpatched", "perplexity, patch"]
    return [*table(head, rows), ""]


def _drift_cells(drifts: Sequence[Drift]) -> list[str]:
    tokens = sum(drift.tokens for drift in drifts)
    kl = ratio_over_groups([drift.kl for drift in drifts], [drift.tokens for drift in drifts])
    return [
        f"{kl.value:.5f}" + (f" ({kl.low:.5f} to {kl.high:.5f})" if len(drifts) > 1 else ""),
        f"{100 * sum(drift.agreed for drift in drifts) / tokens:.1f} %",
        f"{math.exp(sum(drift.base_loss for drift in drifts) / tokens):.3f}",
        f"{math.exp(sum(drift.patched_loss for drift in drifts) / tokens):.3f}",
    ]


def _same(first: Sequence[Answer], second: Sequence[Answer]) -> int:
    return sum(one.tokens == other.tokens for one, other in zip(first, second, strict=True))


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
