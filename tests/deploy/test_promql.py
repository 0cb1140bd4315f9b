# SPDX-License-Identifier: Apache-2.0
"""Which metrics and labels an expression asks for, and that none can be asked for that the code doesn't have."""

from __future__ import annotations

import pytest

from deploy.monitoring.catalog import Catalog
from deploy.monitoring.promql import Matcher, PromqlError, Selector, read

LOOPS = "vllm_surgery_loops_total"


def test_metric_matchers_and_grouping_are_found() -> None:
    (selector,) = read('sum by (job, kind) (rate(a_total{kind="x", job=~"b|c"}[5m]))').selectors
    matchers = (Matcher("kind", "=", "x"), Matcher("job", "=~", "b|c"))
    assert selector == Selector("a_total", matchers, ("job", "kind"))


def test_an_aggregation_groups_what_is_inside_it_only() -> None:
    inner, outer = read("sum by (kind) (a) + b").selectors
    assert (inner.grouped_by, outer.grouped_by) == (("kind",), ())


def test_functions_words_numbers_and_windows_are_no_metrics() -> None:
    text = 'clamp(sqrt(a[5m] offset 1h) * 1.96 + 1e-3, 0, 1) > bool 2 and on (x) group_left () b unless c{d="e and f"}'
    found = read(text)
    assert [selector.metric for selector in found.selectors] == ["a", "b", "c"]
    assert found.matched_on == ("x",)


@pytest.mark.parametrize("text", ["sum(a", "a)", "sum(a) by (b)", "sum without (b) (a)", "a{b=", "a ; b"])
def test_what_it_cannot_follow_is_refused(text: str) -> None:
    with pytest.raises(PromqlError):
        read(text)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("vllm_surgery_lops_total", "no such metric: vllm_surgery_lops_total"),
        (f'{LOOPS}{{knd="decay"}}', f"{LOOPS} has no label knd"),
        (f'{LOOPS}{{kind="decoy"}}', f"{LOOPS}: kind is never decoy"),
        (f'{LOOPS}{{kind=~"decay|decoy"}}', f"{LOOPS}: kind is never decoy"),
        ("sum by (kind) (vllm_surgery_requests_total)", "vllm_surgery_requests_total has no label kind"),
        (f"{LOOPS} / on (phase) {LOOPS}", "no metric here has the label phase"),
        ("vllm_surgery_swap_seconds", "no such metric: vllm_surgery_swap_seconds"),
        ("sum by (le) (vllm_surgery_swap_seconds_count)", "vllm_surgery_swap_seconds_count has no label le"),
        ("1 + 1", "no metric: "),
    ],
)
def test_what_the_code_does_not_have_is_refused(expression: str, error: str) -> None:
    with pytest.raises(PromqlError) as refused:
        Catalog().check(expression)
    assert error in str(refused.value)


@pytest.mark.parametrize(
    "expression",
    [
        f'sum by (job, instance, model_name, patch, kind, outcome) (rate({LOOPS}{{kind="decay", patch=~"$patch"}}[5m]))',
        "sum by (le) (vllm_surgery_swap_seconds_bucket)",
        'vllm_surgery_requests_total{finish_reason="a reason that vLLM may add"}',
    ],
)
def test_what_the_code_has_may_be_asked_for(expression: str) -> None:
    Catalog().check(expression)


def test_a_legend_names_labels_that_are_there() -> None:
    Catalog().check(LOOPS, "{{kind}} {{patch}}")
    with pytest.raises(PromqlError, match="no metric here has the label phase"):
        Catalog().check(LOOPS, "{{phase}}")


def test_a_variable_asks_for_values_of_a_label_that_is_there() -> None:
    Catalog().check_variable(f'label_values({LOOPS}{{job=~"$job"}}, patch)')
    with pytest.raises(PromqlError, match="no metric here has the label phase"):
        Catalog().check_variable(f"label_values({LOOPS}, phase)")
    with pytest.raises(PromqlError, match="not label_values"):
        Catalog().check_variable("query_result(up)")
