# SPDX-License-Identifier: Apache-2.0
"""Alert rules. Each fires on evidence, not on a few answers: rates are compared by the ends of their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deploy.monitoring.queries import now, total, wilson
from deploy.monitoring.recording import ANSWERS, LOOPED, LOWER, PAST_ANSWERS, PAST_LOOPED, UPPER

if TYPE_CHECKING:
    from deploy.monitoring.files import Data

ENOUGH = 50
"""Answers in the time that is judged. With that many, 6 loops are the fewest that speak for more than `BOUND`."""

BOUND = 0.05
"""The loop rate that is too high whatever it was before: one answer in twenty is what people begin to notice. Traffic
that is made of long lists may need another number."""

QUIET = "15m"
"""A looping request that ends no sooner than this is stuck: 4,096 tokens at 10 a second take seven minutes."""


@dataclass(frozen=True)
class Alert:
    """An alert rule.

    Attributes:
        name: in CamelCase.
        expression: PromQL.
        holds: for how long it has to be true.
        severity: page for ``critical``, look at ``warning`` the same day.
        summary: one line, with Prometheus' templates.
        description: what it means and what to do.
    """

    name: str
    expression: str
    holds: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str

    def data(self) -> Data:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.holds,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description},
        }


_MODEL, _PATCH, _TARGET = "job, model_name", "job, model_name, patch", "job, instance, model_name"
_LOOPS_OF_PATCH, _LOOPS_OF_MODEL = now(LOOPED.name, _PATCH), now(LOOPED.name, _MODEL)
_ANSWERS_OF_MODEL = now(ANSWERS.name, _MODEL)
_OF_PATCH = "on (job, model_name, patch)"
_INFO = f'max by ({_TARGET}, patch) (vllm_surgery_patch_info{{{{state="{{}}"}}}}) == 1'
# A patch that was swapped out is no longer anybody's trouble. Servers without our routes don't say what is active.
_STILL_SERVED = f'unless {_OF_PATCH} max by ({_PATCH}) (vllm_surgery_patch_info{{state="active"}}) == 0'
_FAILED = 'vllm_surgery_swaps_total{result=~"undone|mixed|error"}'

LOOP_RATE_HIGH = Alert(
    "VllmSurgeryLoopRateHigh",
    f"{wilson(_LOOPS_OF_PATCH, ANSWERS.name, 'lower')} > {BOUND}\n"
    f"and {_OF_PATCH} {ANSWERS.name} >= {ENOUGH}\n{_STILL_SERVED}",
    "10m",
    "warning",
    "{{ $labels.model_name }} loops under patch {{ $labels.patch }}",
    f"Of the answers of the last hour more than {BOUND:.0%} looped (at least {{{{ $value | humanizePercentage }}}}, "
    "the lower end of the 95 % interval). See which kind on the dashboard; a patch for it may help.",
)
LOOP_RATE_RISEN = Alert(
    "VllmSurgeryLoopRateRisen",
    f"{wilson(_LOOPS_OF_MODEL, _ANSWERS_OF_MODEL, 'lower')}\n"
    f"> {wilson(PAST_LOOPED.name, PAST_ANSWERS.name, 'upper')}\n"
    f"and {_ANSWERS_OF_MODEL} >= {ENOUGH}\nand {PAST_ANSWERS.name} >= {ENOUGH}",
    "10m",
    "warning",
    "{{ $labels.model_name }} loops more than it did",
    "The loop rate of the last hour (at least {{ $value | humanizePercentage }}) is above that of the day before, and "
    "chance doesn't explain it. Look for a swap or a change of the traffic at the time it began to rise.",
)
PATCH_DECAYS = Alert(
    "VllmSurgeryPatchDecays",
    f'({LOWER.name}{{kind="decay"}} and {_OF_PATCH} {ANSWERS.name} >= {ENOUGH})\n'
    f"> on ({_MODEL}) group_left ()\n"
    f'min by ({_MODEL}) ({UPPER.name}{{kind="decay"}} and {_OF_PATCH} {ANSWERS.name} >= {ENOUGH})\n'
    f"{_STILL_SERVED}",
    "10m",
    "warning",
    "{{ $labels.model_name }} decays under patch {{ $labels.patch }} and less so under another",
    "Of the answers of the last hour at least {{ $value | humanizePercentage }} collapsed onto a few entries, more "
    "than under another patch that served the same model, and chance doesn't explain it. A patch that ends verbatim "
    "loops and brings decay cures nothing: swap back.",
)
REQUESTS_STUCK = Alert(
    "VllmSurgeryRequestsStuck",
    f"min_over_time(sum by ({_TARGET}) (vllm_surgery_looping_requests)[{QUIET}:1m]) > 0\n"
    f"and {total('increase', 'vllm_surgery_loops_total', QUIET, _TARGET)} == 0",
    "5m",
    "warning",
    "Looping requests of {{ $labels.model_name }} on {{ $labels.instance }} do not end",
    "{{ $value }} request(s) have been in a loop for all of the last quarter of an hour, and none that looped has "
    "ended. They hold their part of the KV cache: see that requests have a `max_tokens`.",
)
NOT_DESIRED = Alert(
    "VllmSurgeryPatchNotDesired",
    f"({_INFO.format('desired')})\nunless on ({_TARGET}, patch)\n({_INFO.format('active')})",
    "5m",
    "warning",
    "{{ $labels.instance }} does not serve {{ $labels.model_name }} with {{ $labels.patch }}",
    "The files that this server follows ask for that patch, and another one is active: the swap was refused or failed, "
    "or somebody has swapped by hand. `vllm-surgery status` and the server's log say which.",
)
FILES_REFUSED = Alert(
    "VllmSurgeryPatchFileRefused",
    f'max by ({_TARGET}) (vllm_surgery_patch_info{{state="desired"}}) == 0',
    "2m",
    "warning",
    "{{ $labels.instance }} refuses the patch files that it follows",
    "The server goes on with what it had. `vllm-surgery status` says what is wrong with which file.",
)
SWAP_FAILED = Alert(
    "VllmSurgerySwapFailed",
    # The counter of a patch's first failure begins at one, of which a rate sees nothing: hence the second half.
    f"sum by ({_TARGET}, patch, result) (increase({_FAILED}[{QUIET}])) > 0\n"
    f"or sum by ({_TARGET}, patch, result) ({_FAILED} unless {_FAILED} offset {QUIET}) > 0",
    "0m",
    "critical",
    "A swap to {{ $labels.patch }} on {{ $labels.instance }} ended as {{ $labels.result }}",
    "undone: a rank failed, and every rank has what it had before. mixed: undoing failed too, and the engine was "
    "stopped rather than serve mixed weights; `/health` fails from then on. error: see the server's log.",
)
RESCUES_FAIL = Alert(
    "VllmSurgeryRescuesLoopAgain",
    wilson(
        total("increase", 'vllm_surgery_rescues_total{action!="stop", outcome="looped_again"}', "1h", _PATCH),
        total("increase", 'vllm_surgery_rescues_total{action!="stop"}', "1h", _PATCH),
        "lower",
        _OF_PATCH,
    )
    + " > 0.5",
    "10m",
    "warning",
    "Most rescued answers of {{ $labels.model_name }} under patch {{ $labels.patch }} loop again",
    "At least {{ $value | humanizePercentage }} of the rescues of the last hour were followed by another loop, so they "
    "spend tokens and cure little. Try another action, or let it be followed by stop.",
)
DETECTOR_ERRORS = Alert(
    "VllmSurgeryDetectorErrors",
    f"{total('increase', 'vllm_surgery_detector_errors_total', '1h', _TARGET)} > 0",
    "0m",
    "warning",
    "A loop detector failed on {{ $labels.instance }}",
    "About {{ $value | humanize }} answer(s) of the last hour were not watched to their end, so loops are missing from "
    "the counts. Answers themselves are not touched. The log names the error; please report it.",
)
NOT_WATCHING = Alert(
    "VllmSurgeryNotWatching",
    f"min by ({_TARGET}) (vllm_surgery_watching) == 0\n"
    f"or (\n{total('rate', 'vllm_surgery_output_tokens_total', '10m', _TARGET)} == 0\n"
    f"and {total('rate', 'vllm:generation_tokens_total', '10m', _TARGET)} > 0\n)",
    "5m",
    "warning",
    "{{ $labels.instance }} serves {{ $labels.model_name }} and no longer watches it",
    "The gauge says so, or tokens are made and none are counted: watching has failed and switched itself off. The log "
    "says why; a restart switches it on.",
)

ALERTS = (
    LOOP_RATE_HIGH,
    LOOP_RATE_RISEN,
    PATCH_DECAYS,
    REQUESTS_STUCK,
    NOT_DESIRED,
    FILES_REFUSED,
    SWAP_FAILED,
    RESCUES_FAIL,
    DETECTOR_ERRORS,
    NOT_WATCHING,
)


def group() -> Data:
    """The rules as Prometheus reads them."""
    return {"name": "vllm-surgery.alerts", "rules": [alert.data() for alert in ALERTS]}
