# SPDX-License-Identifier: Apache-2.0
"""Right entries of the lists that have an end, in lower case; several names of one entry with a stroke between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def known() -> dict[str, list[str | list[str]]]:
    """By the id of a subject its right entries, an entry as a list where it goes by several names."""
    found: dict[str, list[str | list[str]]] = {
        subject: [_names(entry) for entry in text.replace("\n", " ").split(",")] for subject, text in _TEXTS.items()
    }
    found["primes"] = [str(number) for number in _primes() if number < _PRIMES_BELOW]
    found["squares"] = [str(number * number) for number in range(1, 51)]
    return found


_PRIMES_BELOW = 300


def _names(entry: str) -> str | list[str]:
    names = [name.strip() for name in entry.split("/")]
    return names if len(names) > 1 else names[0]


def _primes() -> Iterator[int]:
    return (number for number in range(2, 1000) if all(number % divisor for divisor in range(2, int(number**0.5) + 1)))


_TEXTS = {
    "africa": """algeria, angola, benin, botswana, burkina faso, burundi, cabo verde/cape verde, cameroon,
        central african republic, chad, comoros, democratic republic of the congo/dr congo/drc, republic of the congo/congo,
        ivory coast/côte d'ivoire/cote d'ivoire, djibouti, egypt, equatorial guinea, eritrea, eswatini/swaziland, ethiopia,
        gabon, gambia, ghana, guinea, guinea-bissau, kenya, lesotho, liberia, libya, madagascar, malawi, mali, mauritania,
        mauritius, morocco, mozambique, namibia, niger, nigeria, rwanda, são tomé and príncipe/sao tome and principe,
        senegal, seychelles, sierra leone, somalia, south africa, south sudan, sudan, tanzania, togo, tunisia, uganda,
        zambia, zimbabwe""",
    "asia": """afghanistan, armenia, azerbaijan, bahrain, bangladesh, bhutan, brunei, cambodia, china, cyprus, georgia,
        india, indonesia, iran, iraq, israel, japan, jordan, kazakhstan, kuwait, kyrgyzstan, laos, lebanon, malaysia,
        maldives, mongolia, myanmar/burma, nepal, north korea, oman, pakistan, palestine, philippines, qatar, russia,
        saudi arabia, singapore, south korea, sri lanka, syria, taiwan, tajikistan, thailand, timor-leste/east timor,
        turkey/türkiye, turkmenistan, united arab emirates/uae, uzbekistan, vietnam, yemen""",
    "europe": """albania, andorra, armenia, austria, azerbaijan, belarus, belgium, bosnia and herzegovina, bulgaria,
        croatia, cyprus, czech republic/czechia, denmark, estonia, finland, france, georgia, germany, greece, hungary,
        iceland, ireland, italy, kazakhstan, kosovo, latvia, liechtenstein, lithuania, luxembourg, malta, moldova, monaco,
        montenegro, netherlands, north macedonia/macedonia, norway, poland, portugal, romania, russia, san marino, serbia,
        slovakia, slovenia, spain, sweden, switzerland, turkey/türkiye, ukraine, united kingdom/uk, vatican city/vatican""",
    "south-america": """argentinien, bolivien, brasilien, chile, kolumbien, ecuador/ekuador, guyana, paraguay, peru,
        suriname/surinam, uruguay, venezuela""",
    "us-capitals": """montgomery, juneau, phoenix, little rock, sacramento, denver, hartford, dover, tallahassee, atlanta,
        honolulu, boise, springfield, indianapolis, des moines, topeka, frankfort, baton rouge, augusta, annapolis, boston,
        lansing, saint paul/st paul/st. paul, jackson, jefferson city, helena, lincoln, carson city, concord, trenton,
        santa fe, albany, raleigh, bismarck, columbus, oklahoma city, salem, harrisburg, providence, columbia, pierre,
        nashville, austin, salt lake city, montpelier, richmond, olympia, charleston, madison, cheyenne""",
    "europe-capitals": """tirana, andorra la vella, yerevan, vienna, baku, minsk, brussels, sarajevo, sofia, zagreb,
        nicosia, prague, copenhagen, tallinn, helsinki, paris, tbilisi, berlin, athens, budapest, reykjavik/reykjavík,
        dublin, rome, pristina, riga, vaduz, vilnius, luxembourg/luxembourg city, valletta, chisinau/chișinău, monaco,
        podgorica, amsterdam, skopje, oslo, warsaw, lisbon, bucharest, moscow, san marino, belgrade, bratislava, ljubljana,
        madrid, stockholm, bern/berne, ankara, kyiv/kiev, london, vatican city""",
    "us-states": """alabama, alaska, arizona, arkansas, california, colorado, connecticut, delaware, florida, georgia,
        hawaii, idaho, illinois, indiana, iowa, kansas, kentucky, louisiana, maine, maryland, massachusetts, michigan,
        minnesota, mississippi, missouri, montana, nebraska, nevada, new hampshire, new jersey, new mexico, new york,
        north carolina, north dakota, ohio, oklahoma, oregon, pennsylvania, rhode island, south carolina, south dakota,
        tennessee, texas, utah, vermont, virginia, washington, west virginia, wisconsin, wyoming""",
    "mexican-states": """aguascalientes, baja california, baja california sur, campeche, chiapas, chihuahua, coahuila,
        colima, durango, guanajuato, guerrero, hidalgo, jalisco, méxico/mexico/state of mexico, michoacán/michoacan,
        morelos, nayarit, nuevo león/nuevo leon, oaxaca, puebla, querétaro/queretaro, quintana roo,
        san luis potosí/san luis potosi, sinaloa, sonora, tabasco, tamaulipas, tlaxcala, veracruz, yucatán/yucatan,
        zacatecas, mexico city""",
    "japan-prefectures": """hokkaido, aomori, iwate, miyagi, akita, yamagata, fukushima, ibaraki, tochigi, gunma, saitama,
        chiba, tokyo, kanagawa, niigata, toyama, ishikawa, fukui, yamanashi, nagano, gifu, shizuoka, aichi, mie, shiga,
        kyoto, osaka, hyogo, nara, wakayama, tottori, shimane, okayama, hiroshima, yamaguchi, tokushima, kagawa, ehime,
        kochi, fukuoka, saga, nagasaki, kumamoto, oita, miyazaki, kagoshima, okinawa""",
    "indian-states": """andhra pradesh, arunachal pradesh, assam, bihar, chhattisgarh, goa, gujarat, haryana,
        himachal pradesh, jharkhand, karnataka, kerala, madhya pradesh, maharashtra, manipur, meghalaya, mizoram, nagaland,
        odisha/orissa, punjab, rajasthan, sikkim, tamil nadu, telangana, tripura, uttar pradesh, uttarakhand, west bengal""",
    "german-states": """baden-württemberg, bayern, berlin, brandenburg, bremen, hamburg, hessen, mecklenburg-vorpommern,
        niedersachsen, nordrhein-westfalen, rheinland-pfalz, saarland, sachsen, sachsen-anhalt, schleswig-holstein,
        thüringen""",
    "elements": """hydrogen, helium, lithium, beryllium, boron, carbon, nitrogen, oxygen, fluorine, neon, sodium, magnesium,
        aluminum/aluminium, silicon, phosphorus, sulfur/sulphur, chlorine, argon, potassium, calcium, scandium, titanium,
        vanadium, chromium, manganese, iron, cobalt, nickel, copper, zinc, gallium, germanium, arsenic, selenium, bromine,
        krypton, rubidium, strontium, yttrium, zirconium, niobium, molybdenum, technetium, ruthenium, rhodium, palladium,
        silver, cadmium, indium, tin, antimony, tellurium, iodine, xenon, cesium/caesium, barium, lanthanum, cerium,
        praseodymium, neodymium, promethium, samarium, europium, gadolinium, terbium, dysprosium, holmium, erbium, thulium,
        ytterbium, lutetium, hafnium, tantalum, tungsten, rhenium, osmium, iridium, platinum, gold, mercury, thallium, lead,
        bismuth, polonium, astatine, radon, francium, radium, actinium, thorium, protactinium, uranium, neptunium,
        plutonium, americium, curium, berkelium, californium, einsteinium, fermium, mendelevium, nobelium, lawrencium,
        rutherfordium, dubnium, seaborgium, bohrium, hassium, meitnerium, darmstadtium, roentgenium, copernicium, nihonium,
        flerovium, moscovium, livermorium, tennessine, oganesson""",
    "constellations": """andromeda, antlia, apus, aquarius, aquila, ara, aries, auriga, boötes/bootes, caelum,
        camelopardalis, cancer, canes venatici, canis major, canis minor, capricornus/capricorn, carina, cassiopeia,
        centaurus, cepheus, cetus, chamaeleon, circinus, columba, coma berenices, corona australis, corona borealis, corvus,
        crater, crux, cygnus, delphinus, dorado, draco, equuleus, eridanus, fornax, gemini, grus, hercules, horologium,
        hydra, hydrus, indus, lacerta, leo, leo minor, lepus, libra, lupus, lynx, lyra, mensa, microscopium, monoceros,
        musca, norma, octans, ophiuchus, orion, pavo, pegasus, perseus, phoenix, pictor, pisces, piscis austrinus, puppis,
        pyxis, reticulum, sagitta, sagittarius, scorpius/scorpio, sculptor, scutum, serpens, sextans, taurus, telescopium,
        triangulum, triangulum australe, tucana, ursa major, ursa minor, vela, virgo, volans, vulpecula""",
    "us-presidents": """george washington, john adams, thomas jefferson, james madison, james monroe, john quincy adams,
        andrew jackson, martin van buren, william henry harrison, john tyler, james polk/james k polk, zachary taylor,
        millard fillmore, franklin pierce, james buchanan, abraham lincoln, andrew johnson, ulysses grant/ulysses s grant,
        rutherford hayes/rutherford b hayes, james garfield/james a garfield, chester arthur/chester a arthur,
        grover cleveland, benjamin harrison, william mckinley, theodore roosevelt, william howard taft, woodrow wilson,
        warren harding/warren g harding, calvin coolidge, herbert hoover, franklin roosevelt/franklin d roosevelt,
        harry truman/harry s truman, dwight eisenhower/dwight d eisenhower, john kennedy/john f kennedy,
        lyndon johnson/lyndon b johnson, richard nixon, gerald ford, jimmy carter, ronald reagan, george hw bush,
        bill clinton, george w bush, barack obama, donald trump, joe biden""",
    "shakespeare": """all's well that ends well/alls well that ends well, antony and cleopatra, as you like it,
        the comedy of errors/comedy of errors, coriolanus, cymbeline, hamlet, henry iv, henry v, henry vi, henry viii,
        julius caesar, king john, king lear, love's labour's lost/loves labours lost, macbeth, measure for measure,
        the merchant of venice/merchant of venice, the merry wives of windsor/merry wives of windsor,
        a midsummer night's dream/midsummer nights dream, much ado about nothing, othello, pericles, richard ii,
        richard iii, romeo and juliet, the taming of the shrew/taming of the shrew, the tempest/tempest, timon of athens,
        titus andronicus, troilus and cressida, twelfth night, the two gentlemen of verona/two gentlemen of verona,
        the two noble kinsmen/two noble kinsmen, the winter's tale/winters tale""",
    "bible": """genesis, exodus, leviticus, numbers, deuteronomy, joshua, judges, ruth, 1 samuel, 2 samuel, 1 kings,
        2 kings, 1 chronicles, 2 chronicles, ezra, nehemiah, esther, job, psalms, proverbs, ecclesiastes,
        song of solomon/song of songs, isaiah, jeremiah, lamentations, ezekiel, daniel, hosea, joel, amos, obadiah, jonah,
        micah, nahum, habakkuk, zephaniah, haggai, zechariah, malachi, matthew, mark, luke, john, acts, romans,
        1 corinthians, 2 corinthians, galatians, ephesians, philippians, colossians, 1 thessalonians, 2 thessalonians,
        1 timothy, 2 timothy, titus, philemon, hebrews, james, 1 peter, 2 peter, 1 john, 2 john, 3 john, jude,
        revelation""",
    "bond": """dr no, from russia with love, goldfinger, thunderball, you only live twice,
        on her majesty's secret service/on her majestys secret service, diamonds are forever, live and let die,
        the man with the golden gun, the spy who loved me, moonraker, for your eyes only, octopussy, a view to a kill,
        the living daylights, licence to kill/license to kill, goldeneye, tomorrow never dies, the world is not enough,
        die another day, casino royale, quantum of solace, skyfall, spectre, no time to die""",
    "pokemon": """bulbasaur, ivysaur, venusaur, charmander, charmeleon, charizard, squirtle, wartortle, blastoise, caterpie,
        metapod, butterfree, weedle, kakuna, beedrill, pidgey, pidgeotto, pidgeot, rattata, raticate, spearow, fearow,
        ekans, arbok, pikachu, raichu, sandshrew, sandslash, nidoran, nidorina, nidoqueen, nidorino, nidoking, clefairy,
        clefable, vulpix, ninetales, jigglypuff, wigglytuff, zubat, golbat, oddish, gloom, vileplume, paras, parasect,
        venonat, venomoth, diglett, dugtrio, meowth, persian, psyduck, golduck, mankey, primeape, growlithe, arcanine,
        poliwag, poliwhirl, poliwrath, abra, kadabra, alakazam, machop, machoke, machamp, bellsprout, weepinbell,
        victreebel, tentacool, tentacruel, geodude, graveler, golem, ponyta, rapidash, slowpoke, slowbro, magnemite,
        magneton, farfetch'd/farfetchd, doduo, dodrio, seel, dewgong, grimer, muk, shellder, cloyster, gastly, haunter,
        gengar, onix, drowzee, hypno, krabby, kingler, voltorb, electrode, exeggcute, exeggutor, cubone, marowak,
        hitmonlee, hitmonchan, lickitung, koffing, weezing, rhyhorn, rhydon, chansey, tangela, kangaskhan, horsea, seadra,
        goldeen, seaking, staryu, starmie, mr mime, scyther, jynx, electabuzz, magmar, pinsir, tauros, magikarp, gyarados,
        lapras, ditto, eevee, vaporeon, jolteon, flareon, porygon, omanyte, omastar, kabuto, kabutops, aerodactyl, snorlax,
        articuno, zapdos, moltres, dratini, dragonair, dragonite, mewtwo, mew""",
    "nba": """atlanta hawks, boston celtics, brooklyn nets, charlotte hornets, chicago bulls, cleveland cavaliers,
        dallas mavericks, denver nuggets, detroit pistons, golden state warriors, houston rockets, indiana pacers,
        los angeles clippers/la clippers, los angeles lakers/la lakers, memphis grizzlies, miami heat, milwaukee bucks,
        minnesota timberwolves, new orleans pelicans, new york knicks, oklahoma city thunder, orlando magic,
        philadelphia 76ers, phoenix suns, portland trail blazers, sacramento kings, san antonio spurs, toronto raptors,
        utah jazz, washington wizards""",
}
