"""What a rendition reads off an icon: silhouette, lines, tones and regions, computed once, alike for colour and line art."""

# H, W pixels; float32 in [0, 1] unless said otherwise; `unit` is one pixel of a 128-pixel picture

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from deadiff.data.palettes import f32

WHITE = f32([1, 1, 1])


def kernel(radius: float) -> np.ndarray:
    """A disc of the given radius in pixels, for erosion and dilation."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REPLICATE)


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, straight between; `high` < `low` falls instead."""
    return np.clip((values - low) / (high - low), 0, 1, dtype=np.float32)


def over(below: np.ndarray, above: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """`above` painted on `below` with the (H, W) coverage `alpha`."""
    if isinstance(alpha, np.ndarray) and alpha.ndim == 2:
        alpha = alpha[..., None]
    return below + (above - below) * alpha


class Picture:
    """An icon on white paper, (H, W, 3) uint8 RGB, and what can be read off it."""

    def __init__(self, image: np.ndarray):
        self.image = image
        self.height, self.width = image.shape[:2]
        self.unit = self.height / 128

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @cached_property
    def rgb(self) -> np.ndarray:
        return self.image.astype(np.float32) / 255

    @cached_property
    def luminance(self) -> np.ndarray:
        return self.rgb @ f32([0.3, 0.59, 0.11])

    @cached_property
    def mono(self) -> bool:
        """True for line art: nothing on the picture has a hue, and what is drawn is black rather than grey."""
        inked = self.image.min(axis=2) < 235
        if not inked.any():
            return True
        spread = self.image.max(axis=2).astype(np.int16) - self.image.min(axis=2)
        dark, middle = np.percentile(self.luminance[inked], [10, 50])
        return bool(spread[inked].mean() < 8 and dark < 0.1 and middle < 0.55)

    @cached_property
    def hard(self) -> np.ndarray:
        """(H, W) bool: the silhouette, holes that the paper cannot reach filled."""
        paper = np.pad((self.image.min(axis=2) > 247).astype(np.uint8), 1, constant_values=1)
        cv2.floodFill(paper, None, (0, 0), 2, flags=8 if self.mono else 4)
        return paper[1:-1, 1:-1] != 2

    @cached_property
    def alpha(self) -> np.ndarray:
        """The silhouette with soft edges, a little inside the painted one so that no white fringe shows on dark grounds."""
        hard = self.hard.astype(np.float32)
        if not self.mono:
            trimmed = cv2.erode(hard, np.ones((2, 2), np.uint8))
            hard = np.maximum(trimmed, hard * (self.luminance < 0.6))
        return np.clip(blur(hard, 0.6 * self.unit), 0, 1)

    @cached_property
    def figure(self) -> np.ndarray:
        """The colours inside, carried outwards over the soft edge."""
        inside = cv2.erode(self.hard.astype(np.float32), kernel(1))
        spread = blur(inside, 1.5 * self.unit)
        carried = blur(self.rgb * inside[..., None], 1.5 * self.unit) / np.maximum(spread, 1e-3)[..., None]
        keep = np.maximum(inside, (spread < 0.05).astype(np.float32))
        return over(np.clip(carried, 0, 1), self.rgb, keep)

    @cached_property
    def ink(self) -> np.ndarray:
        """Darkness, for line art the drawing itself."""
        return np.clip(1 - self.luminance, 0, 1)

    @cached_property
    def solid(self) -> np.ndarray:
        """Line art's filled black areas, as opposed to its strokes."""
        radius = 2.6 * self.unit
        return blur(cv2.dilate(cv2.erode(self.ink, kernel(radius)), kernel(radius)), 0.5)

    @cached_property
    def lines(self) -> np.ndarray:
        """The drawing as strokes about 1.5 units wide: line art's own, or where colours meet."""
        if self.mono:
            return np.clip(self.ink - 0.9 * cv2.erode(self.ink, kernel(2.6 * self.unit)), 0, 1)
        smooth = cv2.GaussianBlur(self.image, (0, 0), 0.8 * self.unit)
        edges = cv2.Canny(smooth, 28, 80).astype(np.float32) / 255
        thick = cv2.dilate(edges, np.ones((2, 2), np.uint8))
        return np.clip(blur(thick, 0.55 * self.unit) * 1.25, 0, 1)

    @cached_property
    def outline(self) -> np.ndarray:
        """The silhouette's edge alone."""
        hard = self.hard.astype(np.float32)
        return blur(cv2.dilate(hard, kernel(1)) - cv2.erode(hard, kernel(1)), 0.6 * self.unit)

    @cached_property
    def regions(self) -> tuple[int, np.ndarray]:
        """Line art's white fields: (number, (H, W) int32 labels, 0 outside of them)."""
        fields = ((self.luminance > 0.5) & self.hard).astype(np.uint8)
        return cv2.connectedComponents(fields, connectivity=4, ltype=cv2.CV_32S)

    @cached_property
    def tone(self) -> np.ndarray:
        """Light and shade inside the silhouette, stretched to [0, 1]; line art's fields get steps of their own."""
        if self.mono:
            number, labels = self.regions
            steps = 0.62 + 0.38 * np.modf(np.arange(number) * 0.618 + 0.9)[0]
            return (steps.astype(np.float32)[labels] * (1 - self.ink)).astype(np.float32)
        light = self.figure @ f32([0.3, 0.59, 0.11])
        inside = light[self.hard]
        if inside.size == 0:
            return light
        low, high = np.percentile(inside, [3, 97])
        if high - low < 0.15:
            middle = (low + high) / 2
            low, high = middle - 0.2, middle + 0.2
        stretched = ramp(light, float(low) - 0.02, float(high) + 0.02)
        # the body of the figure is a middle tone, however small its highlights and shadows are
        middle = float(np.clip(np.median(stretched[self.hard]), 0.03, 0.97))
        return stretched ** np.float32(np.log(np.clip(middle, 0.42, 0.74)) / np.log(middle))

    def colours(self, palette: np.ndarray) -> np.ndarray:
        """The figure in colour: its own hues, or line art's fields filled from `palette` (K, 3), dark to light."""
        return self.filled(palette) if self.mono else self.figure

    def filled(self, palette: np.ndarray) -> np.ndarray:
        """The figure in the colours of `palette` (K, 3), dark to light, by tone or by field; (H, W, 3)."""
        if not self.mono:
            return palette[self.steps(len(palette))]
        number, labels = self.regions
        order = 1 + (np.arange(number) * 2 + 1) % (len(palette) - 1)
        return over(palette[order[labels]], palette[0], np.clip(self.ink * 1.2, 0, 1))

    def steps(self, number: int) -> np.ndarray:
        """(H, W) int: the tone cut into `number` steps that each take some of the figure."""
        inside = self.tone[self.hard]
        even = np.arange(1, number) / number
        cuts = 0.5 * even + 0.5 * np.quantile(inside, even) if inside.size else even
        return np.digitize(self.tone, cuts)

    @cached_property
    def depth(self) -> np.ndarray:
        """Pixels to the silhouette's edge, 0 outside, at most the picture's height."""
        return np.minimum(cv2.distanceTransform(self.hard.astype(np.uint8), cv2.DIST_L2, 3), self.height)

    @cached_property
    def distance(self) -> np.ndarray:
        """Pixels to the silhouette from outside, 0 inside, at most the picture's height."""
        return np.minimum(cv2.distanceTransform((~self.hard).astype(np.uint8), cv2.DIST_L2, 3), self.height)

    def shrunk(self, share: float, shift: tuple[float, float] = (0, 0)) -> Picture:
        """The same icon on the same paper at `share` of its size, moved by `shift` units (right, down)."""
        place = f32(
            [
                [share, 0, (1 - share) * self.width / 2 + shift[0] * self.unit],
                [0, share, (1 - share) * self.height / 2 + shift[1] * self.unit],
            ]
        )
        small = cv2.GaussianBlur(self.image, (0, 0), 0.45 / share) if share < 0.75 else self.image
        moved = cv2.warpAffine(
            small,
            place,
            (self.width, self.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(255, 255, 255),
        )
        return Picture(moved)
