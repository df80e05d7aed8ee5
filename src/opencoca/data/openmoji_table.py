"""Builds the frozen OpenMoji table: which pictures, their captions, and which list each is held out in.

The committed `openmoji.tsv` is the truth at run time and this module is how it came about; a test shows that the pinned
`emoji` package still gives the same bytes. To write it anew (8 s): `python -m opencoca.data.openmoji_table PATH.tsv`.
"""

import hashlib
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from opencoca.data.openmoji import COLUMNS, TONES, Row, concept_of, render, role_of, svg_folder

SEED = 20  # never tuned: the first one that was tried
HELD_OUT_CONCEPT_PICTURES = {"test_concepts": 271, "val": 75}
COMBINATIONS = {"test_combinations": 200, "val": 75}
PICTURES = {"test_pictures": 400, "val": 150}
LARGEST_HELD_OUT_CONCEPT = 36  # one role in 6 tones, 3 genders, 2 directions; the couples have over 100 pictures each

TONE_WORDS = "|".join(sorted(TONES.values(), key=len, reverse=True))
FULL_NAMES = {  # names that read badly or say too little on their own
    "1F4A4": "ZZZ, sleeping",
    "1F4AB": "dizzy star",
    "1F512": "locked padlock",
    "1F513": "unlocked padlock",
    "1F50F": "locked padlock with pen",
    "1F510": "locked padlock with key",
    "1F520": "button for uppercase Latin letters",
    "1F521": "button for lowercase Latin letters",
    "1F522": "button for numbers",
    "1F523": "button for symbols",
    "1F524": "button for Latin letters",
    "1F3A6": "cinema sign",
    "1F30D": "globe showing Europe and Africa",
    "1F30E": "globe showing the Americas",
    "1F30F": "globe showing Asia and Australia",
    "1F30C": "Milky Way",
    "1F301": "bridge in fog",
    "1F303": "city at night with stars",
    "1F4F3": "mobile phone in vibration mode",
    "1F4F4": "mobile phone switched off",
    "1F4B1": "currency exchange sign",
    "1F517": "chain link",
    "1F5FB": "Mount Fuji",
    "1F5FC": "Tokyo Tower",
    "1F6D5": "Hindu temple",
    "1F6BE": "water closet sign",
    "1F6DC": "wireless sign",
    "1F0CF": "joker playing card",
    "1F004": "red dragon mahjong tile",
    "1F170": "blood type A button",
    "1F171": "blood type B button",
    "1F17E": "blood type O button",
    "1F18E": "blood type AB button",
    "1F9CA": "ice cube",
    "1F9C9": "mate drink",
    "1F689": "railway station",
    "1F9EC": "DNA",
    "1F4C0": "DVD",
    "1F4BF": "optical disc",
    "1F4BD": "computer minidisc",
    "1F6AD": "no smoking sign",
    "1F6AF": "no littering sign",
    "1F6B3": "no bicycles sign",
    "1F6B7": "no pedestrians sign",
    "1F6B1": "non-potable water sign",
    "1F6B0": "potable water sign",
    "1F4F5": "no mobile phones sign",
    "1F51E": "no one under eighteen sign",
    "1F6B8": "children crossing sign",
    "1F6C2": "passport control officer",
    "1F6C3": "customs officer",
    "1F6C5": "left luggage sign",
    "1F6BB": "restroom sign",
    "1F6B9": "men's room sign",
    "1F6BA": "women's room sign",
    "1F6D0": "place of worship sign",
    "1F6AB": "prohibited sign",
    "1F6A7": "construction barrier",
    "26D4": "no entry sign",
    "26A0": "warning sign",
    "26A1": "high voltage sign",
    "2622": "radioactive sign",
    "2623": "biohazard sign",
    "00A9": "copyright sign",
    "00AE": "registered trademark sign",
    "2122": "trademark sign",
    "2139": "information sign",
    "2049": "exclamation and question mark",
    "2716": "multiplication sign",
    "2795": "plus sign",
    "2796": "minus sign",
    "2797": "division sign",
    "1F7F0": "heavy equals sign",
    "267E": "infinity sign",
    "24C2": "circled letter M",
    "26F3": "golf hole with flag",
    "1F6AE": "litter in bin sign",
    "1F3BE": "tennis ball",
    "26CE": "Ophiuchus zodiac sign",
    "231B": "hourglass run out",
    "23F3": "hourglass with flowing sand",
    "1F3AD": "comedy and tragedy masks",
    "1F549": "om symbol",
    "1F931": "breast-feeding a baby",
    "1FAF1": "hand reaching to the right",
    "1FAF2": "hand reaching to the left",
    "1FAF8": "hand pushing to the right",
    "1FAF7": "hand pushing to the left",
}
ZODIAC = ("Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo")
ZODIAC += ("Libra", "Scorpio", "Sagittarius", "Capricorn", "Aquarius", "Pisces")
FULL_NAMES |= {f"{0x2648 + i:04X}": f"{name} zodiac sign" for i, name in enumerate(ZODIAC)}
COUNTRIES = {  # where the name on its own is a code, or needs an article
    "Congo-Kinshasa": "the Democratic Republic of the Congo",
    "Congo-Brazzaville": "the Republic of the Congo",
    "Hong Kong SAR China": "Hong Kong",
    "Macao SAR China": "Macao",
    "Myanmar (Burma)": "Myanmar",
    "Cocos (Keeling) Islands": "the Cocos Islands",
    "Caribbean Netherlands": "the Caribbean Netherlands",
    "South Georgia and South Sandwich Islands": "South Georgia and the South Sandwich Islands",
    "Turks and Caicos Islands": "the Turks and Caicos Islands",
    "Heard Island and McDonald Islands": "Heard Island and the McDonald Islands",
    "Saint Helena Ascension and Tristan da Cunha": "Saint Helena, Ascension and Tristan da Cunha",
    "Saint Vincent and Grenadines": "Saint Vincent and the Grenadines",
}
HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ARTICLE = re.compile(
    r"(United|Central African|Dominican|Netherlands|Philippines|Bahamas|Maldives|Comoros|Gambia|Isle|"
    r"European|Czech R|U\.S\.|British|French Southern|Palestinian|.*Islands$)"
)
PLURALS = {"man": "two men", "woman": "two women", "person": "two people", "adult": "two adults"}
PLURALS |= {"boy": "two boys", "girl": "two girls", "child": "two children"}
LOWERCASED = {"french": "French", "hindu": "Hindu", "latin": "Latin", "shinto": "Shinto", "orthodox": "Orthodox"}
LOWERCASED |= {"american": "American", "vulcan": "Vulcan", "tanabata": "Tanabata"}
NAMED_GENDERS = {"1F385": "man", "1F936": "woman", "1F934": "man", "1F478": "woman"}


