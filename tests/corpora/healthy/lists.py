# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001, SIM905  (Long lists of words read best as text, and other scripts are meant.)
"""Right enumerations: what the decay detector must leave alone."""

from __future__ import annotations

import calendar
from typing import TYPE_CHECKING

from tests.corpora.healthy.words import names, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ELEMENTS = tuple(
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium silicon "
    "phosphorus sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese iron cobalt "
    "nickel copper zinc gallium germanium arsenic selenium bromine krypton rubidium strontium yttrium zirconium niobium "
    "molybdenum technetium ruthenium rhodium palladium silver cadmium indium tin antimony tellurium iodine xenon caesium "
    "barium lanthanum cerium praseodymium neodymium promethium samarium europium gadolinium terbium dysprosium holmium "
    "erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium platinum gold mercury thallium "
    "lead bismuth polonium astatine radon francium radium actinium thorium protactinium uranium".split()
)
STATES = tuple(
    "Alabama,Alaska,Arizona,Arkansas,California,Colorado,Connecticut,Delaware,Florida,Georgia,Hawaii,Idaho,Illinois,"
    "Indiana,Iowa,Kansas,Kentucky,Louisiana,Maine,Maryland,Massachusetts,Michigan,Minnesota,Mississippi,Missouri,Montana,"
    "Nebraska,Nevada,New Hampshire,New Jersey,New Mexico,New York,North Carolina,North Dakota,Ohio,Oklahoma,Oregon,"
    "Pennsylvania,Rhode Island,South Carolina,South Dakota,Tennessee,Texas,Utah,Vermont,Virginia,Washington,"
    "West Virginia,Wisconsin,Wyoming".split(",")
)
COUNTRIES = tuple(
    "Algeria,Angola,Benin,Botswana,Burkina Faso,Burundi,Cameroon,Cape Verde,Central African Republic,Chad,Comoros,"
    "Democratic Republic of the Congo,Djibouti,Egypt,Equatorial Guinea,Eritrea,Eswatini,Ethiopia,Gabon,Gambia,Ghana,"
    "Guinea,Guinea-Bissau,Ivory Coast,Kenya,Lesotho,Liberia,Libya,Madagascar,Malawi,Mali,Mauritania,Mauritius,Morocco,"
    "Mozambique,Namibia,Niger,Nigeria,Republic of the Congo,Rwanda,Senegal,Seychelles,Sierra Leone,Somalia,"
    "South Africa,South Sudan,Sudan,Tanzania,Togo,Tunisia,Uganda,Zambia,Zimbabwe".split(",")
)
PRESIDENTS = tuple(
    "George Washington,John Adams,Thomas Jefferson,James Madison,James Monroe,John Quincy Adams,Andrew Jackson,"
    "Martin Van Buren,William Henry Harrison,John Tyler,James K. Polk,Zachary Taylor,Millard Fillmore,Franklin Pierce,"
    "James Buchanan,Abraham Lincoln,Andrew Johnson,Ulysses S. Grant,Rutherford B. Hayes,James A. Garfield,"
    "Chester A. Arthur,Grover Cleveland,Benjamin Harrison,Grover Cleveland,William McKinley,Theodore Roosevelt,"
    "William Howard Taft,Woodrow Wilson,Warren G. Harding,Calvin Coolidge,Herbert Hoover,Franklin D. Roosevelt,"
    "Harry S. Truman,Dwight D. Eisenhower,John F. Kennedy,Lyndon B. Johnson,Richard Nixon,Gerald Ford,Jimmy Carter,"
    "Ronald Reagan,George H. W. Bush,Bill Clinton,George W. Bush,Barack Obama".split(",")
)


def _known(random: Random) -> list[str]:
    """A slice of a known list, at least twelve long, sometimes in another order."""
    source = list(random.choice((ELEMENTS, STATES, COUNTRIES, PRESIDENTS)))
    start = random.randrange(len(source) - 12)
    found = source[start : start + random.randrange(12, 61)]
    if random.random() < 0.2:
        random.shuffle(found)
    return found


def _styled(random: Random, entries: list[str]) -> str:
    """A list in one of the ways models write lists."""
    style = random.randrange(9)
    if style == 0:
        return ", ".join(entries) + "."
    if style == 1:
        return " ".join(f"{place}. {one}" for place, one in enumerate(entries, start=1))
    if style == 2:
        return ", ".join(f"{place}) {one}" for place, one in enumerate(entries, start=1))
    marker = (
        lambda place: f"{place}. ",
        lambda place: f"{place}) ",
        lambda place: "- ",
        lambda place: "* ",
        lambda place: f"{place}. **",
        lambda place: "",
    )[style - 3]
    return "\n".join(f"{marker(place)}{one}{'**' * (style == 7)}" for place, one in enumerate(entries, start=1))


