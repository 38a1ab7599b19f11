"""Every rendition: pure, repeatable, for colour and line art of any size, and like no other."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from deadiff.data.icons import Drawing
from deadiff.data.icons import render as draw
from deadiff.data.picture import Picture
from deadiff.data.renditions import RENDITIONS, render, render_batch
from deadiff.errors import DataError

ART = Path(__file__).parent / "fixtures" / "art"
SUBJECTS = [row["hexcode"] for row in json.loads((ART / "subjects.json").read_text())]


def picture(set_name: str, subject: str, size: int = 64) -> np.ndarray:
    return draw(Drawing(subject=subject, kind="svg", source=(ART / set_name / f"{subject}.svg").read_text()), size)


COLOUR, OTHER, LINES = (
    picture("noto", SUBJECTS[0]),
    picture("noto", SUBJECTS[-1]),
    picture("fluent-emoji-high-contrast", SUBJECTS[-1]),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_there_are_at_least_thirty_each_with_two_to_four_ways_to_say_it():
    assert len(RENDITIONS) >= 30
    for rendition in RENDITIONS.values():
        assert 2 <= len(rendition.words) <= 4
        assert all(words == words.lower() and len(words.split()) <= 9 for words in rendition.words)
    every = [words for rendition in RENDITIONS.values() for words in rendition.words]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", RENDITIONS)
def test_a_rendition_is_a_pure_function_of_picture_and_random_state(name):
    for image in (COLOUR, LINES):
        before = image.copy()
        drawn, palette = render(image, name, rng(3))
        assert drawn.shape == image.shape and drawn.dtype == np.uint8 and palette
        again, same_palette = render(image, name, rng(3))
        assert np.array_equal(drawn, again) and palette == same_palette
        assert np.array_equal(image, before)


@pytest.mark.parametrize("name", RENDITIONS)
def test_the_subject_decides_what_is_drawn(name):
    """Two subjects in the same rendition and random state differ, most of all where their drawings do."""
    one, other = (render(image, name, rng(1))[0].astype(int) for image in (COLOUR, OTHER))
    assert np.abs(one - other).mean() > 3


@pytest.mark.parametrize("name", RENDITIONS)
def test_parameters_vary_with_the_random_state(name):
    drawn = [render(COLOUR, name, rng(seed))[0].astype(int) for seed in range(6)]
    assert max(np.abs(drawn[0] - image).mean() for image in drawn[1:]) > 1


@pytest.mark.parametrize("name", RENDITIONS)
@pytest.mark.parametrize("kind", ["empty paper", "all ink", "one dot", "grey", "96 px", "32 px"])
def test_odd_pictures_are_drawn_without_warnings(name, kind):
    image = {
        "empty paper": np.full((64, 64, 3), 255, np.uint8),
        "all ink": np.zeros((64, 64, 3), np.uint8),
        "one dot": np.pad(np.zeros((2, 2, 3), np.uint8), ((31, 31), (31, 31), (0, 0)), constant_values=255),
        "grey": np.full((64, 64, 3), 128, np.uint8),
        "96 px": picture("twemoji", SUBJECTS[3], 96),
        "32 px": picture("twemoji", SUBJECTS[3], 32),
    }[kind]
    drawn, _ = render(image, name, rng(2))
    assert drawn.shape == image.shape and drawn.dtype == np.uint8


def test_no_two_renditions_look_alike():
    """Mean colours of an 8x8 grid and fine detail, over two subjects and three palettes: every pair keeps its distance."""
    looks = []
    for name in RENDITIONS:
        drawn = [render(image, name, rng(seed))[0].astype(np.float32) / 255 for image in (COLOUR, LINES) for seed in range(3)]
        stack = np.stack(drawn)
        coarse = stack.reshape(len(drawn), 8, 8, 8, 8, 3).mean((2, 4))
        fine = np.abs(np.diff(stack, axis=1)).mean() + np.abs(np.diff(stack, axis=2)).mean()
        looks.append(np.concatenate([coarse.mean(0).ravel(), [20 * fine]]))
    table = np.stack(looks)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.eye(len(table)) * 99
    one, other = np.unravel_index(distance.argmin(), distance.shape)
    assert distance.min() > 0.25, f"{list(RENDITIONS)[one]} and {list(RENDITIONS)[other]} are {distance.min():.2f} apart"


def test_line_art_and_colour_art_are_told_apart():
    assert Picture(LINES).mono and not Picture(COLOUR).mono


def test_the_silhouette_includes_white_fields_that_the_paper_cannot_reach():
    ring = np.full((64, 64, 3), 255, np.uint8)
    ring[16:48, 16:48] = 0
    ring[20:44, 20:44] = 255
    hard = Picture(ring).hard
    assert hard[32, 32] and hard[17, 17] and not hard[2, 2]
    number, labels = Picture(ring).regions
    assert number == 2 and labels[32, 32] == 1


def test_a_batch_is_drawn_from_the_named_renditions_only():
    images = np.stack([COLOUR, OTHER, LINES, COLOUR])
    drawn, names, palettes = render_batch(images, rng(4), ["neon", "woodcut"])
    assert drawn.shape == images.shape and set(names) <= {"neon", "woodcut"} and len(palettes) == 4
    again, same, _ = render_batch(images, rng(4), ["neon", "woodcut"])
    assert np.array_equal(drawn, again) and names == same


def test_an_unknown_rendition_is_an_error():
    with pytest.raises(DataError, match="no rendition is called 'sfumato'"):
        render(COLOUR, "sfumato", rng())


def test_renditions_are_fast_enough_to_draw_while_training():
    image = picture("noto", SUBJECTS[0], 128)
    start = time.process_time()
    for name in RENDITIONS:
        render(image, name, rng())
    assert (time.process_time() - start) / len(RENDITIONS) < 0.03  # about 3 ms on a quiet core
