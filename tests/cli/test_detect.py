# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery detect`."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from vllm_surgery.cli import main

if TYPE_CHECKING:
    from pathlib import Path

COUNTRIES = ("Chile", "Ghana", "Nepal", "Malta", "Kenya", "Japan", "Cuba", "Fiji")
STUCK = "Some countries:\n" + "".join(
    f"{number}. {country}\n" for number, country in enumerate((*COUNTRIES, *["Botswana"] * 32), start=1)
)
SOUND = "The cat sat on the mat, looked at the rain, and thought of fish."
PERIODIC = [7, *range(100, 120)] + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] * 12


def reports(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def written(tmp_path: Path, *records: dict[str, Any]) -> str:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def test_a_text_is_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.txt"
    file.write_text(STUCK)
    assert main(["detect", str(file)]) == 0
    (report,) = reports(capsys)
    (loop,) = report["loops"]
    assert (loop["kind"], loop["outcome"], loop["character"]) == ("decay", "terminal", STUCK.index("9. Botswana"))
    assert loop["words"].startswith("9. Botswana")
    assert report["looped_tokens"] == {"decay": loop["end"] - loop["onset"]}


def test_stdin_is_read_without_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SOUND.encode())))
    assert main(["detect"]) == 0
    assert [report["loops"] for report in reports(capsys)] == [[]]


def test_each_json_line_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", written(tmp_path, {"text": SOUND}, {"text": STUCK}, {"token_ids": PERIODIC})]) == 0
    found = [[loop["kind"] for loop in report["loops"]] for report in reports(capsys)]
    assert found == [[], ["decay"], ["verbatim"]]


def test_token_ids_say_where_the_loop_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["detect", written(tmp_path, {"token_ids": PERIODIC})])
    (report,) = reports(capsys)
    assert report == {
        "line": 1,
        "tokens": 165,
        "loops": [
            {"kind": "verbatim", "onset": 21, "period": 12, "copies": 12.0, "end": 165, "outcome": "terminal"},
        ],
        "looped_tokens": {"verbatim": 144},
    }


def test_a_tokenizer_reads_token_ids_as_text(
    tmp_path: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(demo_model).encode(STUCK)
    file = written(tmp_path, {"token_ids": tokens}, {"token_ids": tokens, "tokenizer": str(demo_model)})
    assert main(["detect", file]) == 0
    assert [len(report["loops"]) for report in reports(capsys)] == [0, 1]


def test_a_tokenizer_cuts_text(tmp_path: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", written(tmp_path, {"text": STUCK}), "--tokenizer", str(demo_model)]) == 0
    (report,) = reports(capsys)
    (loop,) = report["loops"]
    assert (loop["kind"], loop["character"]) == ("decay", STUCK.index("9. Botswana"))


@pytest.mark.parametrize(("rate", "code"), [("0", 1), ("0.4", 1), ("0.5", 0), ("1", 0)])
def test_more_loops_than_allowed_are_exit_code_1(tmp_path: Path, rate: str, code: int) -> None:
    assert main(["detect", written(tmp_path, {"text": SOUND}, {"text": STUCK}), "--max-loop-rate", rate]) == code


@pytest.mark.parametrize("rate", ["-0.1", "1.1", "nan", "few"])
def test_a_rate_is_from_0_to_1(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["detect", "--max-loop-rate", rate])
    assert exit_.value.code == 2
    assert f"{rate!r} is not a number from 0 to 1" in capsys.readouterr().err


UNKNOWN = 'neither "text" nor "token_ids", "choices", "messages" or "conversations"'


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ("{}", UNKNOWN),
        ('{"text": 3}', UNKNOWN),
        ('{"choices": 3}', "choices: not a list of objects"),
        ('{"choices": [{"message": 3}]}', "choices: a message is not an object"),
        ('{"response": {"status_code": 200}}', "response: no body with choices"),
        ('{"messages": "hello"}', "messages: not a list of objects"),
        ('{"messages": [{"role": "assistant", "content": 3}]}', "content: neither text nor a list of parts"),
        ('{"token_ids": "abc"}', "token_ids: not a list of token ids"),
        ('{"token_ids": [1, -1]}', "token_ids: not a list of token ids"),
        ('{"token_ids": [true]}', "token_ids: not a list of token ids"),
        ('{"token_ids": [99999999999]}', "token_ids: not a list of token ids"),
        ('{"text": "a", "tokenizer": 3}', "tokenizer: not the name of a folder"),
    ],
)
def test_a_line_that_is_wrong_is_named(
    tmp_path: Path, line: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"text": "fine"}\n\n' + line + "\n")
    assert main(["detect", str(file)]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {file}:3: {error}\n"


def test_a_missing_file_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "/nowhere"]) == 2
    assert capsys.readouterr().err == "vllm-surgery: error: /nowhere: no such file\n"


def test_a_folder_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {tmp_path}: Is a directory\n"


