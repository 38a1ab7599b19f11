"""Words for things that can be drawn, taken from WordNet's noun hierarchy: how data/words/subjects.tsv came about.

    python -m deadiff.data.wordnet /usr/share/wordnet src/deadiff/data/words

reads WordNet 3.0's dictionary files (Debian: wordnet-base and wordnet-sense-index) and curated.txt in the words' folder, and
writes subjects.tsv there: group, word, source. Within a group the words of our own curation come first, then the most used.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from deadiff.errors import DataError
from deadiff.writing import write_text_whole

# group -> WordNet topics "word.lexicographer file"; what lies below them is taken. An earlier group wins.
TOPICS: dict[str, tuple[str, ...]] = {
    "characters": (
        *(
            "worker.18",
            "entertainer.18",
            "artist.18",
            "athlete.18",
            "ruler.18",
            "professional.18",
            "craftsman.18",
            "combatant.18",
        ),
        *("traveler.18", "creator.18", "adventurer.18", "imaginary_being.18", "religious_person.18", "aristocrat.18", "child.18"),
        *("serviceman.18", "scientist.18", "musician.18", "health_professional.18", "leader.18", "expert.18", "rescuer.18"),
        *("friend.18", "attendant.18", "spectator.18", "collector.18", "preserver.18", "native.18", "old_person.18"),
    ),
    "animals": ("animal.03",),
    "scenes": (
        *("building.06", "room.06", "way.06", "housing.06", "bridge.06", "establishment.06", "facility.06", "structure.06"),
        *("geological_formation.17", "body_of_water.17", "workplace.06", "landscape.15", "tract.15", "area.06", "land.17"),
        *("vegetation.14", "geographical_area.15", "atmospheric_phenomenon.19", "point.15", "celestial_body.17"),
    ),
    "objects": (
        *("instrumentality.06", "clothing.06", "covering.06", "decoration.06", "plaything.06", "creation.06", "fabric.06"),
        *("food.13", "fruit.20", "flower.20", "tree.20", "vegetable.13", "fungus.20", "shrub.20", "herb.20", "natural_object.17"),
        *("mineral.27", "plant.03", "commodity.06", "block.06", "strip.06", "sheet.06", "surface.06", "excavation.06"),
    ),
}
FILES = {  # lexicographer files from which a group may take; topics reach into others
    "characters": {"18"},
    "animals": {"05"},
    "scenes": {"06", "15", "17", "14", "19"},
    "objects": {"06", "13", "20", "17", "27"},
}
LEFT_OUT = (  # topics whose words cannot be drawn, or name the same picture a hundred times
    *("drug.06", "medicine.06", "microorganism.03", "genus.14", "animal_tissue.05", "electronic_equipment.06", "network.06"),
    *("system.06", "part.06", "prisoner.18", "criminal.18", "slave.18", "chemical_weapon.06", "contraceptive.06", "line.06"),
    *("flavorer.13", "fish_family.05", "software.10", "medium.06", "musical_composition.10", "representation.06", "feed.13"),
    *("chemical.27", "nutriment.13", "section.15", "political_unit.15", "administrative_district.15", "country.15", "pole.15"),
    *("communication_system.06", "explosive_device.06", "instrument_of_execution.06", "restraint.06"),
)
UNFIT = re.compile(  # of a word or its gloss: insults, sex, drugs, bodies, and what only a specialist means
    r"offensive|slur|blackface|\bwog\b|disparag|derogat|insult|contempt|prostitut|whore|sexual|\bsex\b|genital|penis|vagina|breast|nude|naked|erotic"
    r"|narcotic|cocaine|heroin|marijuana|opium|slave|nazi|lynch|execut(?:ion|ed)|torture|suicid|gas chamber|enema|condom|corpse"
    r"|cadaver|fetus|embryo|larva\b|gamete|spermato|excrement|\bfeces|urin|toilet|negro|mulatto|eskimo|gypsy|savage|cannibal"
    r"|homosexual|lesbian|incest|rape\b|drunk|alcoholic$|idiot|moron|cripple|lunatic|bastard|pimp|mistress|concubine|harem|eunuch"
    r"|obsolete|archaic|formerly used|hypothetical|unit of|abbreviation|number of|amount of|\bact of|trade name"
)
MOST_WORDS = 3  # in a term


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One meaning: its words, what it is a kind of, and what WordNet says of it."""

    file: str  # lexicographer file, two digits
    words: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


