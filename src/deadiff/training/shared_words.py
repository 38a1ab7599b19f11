"""Which subject a word alone stands for: twelve subjects carry the tag "car", and the mean of their drawings is no car."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from deadiff.data.captions import plain_label, with_article

Embed = Callable[[Sequence[str]], np.ndarray]  # N phrases -> (N, D) of unit length (deadiff.training.meanings)


def word_owners(rows: Iterable[Mapping], embed: Embed) -> dict[str, str]:
    """Tag -> the subject, among those that carry it, whose label is nearest to it in meaning. Labels belong to their own subject.

    rows: with subject, label and tags; a subject may come several times.
    """
    labels: dict[str, str] = {}
    carriers: dict[str, set[str]] = {}
    for row in rows:
        labels[row["subject"]] = plain_label(row["label"])
        for tag in row["tags"]:
            carriers.setdefault(tag.lower(), set()).add(row["subject"])
    by_label = {label: subject for subject, label in sorted(labels.items(), reverse=True)}
    tags, subjects = sorted(carriers.keys() - by_label.keys()), sorted(labels)
    if not tags:
        return {}
    said = embed([*map(with_article, tags), *(with_article(labels[subject]) for subject in subjects)]).astype(np.float32)
    near = said[: len(tags)] @ said[len(tags) :].T
    place = {subject: i for i, subject in enumerate(subjects)}
    carried = [np.array(sorted(place[subject] for subject in carriers[tag])) for tag in tags]
    return {tag: subjects[of[near[i, of].argmax()]] for i, (tag, of) in enumerate(zip(tags, carried, strict=True))}
