# SPDX-License-Identifier: Apache-2.0
"""The corpora are what their read-me says: large enough, the same every time, and labelled by its rules."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.corpora import labels as labels_module
from tests.corpora.files import read_records, write_records
from tests.corpora.further_models import LABELS, read_model_labels
from tests.corpora.healthy import FROM_THE_ENVIRONMENT, GENERATED, passages
from tests.corpora.labels import read_labels
from tests.corpora.loops import text_loops
from tests.corpora.make_manifest import entry_of, read_manifest
from tests.corpora.make_real import ANSWERS, SOURCES, requests
from tests.corpora.planted import DECAY, DOOM, VERBATIM, Planted, healthy_pool, planted, planted_texts, verbatim
from tests.corpora.samples import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # Makes some 7,700 passages, several times.


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return load_tokenizer(demo_model)


@pytest.fixture(scope="module")
def loops(tokenizer: Any) -> list[Planted]:
    return list(planted(_encoder(tokenizer), tokenizer.backend_tokenizer.get_vocab_size()))


def _encoder(tokenizer: Any) -> Any:
    return lambda text: list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def test_there_are_enough_healthy_passages_of_enough_classes_and_none_twice_in_a_class() -> None:
    found = list(passages())

    assert len(found) >= 5000
    assert len({passage.kind for passage in found}) >= 18
    assert len({(passage.kind, passage.text) for passage in found}) == len(found)
    assert len({passage.id for passage in found}) == len(found)


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_passages_are_those_that_the_manifest_records(kind: str) -> None:
    assert entry_of(kind) == read_manifest()[kind]


@pytest.mark.parametrize("kind", FROM_THE_ENVIRONMENT)
def test_a_class_from_the_environment_is_made_the_same_twice(kind: str) -> None:
    assert entry_of(kind) == entry_of(kind)


def test_the_manifest_records_every_class() -> None:
    assert set(read_manifest()) == {*FROM_THE_ENVIRONMENT, *GENERATED}


def test_every_request_for_a_real_answer_was_answered_once() -> None:
    assert [record["id"] for record in read_records(ANSWERS)] == [request.id for request in requests()]


def test_enough_answers_are_labelled_and_each_label_is_of_an_answer() -> None:
    labels = read_labels()

    assert labels.keys() <= {request.id for request in requests()}
    assert sum(label.verdict != "unclear" for label in labels.values()) >= 200


@pytest.mark.parametrize("model", LABELS)
def test_every_answer_of_a_further_model_has_a_label(model: str) -> None:
    records = read_records(SOURCES[model].file)
    assert {record["id"] for record in records} == set(read_model_labels(LABELS[model]))
    assert [record["id"] for record in records] == [request.id for request in requests(SOURCES[model])]


@pytest.mark.parametrize("line", ["x loop", "x loop spiral", "x looped decay"])
def test_a_line_that_is_no_label_of_a_model_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(f"# why\n{line}\n")
    with pytest.raises(ValueError, match="not a label"):
        read_model_labels(tmp_path / "labels.txt")


def test_labels_lie_within_their_answers() -> None:
    lengths = {record["id"]: len(record["token_ids"]) for record in read_records(ANSWERS)}

    for label in read_labels().values():
        for finding in label.findings:
            assert 0 <= finding.first <= finding.last <= lengths[label.id], label.id


def test_a_label_names_a_kind_only_once_as_certain_for_one_outcome() -> None:
    for label in read_labels().values():
        certain = Counter((one.kind, one.first) for one in label.findings if not one.optional)
        assert all(count == 1 for count in certain.values()), label.id


@pytest.mark.parametrize("line", ["x loop", "x verbatim", "x verbatim 3..", "x verbatim 3 ended", "x doom 3 terminal"])
def test_a_line_that_is_no_label_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "labels.txt"
    file.write_text(line)
    monkeypatch.setattr(labels_module, "LABELS", file)

    with pytest.raises(ValueError, match="not a label"):
        read_labels()


def test_an_answer_that_is_labelled_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("x healthy\nx healthy\n")
    monkeypatch.setattr(labels_module, "LABELS", file)

    with pytest.raises(ValueError, match="labelled twice"):
        read_labels()


def test_records_are_read_back_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    records = [{"id": "a", "text": "é\n"}, {"id": "b", "tokens": [1, 2]}]
    write_records(tmp_path / "a.gz", records)
    write_records(tmp_path / "b.gz", read_records(tmp_path / "a.gz"))

    assert read_records(tmp_path / "b.gz") == records
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_as_many_loops_are_planted_as_stated(loops: list[Planted]) -> None:
    assert Counter(loop.kind for loop in loops) == {"verbatim": VERBATIM, "decay": DECAY, "doom": DOOM}


def test_a_planted_verbatim_loop_is_periodic_from_its_onset_to_its_end_and_not_beyond(loops: list[Planted]) -> None:
    for loop in loops:
        if loop.kind == "verbatim":
            assert loop.period is not None
            run = loop.tokens[loop.onset : loop.end]
            assert run[: -loop.period] == run[loop.period :], loop.id
            assert not _goes_on(loop, loop.onset - 1) and not _goes_on(loop, loop.end - loop.period), loop.id


def _goes_on(loop: Planted, at: int) -> bool:
    assert loop.period is not None
    following = at + loop.period
    return at >= 0 and following < len(loop.tokens) and loop.tokens[at] == loop.tokens[following]


def test_a_planted_period_is_the_primitive_one(loops: list[Planted]) -> None:
    for loop in loops:
        if loop.kind == "verbatim":
            assert loop.period == _smallest_period(loop.tokens[loop.onset : loop.onset + 3 * (loop.period or 0)]), (
                loop.id
            )


def _smallest_period(run: tuple[int, ...]) -> int:
    """By the prefix function: the run's length less its longest border."""
    border = [0] * len(run)
    for at in range(1, len(run)):
        length = border[at - 1]
        while length and run[at] != run[length]:
            length = border[length - 1]
        border[at] = length + (run[at] == run[length])
    return len(run) - border[-1]


def test_periods_reach_from_one_token_to_the_longest(loops: list[Planted]) -> None:
    periods = {loop.period for loop in loops if loop.kind == "verbatim"}

    assert min(periods) == 1  # type: ignore[type-var]
    assert max(periods) >= 1000  # type: ignore[type-var, operator]


def test_loops_as_texts_are_all_different_and_made_the_same_twice() -> None:
    found = list(text_loops())

    assert len({text.text for _, _, text in found}) == len(found)
    assert found == list(text_loops())


def test_a_loop_as_text_begins_and_ends_where_it_says(tokenizer: Any) -> None:
    for loop, (_, _, made) in zip(planted_texts(_encoder(tokenizer)), text_loops(), strict=True):
        shown = tokenizer.decode(list(loop.tokens[loop.onset : loop.end]))
        assert abs(len(shown) - len(made.loop)) <= 24, loop.id


def test_planting_depends_on_the_seed_alone(tokenizer: Any) -> None:
    pool = healthy_pool(_encoder(tokenizer), step=80)

    assert verbatim(Random("a"), "x", pool, 1000) == verbatim(Random("a"), "x", pool, 1000)
    assert verbatim(Random("a"), "x", pool, 1000) != verbatim(Random("b"), "x", pool, 1000)
