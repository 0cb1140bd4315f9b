# SPDX-License-Identifier: Apache-2.0
"""Documents: YAML or JSON in, plain data out, and nothing but plain data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given

from tests.examples import refusal
from tests.strategies import mappings
from vllm_surgery.errors import PatchError
from vllm_surgery.patch import document
from vllm_surgery.patch.document import MAX_BYTES, MAX_DEPTH, dump_yaml, parse_document, plain_data

if TYPE_CHECKING:
    from vllm_surgery.patch.document import Plain


def parse(text: str | bytes) -> Plain:
    return parse_document(text.encode() if isinstance(text, str) else text, "p.yaml")


BEYOND = "a whole number beyond 64 bits; with a decimal point it is read as a fraction"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1), ("-1", -1), ("+1", 1), ("017", 17), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("0e9", 0.0), ("-0.0E-400", 0.0), ("5e-324", 5e-324), ("-1E-3", -0.001),
        ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("Null", None),
        ("yes", "yes"), ("on", "on"), ("tRUE", "tRUE"), ("0x1f", "0x1f"), ("1_000", "1_000"), ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"), ("100-199", "100-199"), ("'1'", "1"), ('"true"', "true"), ("''", ""), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_a_word_means_what_yaml_1_2_says(word: str, value: Plain) -> None:
    found = parse(f"a: {word}")

    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index, call-overload]


@given(mappings)
def test_json_means_what_json_says(data: dict[str, Plain]) -> None:
    assert parse(json.dumps(data)) == data


@given(mappings)
def test_data_written_as_yaml_reads_back_the_same(data: dict[str, Plain]) -> None:
    assert parse(dump_yaml(data)) == data


def test_keys_are_text_even_where_yaml_has_numbers() -> None:
    assert parse("{29: [1]}\n") == {"29": [1]}


def test_layers_are_written_without_quotes() -> None:
    assert dump_yaml({"29": [545]}) == "29: [545]\n"


@pytest.mark.parametrize(
    "text", ["\ufeff{}", "\ufeffa: 1", "---\na: 1\n...\n", "%YAML 1.1\n---\na: 1", "# words\na: 1"]
)
def test_byte_order_marks_and_yaml_frames_are_accepted(text: str) -> None:
    assert isinstance(parse(text), dict)


@pytest.mark.parametrize("text", ["", " ", "\n", "# only words", "---\n"])
def test_an_empty_document_is_nothing(text: str) -> None:
    assert parse(text) is None


REFUSED = [
    # Tags, anchors, aliases, several documents: nothing that says more than plain data.
    ("a: !!python/object/apply:os.system ['id']", "line 1, column 4: YAML tags are not allowed (tag:yaml.org,2002:python/object/apply:os.system)"),
    ("a: !!str 1", "line 1, column 4: YAML tags are not allowed (tag:yaml.org,2002:str)"),
    ("a: !mine 1", "line 1, column 4: YAML tags are not allowed (!mine)"),
    ("a: ! 1", "line 1, column 4: YAML tags are not allowed (!)"),
    ("!!map {a: 1}", "line 1, column 1: YAML tags are not allowed (tag:yaml.org,2002:map)"),
    ("!!int 1: 1", "line 1, column 1: YAML tags are not allowed (tag:yaml.org,2002:int)"),
    ("a: !!seq [1]", "line 1, column 4: YAML tags are not allowed (tag:yaml.org,2002:seq)"),
    ("a: &x 1", "line 1, column 4: YAML anchors are not allowed (&x)"),
    ("a: &x [1]", "line 1, column 4: YAML anchors are not allowed (&x)"),
    ("&x a: 1", "line 1, column 1: YAML anchors are not allowed (&x)"),
    ("a: *x", "line 1, column 4: YAML aliases are not allowed (*x)"),
    ("<<: *x", "line 1, column 5: YAML aliases are not allowed (*x)"),
    ("*x : 1", "line 1, column 1: YAML aliases are not allowed (*x)"),
    ("a: 1\n---\nb: 2", "line 2, column 1: a patch file holds one YAML document, a second starts here"),
    # Keys.
    ("a: 1\na: 2", "line 2, column 1: the key 'a' stands twice in one mapping"),
    ("{1: 2, '1': 3}", "line 1, column 8: the key '1' stands twice in one mapping"),
    ('{"a": 1, "a": 2}', "a: the key 'a' stands twice in one mapping"),
    ('{"a": [{"b": 1, "c": 0, "b": 2}]}', "a[0].b: the key 'b' stands twice in one mapping"),
    ("[a]: 1", "line 1, column 1: a key must be a plain word or number"),
    ("? {a: 1}\n: 2", "line 1, column 3: a key must be a plain word or number"),
    # Numbers.
    ("a: .inf", "line 1, column 4: .inf is not a finite number"),
    ("a: -.INF", "line 1, column 4: -.INF is not a finite number"),
    ("a: .nan", "line 1, column 4: .nan is not a finite number"),
    ("a: 1e999", "line 1, column 4: 1e999 is not a finite number"),
    ('{"a": NaN}', "a: NaN is not a finite number"),
    ('{"a": {"b": [-Infinity]}}', "a.b[0]: -Infinity is not a finite number"),
    ('{"a": 1e999}', "a: 1e999 is not a finite number"),
    ("a: 1e-400", "line 1, column 4: 1e-400 is smaller than any number that can be held, and not 0"),
    ("a: -.0020E-400", "line 1, column 4: -.0020E-400 is smaller than any number that can be held, and not 0"),
    ('{"a": [-0.01e-399]}', "a[0]: -0.01e-399 is smaller than any number that can be held, and not 0"),
    (f"a: {2**63}", f"line 1, column 4: {BEYOND}"),
    (f"a: {'1' * 65}", "line 1, column 4: a number of 65 characters; at most 64 are read"),
    (f'{{"a": {"1" * 5000}}}', "a: a number of 5000 characters; at most 64 are read"),
    (f'{{"a": 0.{"1" * 100}}}', "a: a number of 102 characters; at most 64 are read"),
    # Text.
    (b"a: \xff", "byte 3: is not UTF-8 text"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is no patch: it is a Git LFS pointer; `git lfs pull` fetches the file that it stands for",
    ),
    ("a: 1".encode("utf-16"), "byte 0: is not UTF-8 text"),
    (b"a: \xed\xa0\x80", "byte 3: is not UTF-8 text"),
    ('{"a": "\\ud800"}', "a: holds half of a surrogate pair, which is no text"),
    ('{"\\udc00": 1}', "holds half of a surrogate pair, which is no text"),
    ('a: "\\uD800"', "line 1, column 7: is not YAML: found invalid Unicode character escape code"),
    ('a: "\\UFFFFFFFF"', "line 1, column 7: is not YAML: found invalid Unicode character escape code"),
    ("a: \0", "is not YAML: unacceptable character #x0000: control characters are not allowed in \"<unicode string>\", position 3"),
    ("a: \x1b[31m", "is not YAML: unacceptable character #x001b: control characters are not allowed in \"<unicode string>\", position 3"),
    # Broken syntax.
    ("{a: 1", "line 2, column 1: is not YAML: did not find expected ',' or '}'"),
    ("a: b: c", "line 1, column 5: is not YAML: mapping values are not allowed in this context"),
    ("\ta: 1", "line 1, column 1: is not YAML: found character that cannot start any token"),
    ("a: 'x", "line 1, column 6: is not YAML: found unexpected end of stream"),
    ('{"a": 1} x', "line 1, column 10: is not YAML: did not find expected <document start>"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str | bytes, reason: str) -> None:
    assert refusal(lambda: parse(text), PatchError) == f"p.yaml: {reason}"


@pytest.mark.parametrize("text", [text for text, _ in REFUSED])
def test_pyyaml_without_libyaml_refuses_the_same(text: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_EventLoader", yaml.BaseLoader)

    assert refusal(lambda: parse(text), PatchError).startswith("p.yaml: ")


@pytest.mark.parametrize("text", ["a: {}", "- {}", '{{"a": {}}}'])
def test_nesting_is_bounded_to_the_level(text: str) -> None:
    def nested(levels: int) -> str:
        return text.format("[" * (levels - 1) + "]" * (levels - 1))

    assert parse(nested(MAX_DEPTH))
    assert refusal(lambda: parse(nested(MAX_DEPTH + 1)), PatchError).endswith("is nested deeper than 32 levels")


@pytest.mark.parametrize("start", ["{a: ", '{"a":', "[", "- ", "? ", "{? ", '[{"a":'])
def test_a_file_full_of_openings_is_refused(start: str) -> None:
    text = start * (MAX_BYTES // len(start))

    assert refusal(lambda: parse(text), PatchError)


def test_a_file_of_1_mib_is_read() -> None:
    assert parse(b"a: 1\n" + b"#" * (MAX_BYTES - 5)) == {"a": 1}


def test_a_file_of_a_byte_more_is_refused() -> None:
    text = b"a: 1\n" + b"#" * (MAX_BYTES - 4)

    assert refusal(lambda: parse(text), PatchError) == (
        "p.yaml: is too long: a patch file may have at most 1048576 bytes (1 MiB)"
    )


def test_a_key_that_stands_twice_among_100000_is_found() -> None:
    members = ",".join(f'"{number}":0' for number in range(100_000))

    assert refusal(lambda: parse(f'{{{members},"z":0,"z":0}}'), PatchError) == (
        "p.yaml: z: the key 'z' stands twice in one mapping"
    )


def test_billions_of_laughs_are_refused_before_the_second() -> None:
    lines = ["a0: &a0 [lol]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]

    assert refusal(lambda: parse("\n".join(lines)), PatchError) == (
        "p.yaml: line 1, column 5: YAML anchors are not allowed (&a0)"
    )


def test_plain_data_is_a_copy() -> None:
    data: dict[str, object] = {"a": [1]}

    copy = plain_data(data, "p")
    data["a"] = 2

    assert copy == {"a": [1]}


def test_plain_data_turns_number_keys_to_text_as_json_would() -> None:
    assert plain_data({29: [1]}, "p") == {"29": [1]}


def recursive() -> list[object]:
    data: list[object] = []
    data.append(data)
    return data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"a": float("nan")}, "a: nan is not a finite number"),
        ({"a": [float("inf")]}, "a[0]: inf is not a finite number"),
        ({"a": {29: 1, "29": 2}}, "a.29: the key '29' stands twice in one mapping"),
        ({"a": {None: 1}}, "a: a key must be a word or a number, got None"),
        ({"a": {True: 1}}, "a: a key must be a word or a number, got True"),
        ({"a": {(1, 2): 1}}, "a: a key must be a word or a number, got (1, 2)"),
        ({"a": {1, 2}}, "a: a set is no plain data"),
        ({"a": b"x"}, "a: a bytes is no plain data"),
        ({"a": "\ud800"}, "a: holds half of a surrogate pair, which is no text"),
        ({"a": 2**63}, f"a: {BEYOND}"),
        ({"a": -(2**63) - 1}, f"a: {BEYOND}"),
        ({"a": 10**5000}, f"a: {BEYOND}"),
        (recursive(), "[0]" * 32 + ": is nested deeper than 32 levels"),
    ],
)
def test_python_data_that_json_could_not_say_is_refused(data: object, reason: str) -> None:
    assert refusal(lambda: plain_data(data, "p"), PatchError) == f"p: {reason}"