def caption_of(id: str, name: str) -> str:
    """The caption of one picture, as a person would write it; skin tones come last and after a comma.

    Args: id is the OpenMoji file stem, name the English one of `emoji` (":woman_firefighter_dark_skin_tone:").
    """
    words = name.strip(":").replace("_", " ")
    words = words.replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"').replace(" & ", " and ")
    tones = re.findall(rf"({TONE_WORDS}) skin tone", words)
    words = " ".join(re.sub(rf"\b({TONE_WORDS}) skin tone", " ", words).split())
    bare = "-".join(code for code in id.split("-") if code not in TONES and code != "FE0F")
    caption = FULL_NAMES.get(bare) or _family(words) or _flag(id, words) or _rephrase(words)
    if tones:
        caption += ", " + " and ".join(f"{tone} skin tone" for tone in tones)
    return caption


def _listed(people: list[str]) -> str:
    """["man", "woman", "boy"] -> "man, woman and boy"; equal neighbours are counted."""
    counted: list[str] = []
    for person, count in Counter(people).items():
        counted.append(PLURALS[person] if count == 2 else person)
    return counted[0] if len(counted) == 1 else ", ".join(counted[:-1]) + " and " + counted[-1]


def _family(words: str) -> str | None:
    for group in ("couple with heart", "kiss", "family"):
        people = words.removeprefix(group).split()
        if words == "family":
            return words
        if words.startswith(group) and all(person in PLURALS for person in people):
            return f"{group}, {_listed(people or ['person', 'person'])}"
    return None


