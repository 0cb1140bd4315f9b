# SPDX-License-Identifier: Apache-2.0
"""Records: the same frame again and again around values that differ, or that come from a small set, as in real data."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.corpora.healthy.words import CITIES, COLOURS, NOUNS, PEOPLE, name, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

START = datetime(2024, 3, 1, 8, 0, 0)


def _rows(random: Random) -> list[dict[str, Any]]:
    """A table's rows: columns of several kinds, a few constant, as status columns often are."""
    makers: dict[str, Callable[[], Any]] = {
        "name": lambda: random.choice(PEOPLE),
        "city": lambda: random.choice(CITIES),
        "product": lambda: name(random),
        "colour": lambda: random.choice(COLOURS),
        "amount": lambda: round(random.random() * 500, 2),
        "quantity": lambda: random.randrange(1, 12),
        "active": lambda: random.random() < 0.9,
        "status": lambda: random.choice(("active", "active", "active", "closed")),
        "comment": lambda: random.choice((None, None, "", sentence(random))),
        "country": lambda: "Portugal",
    }
    columns = random.sample(sorted(makers), random.randrange(2, 7))
    first = random.choice((1, 1, 100, 4711))
    return [
        {"id": first + place, **{column: makers[column]() for column in columns}}
        for place in range(random.randrange(6, 26))
    ]


def json_records(random: Random) -> str:
    """An array of objects, JSON lines, or a nested document."""
    rows = _rows(random)
    style = random.randrange(4)
    if style == 0:
        return json.dumps(rows, indent=2)
    if style == 1:
        return "\n".join(json.dumps(row) for row in rows)
    if style == 2:
        return json.dumps({"total": len(rows), "next": None, "items": rows})
    return json.dumps({random.choice(NOUNS): {name(random): row for row in rows}}, indent=4)


def sql(random: Random) -> str:
    """A table and its inserts, one statement a row or one for all."""
    rows, table = _rows(random), random.choice(NOUNS) + "s"
    columns = ", ".join(rows[0])
    values = ["(" + ", ".join(_literal(value) for value in row.values()) + ")" for row in rows]
    if random.random() < 0.5:
        return "\n".join(f"INSERT INTO {table} ({columns}) VALUES {one};" for one in values)
    create = f"CREATE TABLE {table} (\n  " + ",\n  ".join(f"{column} TEXT" for column in rows[0]) + "\n);\n"
    return create + f"INSERT INTO {table} ({columns}) VALUES\n  " + ",\n  ".join(values) + ";"


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).upper()
    return f"'{value}'" if isinstance(value, str) else str(value)


def csv_text(random: Random) -> str:
    """With blanks, with quotes, with semicolons or tabs, or columns of nothing."""
    rows = _rows(random)
    separator = random.choice((",", ",", ";", "\t"))
    blank = random.random() < 0.3
    cells = [[("" if blank and random.random() < 0.6 else _cell(value)) for value in row.values()] for row in rows]
    extra = [""] * random.choice((0, 0, 3, 8)) if blank else []
    return "\n".join(separator.join(line + extra) for line in [list(rows[0]), *cells])


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f'"{text}"' if " " in text else text


def log(random: Random) -> str:
    """Of a server, of an application, or of a machine that is asked for its health every few seconds."""
    style = random.choice((_access_log, _application_log, _health_log, _training_log, _test_log))
    return "\n".join(style(random))


def _clock(random: Random, seconds: int) -> Iterator[datetime]:
    now = START + timedelta(seconds=random.randrange(10**7))
    while True:
        yield now
        now += timedelta(seconds=random.randrange(1, seconds))


def _access_log(random: Random) -> Iterator[str]:
    for now, _ in zip(_clock(random, 20), range(random.randrange(8, 22)), strict=False):
        address = ".".join(str(random.randrange(1, 255)) for _ in range(4))
        path = f"/{random.choice(NOUNS)}/{random.randrange(500)}"
        status = random.choice((200, 200, 200, 304, 404, 500))
        yield f'{address} - - [{now:%d/%b/%Y:%H:%M:%S} +0000] "GET {path} HTTP/1.1" {status} {random.randrange(9000)}'


def _application_log(random: Random) -> Iterator[str]:
    for now, _ in zip(_clock(random, 9), range(random.randrange(8, 26)), strict=False):
        level = random.choice(("INFO", "INFO", "DEBUG", "WARNING", "ERROR"))
        yield f"{now:%Y-%m-%d %H:%M:%S},{random.randrange(1000):03d} {level} {random.choice(NOUNS)}: {sentence(random)}"


def _health_log(random: Random) -> Iterator[str]:
    for now, _ in zip(_clock(random, 11), range(random.randrange(10, 26)), strict=False):
        yield f"{now:%H:%M:%S} INFO health check passed in {random.randrange(2, 40)} ms"


def _training_log(random: Random) -> Iterator[str]:
    loss = 4.0
    for epoch in range(1, random.randrange(8, 26)):
        loss *= 0.9 + random.random() / 20
        yield f"Epoch {epoch}: loss={loss:.4f}, accuracy={1 - loss / 5:.3f}, lr={0.001 * 0.97**epoch:.6f}"


def _test_log(random: Random) -> Iterator[str]:
    total = random.randrange(8, 30)
    for place in range(1, total + 1):
        test = f"tests/test_{random.choice(NOUNS)}.py::test_{random.choice(NOUNS)}_{random.choice(COLOURS)}"
        yield f"{test} {'PASSED' if random.random() < 0.95 else 'FAILED'} [{100 * place // total:>3}%]"


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "json": (250, json_records),
    "sql": (220, sql),
    "csv": (200, csv_text),
    "logs": (250, log),
}
