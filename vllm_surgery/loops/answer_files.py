# SPDX-License-Identifier: Apache-2.0
"""Answers from a file, in the formats that people have them in.

- text: the whole file is one answer;
- JSON lines, a JSON array, or one JSON object, of records of these kinds:
- ``{"text": …}`` or ``{"token_ids": […]}``, with ``finish_reason`` and ``tokenizer`` if known;
- OpenAI responses, chat and completion: ``{"choices": […]}``; lines of a batch's output: ``{"response": {"body": …}}``;
- conversations, of which what the model says is read: ``{"messages": [{"role": …, "content": …}]}`` and ShareGPT's
  ``{"conversations": [{"from": …, "value": …}]}``.

Reasoning that a server keeps apart from the answer (``reasoning_content`` or ``reasoning``) is looked through apart.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_surgery.errors import UsageError
from vllm_surgery.loops.answers import Answer, of_text, of_tokens
from vllm_surgery.loops.loop import ending_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_ID = 2**31 - 1
_JSON_FILES = frozenset({".json", ".jsonl", ".ndjson"})
_TEXT_FILES = frozenset({".txt", ".md"})
_MODEL_ROLES = frozenset({"assistant", "model", "gpt", "bot", "chatgpt"})
_KNOWN = ("text", "token_ids", "choices", "response", "messages", "conversations")
_NOT_JSON = object()


def read_answers(content: str, source: str, tokenizer: str | None = None) -> Iterator[Answer]:
    """The answers in a file.

    Args:
        content: of the file.
        source: its name, for errors, and for what it should hold.
        tokenizer: folder of the tokenizer that made token ids, and that cuts text; a record may name its own.

    Raises:
        UsageError: a record can't be read, or there is no such tokenizer.
    """
    ending = PurePath(source).suffix.lower()
    if not content.strip():
        return
    whole = _NOT_JSON if ending in _TEXT_FILES else _parsed(content)
    if isinstance(whole, list):
        yield from _of_array(whole, source, tokenizer)
    elif isinstance(whole, dict) and (_is_known(whole) or "\n" not in content.strip() or ending in _JSON_FILES):
        yield from _of_record(whole, 1, f"{source}:1", tokenizer)
    elif ending not in _TEXT_FILES and (ending in _JSON_FILES or _begins_with_a_record(content)):
        yield from _of_lines(content, source, tokenizer)
    else:
        yield of_text(content, 1, tokenizer)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _is_known(record: dict[str, Any]) -> bool:
    return any(key in record for key in _KNOWN)


def _lines(content: str) -> Iterator[tuple[int, str]]:
    """The lines that aren't empty, with their numbers. Only a line feed ends one: others may stand in a text."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield number, line


def _begins_with_a_record(content: str) -> bool:
    return isinstance(_parsed(next(_lines(content))[1]), dict)


def _of_lines(content: str, source: str, tokenizer: str | None) -> Iterator[Answer]:
    for number, line in _lines(content):
        record = _parsed(line)
        if not isinstance(record, dict):
            raise UsageError(f"{source}:{number}: not a JSON object")
        yield from _of_record(record, number, f"{source}:{number}", tokenizer)


def _of_array(records: list[Any], source: str, tokenizer: str | None) -> Iterator[Answer]:
    if records and all(isinstance(record, dict) and "role" in record for record in records):
        yield from _of_record({"messages": records}, 1, f"{source}:1", tokenizer)
        return
    for number, record in enumerate(records, start=1):
        place = f"{source}: record {number}"
        if isinstance(record, str):
            yield of_text(record, number, tokenizer)
        elif isinstance(record, dict):
            yield from _of_record(record, number, place, tokenizer)
        else:
            raise UsageError(f"{place}: neither a JSON object nor a text")


