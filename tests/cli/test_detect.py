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

STUCK = "Some countries:\n" + "".join(f"{number}. Botswana\n" for number in range(1, 41))
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
    assert (loop["kind"], loop["outcome"], loop["character"]) == ("decay", "terminal", STUCK.index("1. Botswana"))
    assert loop["words"].startswith("1. Botswana")
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
    assert (loop["kind"], loop["character"]) == ("decay", STUCK.index("1. Botswana"))


@pytest.mark.parametrize(("rate", "code"), [("0", 1), ("0.4", 1), ("0.5", 0), ("1", 0)])
def test_more_loops_than_allowed_are_exit_code_1(tmp_path: Path, rate: str, code: int) -> None:
    assert main(["detect", written(tmp_path, {"text": SOUND}, {"text": STUCK}), "--max-loop-rate", rate]) == code


@pytest.mark.parametrize("rate", ["-0.1", "1.1", "nan", "few"])
def test_a_rate_is_from_0_to_1(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["detect", "--max-loop-rate", rate])
    assert exit_.value.code == 2
    assert f"{rate!r} is not a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ("{}", 'neither "text" nor "token_ids"'),
        ('{"text": 3}', 'neither "text" nor "token_ids"'),
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
