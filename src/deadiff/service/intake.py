"""A request -> a job for the queue: every limit checked, every picture read and kept, before it is accepted."""

import base64
import binascii
import hashlib
import json
import secrets
from typing import Any

from deadiff.errors import ConfigError, ReferenceError
from deadiff.references import decode
from deadiff.schedulers import make_scheduler
from deadiff.service.queue import NewJob
from deadiff.service.schemas import JobIn, PictureIn, ReferenceIn, StyleIn
from deadiff.service.settings import Settings
from deadiff.service.store import Store
from deadiff.service.styles import NoSuchError, Styles
from deadiff.style_library import SavedStyle, make_style
from deadiff.stylizer import Stylizer

# Jobs that agree in these are drawn in one forward pass; everything else, references included, may differ.
SHARED = ("num_inference_steps", "guidance_scale", "scheduler", "style_window", "resize", "width", "height", "image_strength")
PHOTOS = ("image", "mask_image", "control_image")


class Intake:
    """Reads what callers send. Raises ConfigError or ReferenceError, in one line."""

    def __init__(self, settings: Settings, stylizer: Stylizer, references: Store, styles: Styles) -> None:
        self.settings, self.stylizer, self.references, self.styles = settings, stylizer, references, styles

    def job(self, given: JobIn, idempotency_key: str | None = None) -> NewJob:
        """All that is needed to draw is in what this returns and in the store."""
        self._check(given)
        d = self.stylizer.defaults
        request: dict[str, Any] = {
            "prompt": given.prompt,
            "negative_prompt": d.negative_prompt if given.negative_prompt is None else given.negative_prompt,
            "style": [self._reference(item, "style") for item in given.style],
            "content": [self._reference(item, "content") for item in given.content],
            "strength": given.strength,
            "content_strength": given.content_strength,
            "style_window": list(given.style_window),
            "num_images": given.num_images,
            "num_inference_steps": given.num_inference_steps or d.num_inference_steps,
            "guidance_scale": d.guidance_scale if given.guidance_scale is None else given.guidance_scale,
            "scheduler": given.scheduler or d.scheduler,
            "resize": given.resize or self.stylizer.adapter.config.preprocess.resize,
            "width": given.width or d.width,
            "height": given.height or d.height,
            **{name: self._photo(getattr(given, name), name) for name in PHOTOS},
            "image_strength": given.image_strength,
            "exact": given.exact,
        }
        for role in ("style", "content"):
            if request[role] and not any(item["weight"] > 0 for item in request[role]):
                raise ReferenceError(f"all {role} references have weight 0: expected at least one above, or no reference")
        asked = hashlib.sha256(json.dumps([request, given.seed], sort_keys=True).encode()).hexdigest()
        request["seed"] = secrets.randbelow(2**32) if given.seed is None else given.seed
        live = [name for name in ("style", "content", *PHOTOS) if request[name]]
        kind = [self.stylizer.fingerprint, live, [request[name] for name in SHARED]]
        if given.exact:
            kind.append(secrets.token_hex(16))  # a kind of its own
        return NewJob(
            request=json.dumps(request),
            kind=hashlib.sha256(json.dumps(kind).encode()).hexdigest(),
            images=given.num_images,
            uses=frozenset(files_of(request)),
            request_hash=asked,
            idempotency_key=idempotency_key,
        )

    def style(self, given: StyleIn) -> SavedStyle:
        """A named style, encoded and not yet kept."""
        self._count("style", given.style)
        if any(item.style is not None for item in given.style):
            raise ReferenceError("a style is made of pictures, not of other styles: give the references themselves")
        pictures = []
        for item in given.style:
            data = self._bytes(item, "style")
            pictures.append((data, item.weight))
        return make_style(self.stylizer, given.name, pictures, resize=given.resize)

    def upload(self, data: bytes, what: str = "picture") -> tuple[str, int, int]:
        """(sha256, width, height) of a picture that is now in the store."""
        picture, _ = decode(data, name=what, max_pixels=self.settings.max_pixels)
        return self.references.put(data), picture.width, picture.height

    def _check(self, given: JobIn) -> None:
        s = self.settings
        for name in ("prompt", "negative_prompt"):
            if len(getattr(given, name) or "") > s.max_prompt:
                raise ConfigError(f"{name} has {len(getattr(given, name))} characters: expected at most {s.max_prompt}")
        most = {"num_images": s.max_images, "num_inference_steps": s.max_steps}
        for name, limit in most.items():
            if (getattr(given, name) or 0) > limit:
                raise ConfigError(f"{name} is {getattr(given, name)}: expected at most {limit} on this service")
        if given.style_window[0] > given.style_window[1]:
            raise ConfigError(f"style_window is {list(given.style_window)}: expected the start before the end")
        if given.mask_image is not None and given.image is None:
            raise ConfigError(
                "a mask_image is given without an image: expected the photo that is to be redrawn where it is white"
            )
        has_control = getattr(self.stylizer.pipe, "controlnet", None) is not None
        if has_control != (given.control_image is not None):
            got = "this service draws with a ControlNet" if has_control else "this service has no ControlNet"
            raise ConfigError(f"{got}: {'give' if has_control else 'leave out'} control_image")
        make_scheduler(given.scheduler or self.stylizer.defaults.scheduler, self.stylizer.pipe.scheduler)
        self._count("style", given.style)
        self._count("content", given.content)
        step = getattr(self.stylizer.pipe, "vae_scale_factor", 8)
        for name in ("width", "height"):
            side = getattr(given, name)
            if side is not None and side % step:
                raise ConfigError(f"{name} is {side}: expected a multiple of {step} pixels")
        native = self.stylizer.native_size
        pixels = (given.width or native[0]) * (given.height or native[1])
        if pixels > s.max_drawn_pixels:
            raise ConfigError(f"the picture has {pixels} pixels: expected at most {s.max_drawn_pixels} on this service")

    def _count(self, role: str, items: list[ReferenceIn]) -> None:
        if len(items) > self.settings.max_references:
            raise ConfigError(f"there are {len(items)} {role} references: expected at most {self.settings.max_references}")

    def _reference(self, item: ReferenceIn, role: str) -> dict[str, Any]:
        if item.style is None:
            return {"sha256": self._keep(item, f"{role} reference"), "weight": item.weight, "style": None}
        if role == "content":
            raise ReferenceError("a saved style has no content: give the picture itself as the content reference")
        try:
            row = self.styles.named(item.style)
        except NoSuchError as error:  # of the request, whose own address is right: not a 404
            raise ReferenceError(str(error)) from error
        self.styles.open(row.sha256).tokens_for(self.stylizer)  # made for this model
        self.styles.store.touch(row.sha256)
        return {"sha256": row.sha256, "weight": item.weight, "style": row.name}

    def _photo(self, item: PictureIn | None, name: str) -> str | None:
        return None if item is None else self._keep(item, name)

    def _keep(self, item: PictureIn, what: str) -> str:
        if item.sha256 is not None:
            if not self.references.touch(item.sha256):
                raise ReferenceError(f"there is no picture {item.sha256[:12]}... here: upload it first, POST /v1/references")
            return item.sha256
        return self.upload(from_base64(item.data or "", what), what)[0]

    def _bytes(self, item: PictureIn, what: str) -> bytes:
        """The file of a picture, checked."""
        return self.references.get(self._keep(item, f"{what} reference"))


def from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReferenceError(f"{what}: data is not base64: expected the file's bytes, as from: base64 -w0 FILE") from error


def files_of(request: dict[str, Any]) -> list[str]:
    """The sha256 of every file that a job draws with."""
    references = [item["sha256"] for role in ("style", "content") for item in request[role]]
    return references + [request[name] for name in PHOTOS if request[name]]