def _flag(id: str, words: str) -> str | None:
    regional = all("1F1E6" <= code <= "1F1FF" for code in id.split("-"))
    if not regional and not id.startswith("1F3F4-E0067"):
        return None
    place = words.replace("St. ", "Saint ")
    place = COUNTRIES.get(place, f"the {place}" if ARTICLE.match(place) else place)
    return f"flag of {place}"


def _rephrase(words: str) -> str:
    if words.removesuffix(" o'clock") in HOURS:
        return f"clock face at {words}"
    if words.removesuffix("-thirty") in HOURS and words.endswith("-thirty"):
        return f"clock face at half past {words.removesuffix('-thirty')}"
    words = re.sub(r"^(man|woman|person) (taking|feeding|rowing|bouncing|raising|tipping|wearing|getting|with|in) "
                   r"(bath|baby|boat|ball|hand|turban|massage|haircut|white cane|veil|skullcap|crown|headscarf|tuxedo|"
                   r"steamy room|suit|bed|manual wheelchair|motorized wheelchair)\b", r"\1 \2 a \3", words)  # fmt: skip
    words = words.replace("person in a bed", "person in bed").replace("in a suit levitating", "levitating in a suit")
    words = re.sub(r"^(man|woman|person) beard$", r"\1 with a beard", words)
    words = re.sub(r"^(man|woman|person) ((?:red|curly|white|blond) hair)$", r"\1 with \2", words)
    words = re.sub(r"^(man|woman|person) bald$", r"bald \1", words)
    words = re.sub(r"^Japanese (.*) button$", r'Japanese "\1" button', words)
    words = re.sub(r"^(.*)\bindex pointing", r"\1index finger pointing", words)
    return " ".join(LOWERCASED.get(word, word) for word in words.split())


def tones_of(id: str) -> tuple[str, ...]:
    """The skin tones of a picture from left to right, each once: () (two people may share one)."""
    return tuple(dict.fromkeys(TONES[code] for code in id.split("-") if code in TONES))


def genders_of(captions: dict[str, str]) -> dict[str, str]:
    """Per id "man", "woman", "person", "woman and man" or "". A role with a man or woman beside it is a "person"."""
    genders: dict[str, str] = {}
    for id, caption in captions.items():
        codes = id.split("-")
        words = set(caption.replace(",", " ").split())
        found = set()
        found |= {"man"} if "1F468" in codes or "2642" in codes[1:] or words & {"man", "men"} else set()
        found |= {"woman"} if "1F469" in codes or "2640" in codes[1:] or words & {"woman", "women"} else set()
        found |= {"person"} if not found and ("1F9D1" in codes or words & {"person", "people"}) else set()
        genders[id] = NAMED_GENDERS.get(codes[0]) or ("woman and man" if len(found) == 2 else "".join(found))
        if caption.startswith("family"):
            genders[id] = ""
    gendered = {concept_of(id) for id, gender in genders.items() if gender in ("man", "woman")}
    for id, caption in captions.items():
        child = caption.split(",")[0] in ("boy", "girl", "child")
        if not genders[id] and concept_of(id) in gendered and not child and not caption.startswith("family"):
            genders[id] = "person"
    return genders