def _of_record(record: dict[str, Any], number: int, place: str, tokenizer: str | None) -> Iterator[Answer]:
    folder = record.get("tokenizer", tokenizer)
    if not (folder is None or isinstance(folder, str)):
        raise UsageError(f"{place}: tokenizer: not the name of a folder")
    reason = record.get("finish_reason")
    if "token_ids" in record:
        yield _ended(of_tokens(_token_ids(record["token_ids"], place), number, folder), reason)
    elif isinstance(record.get("text"), str):
        yield _ended(of_text(record["text"], number, folder), reason)
    elif "response" in record:
        yield from _of_batch_line(record, number, place, folder)
    elif "choices" in record:
        yield from _of_choices(record["choices"], number, place, folder)
    elif "messages" in record or "conversations" in record:
        yield from _of_conversation(record.get("messages", record.get("conversations")), number, place, folder)
    else:
        raise UsageError(f'{place}: neither "text" nor "token_ids", "choices", "messages" or "conversations"')


def _ended(answer: Answer, reason: Any, part: str | None = None) -> Answer:
    return replace(answer, ending=ending_of(reason if isinstance(reason, str) else None), part=part)


def _token_ids(token_ids: Any, place: str) -> tuple[int, ...]:
    if not isinstance(token_ids, list) or not all(type(token) is int and 0 <= token <= _MAX_ID for token in token_ids):
        raise UsageError(f"{place}: token_ids: not a list of token ids")
    return tuple(token_ids)


def _of_batch_line(record: dict[str, Any], number: int, place: str, folder: str | None) -> Iterator[Answer]:
    """A line of an OpenAI batch's output. One that failed has no answer."""
    response = record["response"]
    if response is None and record.get("error") is not None:
        return
    if isinstance(response, str):
        yield _ended(of_text(response, number, folder), record.get("finish_reason"))
        return
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(body, dict) or "choices" not in body:
        _refuse(place, "response", "no body with choices")
    yield from _of_choices(body["choices"], number, place, folder)


def _of_choices(choices: Any, number: int, place: str, folder: str | None) -> Iterator[Answer]:
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        _refuse(place, "choices", "not a list of objects")
    for index, choice in enumerate(choices, start=1):
        message = choice.get("message", {"content": choice.get("text")})
        if not isinstance(message, dict):
            _refuse(place, "choices", "a message is not an object")
        name = f"choice {index}" if len(choices) > 1 else None
        yield from _of_message(message, number, place, folder, choice.get("finish_reason"), name)


def _of_conversation(messages: Any, number: int, place: str, folder: str | None) -> Iterator[Answer]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        _refuse(place, "messages", "not a list of objects")
    said = [message for message in messages if message.get("role", message.get("from")) in _MODEL_ROLES]
    for index, message in enumerate(said, start=1):
        name = f"message {index}" if len(said) > 1 else None
        told = {"content": message.get("value"), **message}
        yield from _of_message(told, number, place, folder, message.get("finish_reason"), name)


def _of_message(
    message: dict[str, Any], number: int, place: str, folder: str | None, reason: Any, name: str | None
) -> Iterator[Answer]:
    """A model's answer and, apart, its reasoning, which ended by itself if an answer follows."""
    answer = _content(message.get("content"), place)
    reasoning = _content(message.get("reasoning_content", message.get("reasoning")), place)
    if reasoning:
        part = f"{name}, reasoning" if name else "reasoning"
        yield _ended(of_text(reasoning, number, folder), "stop" if answer else reason, part)
    if answer or not reasoning:
        part_name = name or ("answer" if reasoning else None)
        yield _ended(of_text(answer, number, folder), reason, part_name)


def _content(content: Any, place: str) -> str:
    """A message's text: plain, in parts, or none where it only calls tools."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part["text"]) for part in content if isinstance(part.get("text"), str))
    _refuse(place, "content", "neither text nor a list of parts")


def _refuse(place: str, field: str, problem: str) -> NoReturn:
    raise UsageError(f"{place}: {field}: {problem}")
