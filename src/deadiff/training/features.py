"""What a draw turns into before the U-Net: vision features, latents and text, from caches or from the encoders themselves."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deadiff.adapter import DEADiffAdapter
from deadiff.errors import DataError
from deadiff.recipe import fingerprint
from deadiff.training.adapter_step import Sample
from deadiff.training.bases import Base
from deadiff.training.cache import FeatureCache, text_key
from deadiff.training.objectives import Objective
from deadiff.training.sources import Source

KINDS = ("vision", "latents", "text")
Tick = Callable[[str, int, int], object]  # kind, rows done, rows to do in all


class Features:
    """Draws of a source as samples. Without `open_caches` every draw runs the encoders."""

    def __init__(self, base: Base, adapter: DEADiffAdapter, source: Source, paired: bool = True) -> None:
        self.base, self.adapter, self.source = base, adapter, source
        self.paired = paired  # False: the reference is the target itself (the ablation)
        self.caches: dict[str, FeatureCache] = {}

    def sample(self, objective: Objective, draw_number: int, count: int, source: Source | None = None) -> Sample:
        """The features of one draw, on the CPU where they are cached and on the base's device otherwise."""
        source = source or self.source
        references, targets, captions = source.numbers(objective, draw_number, count)
        references = references if self.paired else targets
        said = self.text(captions)
        return Sample(objective, self.vision(references, source), self.latents(targets, source), said["text"], said.get("pooled"))

    def vision(self, numbers: Sequence[int] | np.ndarray, source: Source | None = None) -> Tensor:
        """(B, V, W) of pictures."""
        source = source or self.source
        if cache := self.caches.get("vision"):
            return cache[[source.sha256(int(number)) for number in numbers]]["vision"]
        pixels = self.adapter.config.preprocess(np.stack([source.picture(int(number)) for number in numbers]))
        return self.adapter.see(pixels)

    def latents(self, numbers: Sequence[int] | np.ndarray, source: Source | None = None) -> Tensor:
        """(B, 2Z, h, w): moments of pictures."""
        source = source or self.source
        if cache := self.caches.get("latents"):
            return cache[[source.sha256(int(number)) for number in numbers]]["moments"]
        return self.base.see_latents(np.stack([source.picture(int(number)) for number in numbers]))

    def text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """ "text" (B, T, C), for SDXL "pooled" (B, P). Captions that were not foreseen are encoded as they come."""
        cache = self.caches.get("text")
        keys = [text_key(caption) for caption in captions]
        if cache is not None and len(cache) and not cache.missing(keys):
            return cache[keys]
        return self.base.read_text(captions)

    def open_caches(self, folder: Path, kinds: Sequence[str] = KINDS) -> None:
        """Read features from there. Raises DataError where the folder was made by other encoders or another preprocessing."""
        self.caches = {kind: FeatureCache(folder / kind, self._about(kind)) for kind in kinds}

    def fill(self, sources: Sequence[Source], batch_size: int, rank: int = 0, ranks: int = 1, tick: Tick | None = None) -> None:
        """Compute what the opened caches lack; of `ranks` processes this one takes every ranks-th row."""
        numbers = {source.sha256(int(n)): (source, int(n)) for source in sources for n in source.drawable()}
        captions = {text_key(caption): caption for source in sources for caption in source.captions()}

        def pictures(keys: Sequence[str]) -> np.ndarray:
            return np.stack([source.picture(number) for source, number in (numbers[key] for key in keys)])

        computes: dict[str, tuple[Sequence[str], Any]] = {
            "vision": (
                list(numbers),
                lambda keys: {"vision": self.adapter.see(self.adapter.config.preprocess(pictures(keys))).half()},
            ),
            "latents": (list(numbers), lambda keys: {"moments": self.base.see_latents(pictures(keys)).half()}),
            "text": (list(captions), lambda keys: half(self.base.read_text([captions[key] for key in keys]))),
        }
        for kind, cache in self.caches.items():
            keys, compute = computes[kind]
            todo = cache.missing(keys[rank::ranks])  # not of what is missing: others may be writing already
            done = 0

            def told(count: int, kind: str = kind, total: int = len(todo)) -> None:
                nonlocal done
                done += count
                if tick:
                    tick(kind, done, total)

            cache.fill(todo, compute, batch_size, told)

    def check(self, sources: Sequence[Source]) -> None:
        """After other processes have filled their share: is everything there? Raises DataError."""
        for kind, cache in self.caches.items():
            cache.refresh()
            expected = (
                [text_key(c) for source in sources for c in source.captions()]
                if kind == "text"
                else [source.sha256(int(n)) for source in sources for n in source.drawable()]
            )
            if lacking := cache.missing(expected):
                raise DataError(
                    f"the cache '{cache.folder}' lacks {len(lacking)} of {len(expected)} rows: run the same command again"
                )

    def _about(self, kind: str) -> dict[str, Any]:
        """What the features depend on beside the picture or caption."""
        if kind == "vision":
            preprocess = asdict(self.adapter.config.preprocess)
            return {
                "preprocessing": {"square": self.base.resolution, **preprocess},
                "encoder": fingerprint({"eye": self.adapter.vision}),
            }
        if kind == "latents":
            return {"preprocessing": {"square": self.base.resolution}, "encoder": fingerprint({"vae": self.base.vae})}
        tokenizers = [[type(t).__name__, len(t), t.model_max_length] for t, _ in self.base.readers]
        encoders = {str(i): encoder for i, (_, encoder) in enumerate(self.base.readers)}
        return {"preprocessing": {"tokenizers": tokenizers}, "encoder": fingerprint(encoders)}


def half(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(torch.float16) for name, value in features.items()}