def known_list(random: Random) -> str:
    """Elements, states, countries, presidents."""
    return f"{sentence(random)}\n\n{_styled(random, _known(random))}"


def invented_list(random: Random) -> str:
    """A numbered index of invented creatures; often with a kind behind each, of which there are few."""
    creatures = names(random, random.randrange(12, 61))
    kinds = ("Water", "Fire", "Grass", "Rock", "Normal")
    style = random.randrange(4)
    if style == 0:
        creatures = [f"{one} ({random.choice(kinds)})" for one in creatures]
    if style == 1:
        creatures = [f"{one} - {random.choice(kinds)} type" for one in creatures]
    return _styled(random, creatures)


def counted_list(random: Random) -> str:
    """Entries that share all but a little: "Chapter 7: The old bridge", "Apollo 11", "1947 - 1951: ..."."""
    frame = random.choice(
        ("Chapter {n}: The {x}", "Apollo {n}", "Station {n} ({x})", "The {x} of the {n}th year", "{n} BC: {x}")
    )
    labels = names(random, random.randrange(12, 40))
    return _styled(
        random, [frame.format(n=place, x=one) for place, one in enumerate(labels, start=random.randrange(1, 9))]
    )


def numbers(random: Random) -> str:
    """Primes, squares, powers, multiples, Fibonacci numbers."""
    limit = random.randrange(12, 70)
    step = random.randrange(2, 30)
    primes = [n for n in range(2, 400) if all(n % d for d in range(2, int(n**0.5) + 1))]
    fibonacci = [1, 1]
    while len(fibonacci) < limit:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    found = random.choice(
        (
            primes,
            [n * n for n in range(1, 70)],
            [step * n for n in range(1, 70)],
            [2**n for n in range(40)],
            fibonacci,
            list(range(step, step + 70)),
        )
    )
    return _styled(random, [str(n) for n in found[:limit]])


def times_table(random: Random) -> str:
    """Multiplication as lines or as a square of numbers; sums of a carried constant."""
    factor, size = random.randrange(2, 20), random.randrange(8, 21)
    style = random.randrange(4)
    if style == 0:
        return "\n".join(f"{factor} x {n} = {factor * n}" for n in range(1, size + 1))
    if style == 1:
        return "\n".join(f"{n} + 0 = {n}" for n in range(1, size + 1))
    if style == 2:
        return "\n".join(f"{n} × 0 = 0" for n in range(1, min(size, 13)))
    return "\n".join(" ".join(f"{a * b:>4}" for b in range(1, 11)) for a in range(1, min(size, 13)))


def dates(random: Random) -> str:
    """A month's or a year's calendar, months and days in order, days of a plan."""
    year, style = random.randrange(1950, 2050), random.randrange(4)
    if style == 0:
        return calendar.TextCalendar().formatyear(year, m=3)
    if style == 1:
        return "\n\n".join(calendar.TextCalendar().formatmonth(year, month) for month in range(1, 7))
    if style == 2:
        days = list(calendar.day_name) * random.randrange(2, 4)
        return "\n".join(f"{place}. {day}" for place, day in enumerate(days, start=1))
    days_in = [calendar.monthrange(year, month)[1] for month in range(1, 13)]
    return "\n".join(f"- {calendar.month_name[m]} {year}: {days_in[m - 1]} days" for m in range(1, 13))


def alphabet(random: Random) -> str:
    """Letters with words, the spelling alphabet, letters alone, the columns of a sheet."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    style = random.randrange(3)
    if style == 0:
        return _styled(
            random, [f"{letter} is for {one}" for letter, one in zip(letters, names(random, 26), strict=True)]
        )
    if style == 1:
        return _styled(random, list(random.choice((letters, letters.lower()))))
    return _styled(random, [a + b for a in letters[: random.randrange(1, 3)] for b in letters])


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "known-lists": (250, known_list),
    "invented-lists": (200, invented_list),
    "counted-lists": (120, counted_list),
    "numbers": (180, numbers),
    "times-tables": (120, times_table),
    "dates": (120, dates),
    "alphabets": (80, alphabet),
}