def _shuffled(purpose: str, items) -> list:
    """The items in an order that depends on the seed, the purpose and each item alone: the same on every Python."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{SEED}/{purpose}/{item}".encode()).hexdigest())


def split(ids: list[str], pictures: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Per id its list and the kind of its holding out: ("val", "concepts"). See `opencoca.data.openmoji` for the rules.

    Args: pictures gives for each id the first id that has the very same pixels. A picture that another emoji shares is
      held out only with its whole concept: otherwise a held-out list would show a picture that was trained on.
    """
    split_of: dict[str, tuple[str, str]] = {}
    by_concept, by_pair, drawn_by = defaultdict(list), defaultdict(list), defaultdict(list)
    for id in ids:
        by_concept[concept_of(id)].append(id)
        by_pair[role_of(id), tones_of(id)].append(id)
        drawn_by[pictures[id]].append(id)
    alone = {id for id in ids if len(drawn_by[pictures[id]]) == 1}

    def closed(concept: str) -> bool:
        return all(concept_of(twin) == concept for id in by_concept[concept] for twin in drawn_by[pictures[id]])

    concepts = [c for c in by_concept if len(by_concept[c]) <= LARGEST_HELD_OUT_CONCEPT and closed(c)]
    concepts = iter(_shuffled("concepts", concepts))
    for name, wanted in HELD_OUT_CONCEPT_PICTURES.items():
        passed_over = []
        while wanted:
            concept = next(concepts)
            if len(by_concept[concept]) > wanted:
                passed_over.append(concept)
                continue
            split_of |= dict.fromkeys(by_concept[concept], (name, "concepts"))
            wanted -= len(by_concept[concept])

    tones_left = defaultdict(set)  # per role, the tones that training still shows
    for (role, tones), members in by_pair.items():
        if len(tones) == 1 and not any(id in split_of for id in members):
            tones_left[role].add(tones)
    held_from: Counter[str] = Counter()
    pairs = [(role, tones) for role, tones in by_pair if len(tones_left[role]) == 5 and tones in tones_left[role]]
    pairs = iter(_shuffled("combinations", [p for p in pairs if all(id in alone for id in by_pair[p])]))
    for name, wanted in COMBINATIONS.items():
        while wanted:
            role, tones = next(pairs)
            if held_from[role] == 2 or len(by_pair[role, tones]) > wanted:
                continue
            held_from[role] += 1
            tones_left[role].discard(tones)
            split_of |= dict.fromkeys(by_pair[role, tones], (name, "combinations"))
            wanted -= len(by_pair[role, tones])

    singles = iter(_shuffled("pictures", [id for id in ids if id in alone and id not in split_of]))
    for name, wanted in PICTURES.items():
        while wanted:
            id = next(singles)
            role, tones = role_of(id), tones_of(id)
            last = all(split_of.get(member) or member == id for member in by_pair[role, tones])
            if held_from[role] and len(tones) == 1 and last:
                if len(tones_left[role]) <= 2:
                    continue
                tones_left[role].discard(tones)
            split_of[id] = (name, "pictures")
            wanted -= 1
    return {id: split_of.get(id, ("train", "")) for id in ids}


def names() -> dict[str, str]:
    """Per OpenMoji file stem its English name: every fully-qualified emoji that OpenMoji draws (3,944 of 3,963).

    3,737 files are named by the whole sequence; 207 more leave U+FE0F out of theirs.
    """
    import emoji

    drawn = {path.stem for path in svg_folder().glob("*.svg")}
    found = {}
    for sequence, facts in emoji.EMOJI_DATA.items():
        if facts["status"] != emoji.STATUS["fully_qualified"]:
            continue
        codes = [f"{ord(character):04X}" for character in sequence]
        for stem in ("-".join(codes), "-".join(code for code in codes if code != "FE0F")):
            if stem in drawn:
                found[stem] = facts["en"]
                break
    return dict(sorted(found.items()))


def same_pictures(ids) -> dict[str, str]:
    """For each id the first id whose picture has the very same pixels (most often itself), rendered at 96 px."""
    first: dict[str, str] = {}
    return {id: first.setdefault(hashlib.sha256(render(id, 96)).hexdigest(), id) for id in ids}


def build(pictures: dict[str, str] | None = None) -> str:
    """The text of `openmoji.tsv`. `pictures` (see `same_pictures`) is rendered when it isn't given."""
    captions = {id: caption_of(id, name) for id, name in names().items()}
    ids = list(captions)
    pictures = same_pictures(ids) if pictures is None else pictures
    genders, splits = genders_of(captions), split(ids, pictures)
    lines = ["\t".join(COLUMNS)]
    for id in ids:
        row = Row(id, *splits[id], captions[id], tones_of(id), genders[id], concept_of(id), pictures[id])
        lines.append("\t".join(",".join(value) if isinstance(value, tuple) else value for value in row))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(build(), encoding="utf-8", newline="\n")
