"""Subjects and styles in words: the package's own lists (data/words), or a user's files of the same make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deadiff.data.captions import with_article
from deadiff.errors import DataError

WORDS = Path(__file__).parent / "words"
GROUPS = ("characters", "animals", "objects", "scenes")  # the paper's


@dataclass(frozen=True, kw_only=True)
class SubjectWord:
    """One thing to draw."""

    word: str  # "barn owl"
    group: str  # "animals"


@dataclass(frozen=True, kw_only=True)
class StyleWord:
    """One way to draw it. `frame` is where the two meet: "{style} of {subject}"."""

    words: str  # "an oil painting"
    kind: str  # "medium"
    frame: str

    def prompt(self, subject: str) -> str:
        """'barn owl' -> 'an oil painting of a barn owl'."""
        return self.frame.format(style=self.words, subject=with_article(subject))


def read_subjects(path: Path | None = None) -> list[SubjectWord]:
    """The lines "group TAB word" of a file, with a heading; further columns are the reader's own. Raises DataError."""
    path = path or WORDS / "subjects.tsv"
    head, *lines = _lines(path)
    if head.split("\t")[:2] != ["group", "word"]:
        raise DataError(f"'{path}' begins with {head[:40]!r}: expected the heading 'group' TAB 'word'")
    subjects = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        group, _, rest = line.partition("\t")
        word = " ".join(rest.split("\t")[0].split())
        if not group.strip() or not word:
            raise DataError(f"'{path}' line {number} is {line[:40]!r}: expected a group, a TAB and a word")
        subjects.setdefault(word, SubjectWord(word=word, group=group.strip()))  # a word is one subject, in the first group named
    if not subjects:
        raise DataError(f"'{path}' holds no subjects: expected lines such as 'animals' TAB 'barn owl'")
    return list(subjects.values())


def read_styles(path: Path | None = None) -> list[StyleWord]:
    """Lines "[kind | frame]", each followed by lines of words separated by commas. Raises DataError."""
    path = path or WORDS / "styles.txt"
    styles: dict[str, StyleWord] = {}
    kind = frame = ""
    for number, line in enumerate(_lines(path), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            kind, _, frame = (part.strip() for part in line.strip("[]").partition("|"))
            frame = frame or "{subject}, {style}"
            if "{subject}" not in frame or "{style}" not in frame:
                raise DataError(f"'{path}' line {number}: the frame is {frame!r}: expected one with {{subject}} and {{style}}")
        elif line:
            if not kind:
                raise DataError(f"'{path}' line {number} comes before any [kind | frame]: expected such a line first")
            for words in filter(None, (" ".join(part.split()) for part in line.split(","))):
                if words in styles:
                    raise DataError(f"'{path}' line {number} names {words!r} a second time: expected each style once")
                styles[words] = StyleWord(words=words, kind=kind, frame=frame)
    if not styles:
        raise DataError(f"'{path}' holds no styles: expected [kind | frame] and words below it")
    return list(styles.values())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines() or [""]
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist: check the path of the words") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read as text: {' '.join(str(error).split())[:200]}") from error
