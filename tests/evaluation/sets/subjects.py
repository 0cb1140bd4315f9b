# SPDX-License-Identifier: Apache-2.0
"""What the wide set of lists asks for: 24 kinds of list, six subjects each, in words that every way to ask fits around.

Written before any model was asked for any of them. No two subjects ask for the same things, also not in two languages,
unless they are in one part of the set: which part that is follows from a kind's place and a subject's place in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of list.

    Attributes:
        name: of the kind.
        plain: the first four subjects, by their ids.
        continued: id, subject and the first three entries of the one that is asked to be continued.
        foreign: id, the prompt in another language, and the words that begin such a list in it.
    """

    name: str
    plain: dict[str, str]
    continued: tuple[str, str, tuple[str, str, str]]
    foreign: tuple[str, str, str]


KINDS = (
    Kind(
        "countries",
        {
            "africa": "countries of Africa",
            "asia": "countries of Asia",
            "island-countries": "island countries",
            "former-british": "countries that were once British colonies",
        },
        ("europe", "countries of Europe", ("Albania", "Andorra", "Austria")),
        ("south-america", "Nenne alle Länder Südamerikas.", "Die Länder Südamerikas:"),
    ),
    Kind(
        "cities",
        {
            "us-capitals": "the capitals of the US states",
            "europe-capitals": "the capitals of European countries",
            "indian-cities": "cities in India",
            "port-cities": "port cities of the Mediterranean",
        },
        ("french-cities", "cities in France", ("Paris", "Lyon", "Marseille")),
        ("spanish-cities", "Escribe una lista de ciudades de España.", "Ciudades de España:"),
    ),
    Kind(
        "regions",
        {
            "us-states": "the states of the United States",
            "mexican-states": "the states of Mexico",
            "english-counties": "counties of England",
            "japan-prefectures": "the prefectures of Japan",
        },
        ("indian-states", "the states of India", ("Andhra Pradesh", "Arunachal Pradesh", "Assam")),
        ("german-states", "Liste alle deutschen Bundesländer auf.", "Die deutschen Bundesländer:"),
    ),
    Kind(
        "waters",
        {
            "world-rivers": "the longest rivers in the world",
            "us-lakes": "lakes in the United States",
            "european-rivers": "rivers of Europe",
            "seas": "seas of the world",
        },
        ("waterfalls", "waterfalls", ("Niagara Falls", "Victoria Falls", "Angel Falls")),
        (
            "french-rivers",
            "Donne une liste numérotée des fleuves et rivières de France.",
            "Fleuves et rivières de France :",
        ),
    ),
    Kind(
        "land",
        {
            "highest-mountains": "the highest mountains in the world",
            "deserts": "deserts of the world",
            "islands": "islands of the Pacific Ocean",
            "volcanoes": "volcanoes",
        },
        ("national-parks", "national parks of the United States", ("Yellowstone", "Yosemite", "Zion")),
        ("italian-islands", "Elenca le isole italiane.", "Le isole italiane:"),
    ),
    Kind(
        "mammals",
        {
            "mammals": "mammals that live in Africa",
            "dog-breeds": "breeds of dogs",
            "animals-a": "animals whose names begin with the letter B",
            "cats": "species of wild cats",
        },
        ("horse-breeds", "breeds of horses", ("Arabian", "Thoroughbred", "Mustang")),
        ("animaux", "Fais une liste de cinquante animaux de la forêt.", "Cinquante animaux de la forêt :"),
    ),
    Kind(
        "birds-and-fish",
        {
            "birds": "birds of North America",
            "fish": "kinds of fish that people eat",
            "swimming-birds": "birds that swim",
            "sharks": "species of sharks",
        },
        ("parrots", "species of parrots", ("African grey parrot", "Scarlet macaw", "Budgerigar")),
        ("oviparos", "Haz una lista de cuarenta animales que ponen huevos.", "Cuarenta animales que ponen huevos:"),
    ),
    Kind(
        "small-animals",
        {
            "insects": "insects",
            "snakes": "species of snakes",
            "sea-creatures": "animals without a backbone that live in the sea",
            "dinosaurs": "dinosaurs",
        },
        ("butterflies", "species of butterflies", ("Monarch", "Painted lady", "Swallowtail")),
        ("reptilien", "Schreibe eine Liste von vierzig Reptilien.", "Vierzig Reptilien:"),
    ),
    Kind(
        "plants",
        {
            "trees": "trees of North America",
            "garden-flowers": "flowers for a garden",
            "plants-kitchen": "herbs and spices",
            "mushrooms": "mushrooms that can be eaten",
        },
        ("flowers", "flowers", ("rose", "tulip", "daisy")),
        ("plantes", "Donne les noms de quarante plantes d'intérieur.", "Quarante plantes d'intérieur :"),
    ),
    Kind(
        "food",
        {
            "vegetables": "vegetables",
            "cheeses": "kinds of cheese",
            "fruits": "fruits",
            "italian-dishes": "Italian dishes",
        },
        ("pasta", "shapes of pasta", ("spaghetti", "penne", "farfalle")),
        ("postres", "Escribe una lista numerada de postres.", "Lista de postres:"),
    ),
    Kind(
        "chemistry",
        {
            "elements": "the chemical elements in order of atomic number",
            "minerals": "minerals",
            "metals": "metals and alloys",
            "gases": "gases",
        },
        ("compounds", "chemical compounds with their formulas", ("water (H2O)", "methane (CH4)", "ammonia (NH3)")),
        ("kunststoffe", "Nenne möglichst viele Kunststoffe.", "Kunststoffe:"),
    ),
    Kind(
        "astronomy",
        {
            "constellations": "the constellations in the sky",
            "stars": "stars that have a name",
            "space-missions": "space missions",
            "moons": "moons of the planets in the solar system",
        },
        ("galaxies", "galaxies", ("Milky Way", "Andromeda Galaxy", "Whirlpool Galaxy")),
        ("astronauti", "Elenca gli astronauti famosi.", "Astronauti famosi:"),
    ),
    Kind(
        "body",
        {
            "bones": "the bones of the human body",
            "muscles": "the muscles of the human body",
            "diseases": "diseases",
            "medicines": "medicines",
        },
        ("vitamins", "nutrients that people need", ("vitamin A", "vitamin B12", "vitamin C")),
        ("organes", "Cite tous les organes du corps humain.", "Les organes du corps humain :"),
    ),
    Kind(
        "numbers",
        {
            "primes": "the prime numbers below 300",
            "squares": "the first 50 square numbers",
            "powers": "powers of two",
            "shapes": "geometric shapes",
        },
        ("multiples", "the multiples of 7", ("7", "14", "21")),
        (
            "zahlen",
            "Schreibe die Zahlen von eins bis hundert in Worten auf.",
            "Die Zahlen von eins bis hundert in Worten:",
        ),
    ),
    Kind(
        "rulers",
        {
            "us-presidents": "the presidents of the United States in order",
            "english-monarchs": "the kings and queens of England",
            "roman-emperors": "Roman emperors",
            "pharaohs": "pharaohs of ancient Egypt",
        },
        ("prime-ministers", "prime ministers of the United Kingdom", ("Robert Walpole", "William Pitt", "Lord North")),
        ("rois", "Liste les rois de France dans l'ordre.", "Les rois de France dans l'ordre :"),
    ),
    Kind(
        "history",
        {
            "battles": "battles of the American Civil War",
            "inventions": "inventions, each with its year",
            "explorers": "explorers",
            "ww2": "events of the Second World War in order",
        },
        ("treaties", "treaties between countries", ("Treaty of Versailles", "Treaty of Paris", "Treaty of Rome")),
        ("guerras", "Haz una lista de guerras.", "Guerras:"),
    ),
    Kind(
        "books",
        {
            "shakespeare": "the plays of William Shakespeare",
            "dickens": "novels of the nineteenth century",
            "authors": "American authors",
            "poems": "poems and their poets",
        },
        ("bible", "the books of the Bible in order", ("Genesis", "Exodus", "Leviticus")),
        ("schriftsteller", "Nenne vierzig deutsche Schriftsteller.", "Vierzig deutsche Schriftsteller:"),
    ),
    Kind(
        "films",
        {
            "disney": "animated films by Disney",
            "bond": "the James Bond films in order",
            "actors": "film actors",
            "oscars": "films that won the Academy Award for Best Picture",
        },
        ("hitchcock", "films by Alfred Hitchcock", ("Psycho", "Vertigo", "Rear Window")),
        ("film-italiani", "Scrivi un elenco numerato di film italiani.", "Film italiani:"),
    ),
    Kind(
        "television",
        {
            "friends": "episodes of the TV series Friends",
            "simpsons": "characters of The Simpsons",
            "sitcoms": "American sitcoms",
            "breaking-bad": "episodes of the TV series Breaking Bad",
        },
        ("star-trek", "episodes of Star Trek", ("The Cage", "The Man Trap", "Charlie X")),
        ("series", "Escribe una lista de series de televisión.", "Series de televisión:"),
    ),
    Kind(
        "music",
        {
            "beatles": "songs by the Beatles",
            "instruments": "musical instruments",
            "composers": "composers of classical music",
            "albums": "albums of the 1970s and who recorded them",
        },
        ("queen", "songs by Queen", ("Bohemian Rhapsody", "We Will Rock You", "Somebody to Love")),
        ("chanteurs", "Fais une liste de chanteurs et de chanteuses.", "Chanteurs et chanteuses :"),
    ),
    Kind(
        "games-and-sport",
        {
            "pokemon": "Pokémon of the first generation",
            "olympic-sports": "sports of the Olympic Games",
            "football-clubs": "football clubs of Europe",
            "board-games": "board games",
        },
        ("nba", "teams of the NBA", ("Boston Celtics", "Chicago Bulls", "Los Angeles Lakers")),
        ("spieler", "Liste möglichst viele Fußballspieler auf.", "Fußballspieler:"),
    ),
    Kind(
        "computing",
        {
            "languages": "programming languages",
            "linux": "Linux commands",
            "html": "HTML tags",
            "companies": "technology companies",
        },
        ("python", "functions that are built into Python", ("abs", "all", "any")),
        ("sitios", "Enumera todos los sitios web que conoces.", "Sitios web:"),
    ),
    Kind(
        "myths-and-beliefs",
        {
            "greek-gods": "the gods and goddesses of Greek mythology",
            "saints": "saints",
            "norse": "names from Norse mythology",
            "angels": "creatures from myths and legends",
        },
        ("roman-gods", "the gods of ancient Rome", ("Jupiter", "Juno", "Mars")),
        ("divinites", "Cite les dieux de la mythologie égyptienne.", "Les dieux de la mythologie égyptienne :"),
    ),
    Kind(
        "everyday",
        {
            "jobs": "jobs",
            "kitchen": "things that are found in a kitchen",
            "adjectives": "adjectives that describe a person",
            "hobbies": "hobbies",
        },
        ("clothes", "clothes", ("shirt", "trousers", "socks")),
        ("vornamen", "Schreibe eine Liste von fünfzig Vornamen.", "Fünfzig Vornamen:"),
    ),
)