def test_a_file_that_is_not_text_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answers.bin"
    file.write_bytes(b"abc\xff")
    assert main(["detect", str(file)]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {file}: not UTF-8 at byte 3\n"


@pytest.mark.parametrize("source", ["a file", "stdin"])
def test_no_more_is_read_than_a_bound(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_surgery.cli.detect._MAX_BYTES", 3 << 20)
    endless = io.BufferedReader(io.FileIO("/dev/zero"))  # It stands for a pipe that nobody closes.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(endless))
    file = "/dev/zero" if source == "a file" else "-"
    assert main(["detect", file]) == 2
    name = file if source == "a file" else "stdin"
    assert capsys.readouterr().err == f"vllm-surgery: error: {name}: larger than 3 MiB; split it\n"


def test_a_missing_tokenizer_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", written(tmp_path, {"text": SOUND}), "--tokenizer", "/nowhere"]) == 2
    assert capsys.readouterr().err == "vllm-surgery: error: /nowhere: no such tokenizer folder\n"


def test_a_folder_without_a_tokenizer_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["detect", written(tmp_path, {"text": SOUND}), "--tokenizer", str(empty)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vllm-surgery: error: {empty}: no tokenizer can be loaded: ")
    assert error.count("\n") == 1


def test_nothing_to_read_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n")
    assert main(["detect", str(file), "--max-loop-rate", "0"]) == 0
    assert reports(capsys) == []


# Formats.

CHAT = {"choices": [{"message": {"role": "assistant", "content": STUCK}, "finish_reason": "length"}]}


def kinds_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str) -> list[list[str]]:
    """The kinds of loop in each answer of a file."""
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert main(["detect", str(file)]) == 0
    return [[loop["kind"] for loop in report["loops"]] for report in reports(capsys)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": f"a{separator}{SOUND}"}, ensure_ascii=False), json.dumps({"text": STUCK})]
    assert kinds_of(tmp_path, capsys, "answers.jsonl", "\r\n".join(lines)) == [[], ["decay"]]


@pytest.mark.parametrize(
    "record",
    [
        CHAT,
        {"choices": [{"text": STUCK, "finish_reason": "length"}]},
        {"custom_id": "a", "response": {"status_code": 200, "body": CHAT}},
        {"messages": [{"role": "user", "content": SOUND}, {"role": "assistant", "content": STUCK}]},
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": STUCK}]}]},
        {"conversations": [{"from": "human", "value": SOUND}, {"from": "gpt", "value": STUCK}]},
    ],
    ids=["chat", "completion", "batch", "messages", "content parts", "ShareGPT"],
)
@pytest.mark.parametrize("form", ["line", "lines", "array", "pretty"])
def test_what_servers_and_data_sets_write_is_read(
    tmp_path: Path, record: dict[str, Any], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps(record)
    content = {
        "line": line,
        "lines": f"{line}\n{line}\n",
        "array": f"[{line}, {line}]",
        "pretty": json.dumps(record, indent=2),
    }[form]
    found = kinds_of(tmp_path, capsys, "answers.json", content)
    assert found == [["decay"]] * (2 if form in ("lines", "array") else 1)


def test_an_array_of_texts_or_of_messages_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": STUCK}]
    assert kinds_of(tmp_path, capsys, "a.json", json.dumps([SOUND, STUCK])) == [[], ["decay"]]
    assert kinds_of(tmp_path, capsys, "b.json", json.dumps(messages)) == [["decay"]]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_looked_through_apart(tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"choices": [{"message": {"content": SOUND, field: STUCK + "13 is enough."}, "finish_reason": "stop"}]}
    main(["detect", written(tmp_path, record)])
    assert [(report["part"], report["ending"]) for report in reports(capsys)] == [
        ("reasoning", "stop"),
        ("answer", "stop"),
    ]


def test_how_an_answer_ended_is_evidence_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [7, *range(100, 120)] + [1, 2, 3, 4, 5] * 26
    records = [{"token_ids": tokens, "finish_reason": reason} for reason in ("length", "stop")]
    main(["detect", written(tmp_path, *records)])
    cut, stopped = reports(capsys)
    assert [(loop["kind"], loop["evidence"]) for loop in cut["loops"]] == [("verbatim", "ending")]
    assert (cut["ending"], stopped["ending"], stopped["loops"]) == ("cut", "stop", [])


def test_a_batch_line_that_failed_has_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"custom_id": "a", "response": None, "error": {"message": "overloaded"}}
    assert kinds_of(tmp_path, capsys, "batch.jsonl", json.dumps(record) + "\n" + json.dumps(CHAT)) == [["decay"]]


def test_an_array_with_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text('["fine", 3]')
    assert main(["detect", str(file)]) == 2
    error = f"vllm-surgery: error: {file}: record 2: neither a JSON object nor a text\n"
    assert capsys.readouterr().err == error


def test_a_file_of_json_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(STUCK)
    assert main(["detect", str(file)]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {file}:1: not a JSON object\n"


def test_an_answer_that_is_itself_json_may_be_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "[\n" + ",\n".join(f'  {{"number": {n}, "name": "Knot"}}' for n in range(1, 121)) + "\n"
    assert kinds_of(tmp_path, capsys, "a.txt", answer) == [["decay"]]
    assert kinds_of(tmp_path, capsys, "b", answer) == [["decay"]]