def read_synsets(data_noun: Path) -> dict[str, Synset]:
    """data.noun -> offset -> Synset (wndb(5WN))."""
    synsets = {}
    for line in data_noun.read_text("latin-1").splitlines():
        if line.startswith("  "):
            continue  # the licence
        head, _, gloss = line.partition(" | ")
        fields = head.split(" ")
        count = int(fields[3], 16)
        pointers = fields[5 + 2 * count :]
        parents = [pointers[i + 1] for i in range(0, 4 * int(fields[4 + 2 * count]), 4) if pointers[i] == "@"]
        words = tuple(fields[4 + 2 * i] for i in range(count))
        synsets[fields[0]] = Synset(file=fields[1], words=words, parents=tuple(parents), gloss=gloss.strip())
    return synsets


def read_senses(index_sense: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """index.sense -> (lower-case word, offset) -> (which of its noun senses, how often it was met in tagged texts)."""
    senses = {}
    for line in index_sense.read_text("latin-1").splitlines():
        key, offset, number, count = line.split(" ")
        word, _, rest = key.partition("%")
        if rest.startswith("1:"):
            senses[word, offset] = (int(number), int(count))
    return senses


def below(synsets: dict[str, Synset], topics: tuple[str, ...]) -> set[str]:
    """Offsets of all that is a kind of one of the topics, these included."""
    children: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for offset, synset in synsets.items():
        for parent in synset.parents:
            children.setdefault(parent, []).append(offset)
        for word in synset.words:
            names.setdefault(f"{word.lower()}.{synset.file}", []).append(offset)
    found, left = set(), [offset for topic in topics for offset in names.get(topic, ())[:1]]
    while left:
        offset = left.pop()
        if offset not in found:
            found.add(offset)
            left += children.get(offset, ())
    return found


def drawable(folder: Path) -> dict[str, list[str]]:
    """Group -> terms, the most used first."""
    synsets = read_synsets(folder / "data.noun")
    senses = read_senses(folder / "index.sense")
    left_out = below(synsets, LEFT_OUT)
    kinds = {parent for synset in synsets.values() for parent in synset.parents}  # that have kinds of their own
    taken: set[str] = set()
    groups: dict[str, list[str]] = {}
    for group, topics in TOPICS.items():
        ranked = []
        for offset in sorted(below(synsets, topics) - left_out):
            synset = synsets[offset]
            word = synset.words[0]
            number, count = senses.get((word.lower(), offset), (9, 0))
            term = word.replace("_", " ")
            fits = (
                synset.file in FILES[group]
                and re.fullmatch(r"[a-z][a-z' -]+", term)  # no names of places, people or families of species
                and len(term.split()) <= MOST_WORDS
                and len(term) >= 3
                and (offset not in kinds or count > 0)  # "hymenopterous insect" is a heading, "dog" is a word
                and number <= (1 if count == 0 else 2)  # what the word means first of all
                and not UNFIT.search(f"{term} {synset.gloss}")
                and term not in taken
            )
            if fits:
                taken.add(term)
                ranked.append((-count, len(term.split()), term))
        groups[group] = [term for *_, term in sorted(ranked)]
    return groups


def read_curated(path: Path) -> dict[str, list[str]]:
    """curated.txt: [group], then terms separated by commas; [never] holds what is taken out."""
    groups: dict[str, list[str]] = {}
    current = ""
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            current = line.strip("[]")
        elif line:
            groups.setdefault(current, []).extend(term.strip() for term in line.split(",") if term.strip())
    return groups


def write_subjects(wordnet: Path, words: Path) -> dict[str, int]:
    """Writes WORDS/subjects.tsv; returns how many words each group has."""
    curated = read_curated(words / "curated.txt")
    never = set(curated.pop("never", ()))
    if unknown := sorted(curated.keys() - TOPICS.keys()):
        raise DataError(f"'{words / 'curated.txt'}' has a group [{unknown[0]}]: expected one of {', '.join(TOPICS)}, never")
    seen, lines, counts = set(never), ["group\tword\tsource"], {}
    for group, terms in curated.items():
        kept = [term for term in dict.fromkeys(terms) if term not in seen]
        seen.update(kept)
        curated[group] = kept
    for group, terms in drawable(wordnet).items():
        kept = [(term, "curated") for term in curated.get(group, ())]
        kept += [(term, "wordnet") for term in terms if term not in seen]
        lines += [f"{group}\t{term}\t{source}" for term, source in kept]
        counts[group] = len(kept)
    write_text_whole(words / "subjects.tsv", "\n".join(lines) + "\n")
    return counts


if __name__ == "__main__":
    sys.stdout.write(f"{write_subjects(Path(sys.argv[1]), Path(sys.argv[2]))}\n")
