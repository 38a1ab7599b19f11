"""Stylizer: prompts, references and options -> pictures, over any diffusers pipeline that takes prompt_embeds.

B pictures drawn at once, T text tokens, I image tokens of one role, U = T + 2*I, C token width.
"""

import functools
import inspect
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.attention import JointAttnProcessor
from deadiff.config import LookConfig
from deadiff.defaults import Defaults
from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import (
    MAX_SEED,
    MAX_SIDE,
    Job,
    as_jobs,
    check_text,
    mask_of,
    number,
    open_picture,
    references,
    seeds_of,
    source,
    sources,
    weight_of,
    whole,
)
from deadiff.photo import LatentBlend, encoded, fitting_size, resized
from deadiff.pipelines import make_pipeline
from deadiff.previews import Watch, preview_pictures
from deadiff.recipe import Recipe, fingerprint, versions
from deadiff.reference_look import Look, SeenTokens, Shown, emphasised, share_attention
from deadiff.references import Reference, one_line
from deadiff.routes import Role, cross_attention_layers
from deadiff.schedulers import make_scheduler
from deadiff.sketch import sketch_tokens

__all__ = ["Job", "Origin", "Stylizer", "StylizerOutput"]
log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # (steps done, steps in all), a step of one picture counting one
OnPicture = Callable[[int, Any, Recipe], None]  # (index in the output, picture, recipe), as soon as it is drawn
# (indices in the output, a function that decodes small pictures of how they will look), after each step
OnPreview = Callable[[list[int], Callable[[], list[Image.Image]]], None]
OURS = {  # arguments of pipelines that the Stylizer makes itself -> what to use instead
    "prompt_embeds": "prompt",
    "negative_prompt_embeds": "negative_prompt",
    "generator": "seed",
    "num_images_per_prompt": "num_images",
    "ip_adapter_image": "style",
    "ip_adapter_image_embeds": "style",
    "return_dict": "the StylizerOutput",
    "timesteps": "num_inference_steps and scheduler",
    "sigmas": "num_inference_steps and scheduler",
}
_READING = threading.Lock()  # a fast tokenizer keeps each call's padding and truncation: two threads would read with each other's


@dataclass(frozen=True, kw_only=True)
class StylizerOutput:
    """Pictures in the order of the jobs, each job's pictures together."""

    images: list[Any]  # PIL images, or what output_type= asked for
    seeds: list[int]
    recipes: list[Recipe]
    flagged: list[bool]  # by the safety checker, which blackens the picture; all False without one


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What holds for all pictures of a call."""

    steps: int
    guidance: float
    scheduler: str
    batch_size: int
    window: tuple[float, float]
    resize: str
    width: int | None
    height: int | None
    image_strength: float | None
    latents: Tensor | None
    callback: Callable[..., Any] | None
    callback_inputs: Sequence[str]
    on_preview: OnPreview | None
    arguments: dict[str, Any]  # for the diffusers pipeline


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One picture to draw."""

    index: int  # in the output
    job: Job
    seed: int
    style: Tensor | None  # (1, I, C)
    content: Tensor | None
    look: Look | None  # of the style references, where the model uses one
    image: Image.Image | None
    mask: Image.Image | None
    control: Image.Image | None
    size: tuple[int, int] | None
    recipe: Recipe

    @property
    def kind(self) -> tuple[Any, ...]:
        """Pictures of one kind can be drawn together: the idle role stays idle, and no reference stays the plain model."""
        given = (value is not None for value in (self.style, self.content, self.image, self.mask))
        return *given, 0 if self.look is None else len(self.look.weights), self.size


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where model and base came from, for the recipes."""

    model: str | None = None
    base: str | None = None
    controlnet: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    safety_checker: bool = False
    notes: dict[str, str] = field(default_factory=dict)  # provenance, licence


class Stylizer:
    """Draws. Holds nothing that a call changes, so threads may share one; LoRAs may be loaded into `pipe` between calls.

    >>> stylizer = deadiff.load()
    >>> stylizer("a robot", style="ref.png", seed=7).images[0].save("robot.png")

    pipe: a diffusers Stable Diffusion pipeline of any task; adapter: injected into its U-Net unless it is already.
    """

    def __init__(
        self, pipe: Any, adapter: DEADiffAdapter, *, defaults: Defaults | None = None, origin: Origin | None = None
    ) -> None:
        self.pipe, self.adapter = pipe, adapter
        self.defaults = defaults or Defaults()
        self.origin = origin or Origin()
        layers = cross_attention_layers(pipe.unet)
        table = adapter.config.route_table
        ours = [
            isinstance(layer.processor, JointAttnProcessor) and path in table and layer.processor.image_kv is adapter.kv(path)
            for path, layer in layers.items()
        ]
        if not all(ours):
            adapter.inject(pipe.unet, getattr(pipe, "controlnet", None))
        share_attention(pipe.unet, adapter.config.look)
        parts = {name: getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "controlnet")}
        look = adapter.config.look
        settings = "" if look == LookConfig() else str(look)  # a model without a look keeps the fingerprint it always had
        self.fingerprint = fingerprint({"adapter": adapter, **{k: v for k, v in parts.items() if v is not None}}, settings)

    def __call__(
        self,
        prompt: str | Job | Sequence[str | Job] = "",
        *,
        style: Any = None,
        content: Any = None,
        strength: float = 1.0,
        content_strength: float = 1.0,
        negative_prompt: str | None = None,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        batch_size: int | None = None,
        style_window: tuple[float, float] = (0.0, 1.0),
        scheduler: str | None = None,
        resize: str | None = None,
        image: Any = None,
        mask_image: Any = None,
        control_image: Any = None,
        image_strength: float | None = None,
        width: int | None = None,
        height: int | None = None,
        latents: Tensor | None = None,
        progress: bool | Progress = False,
        on_picture: OnPicture | None = None,
        on_preview: OnPreview | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **arguments: Any,
    ) -> StylizerOutput:
        """Draw num_images pictures of each prompt. `prompt` is a text, a Job with references of its own, or a list of either.

        style, content: see Job; none means the plain base model, bit for bit; strength 0 still is a (zero) reference, as in the
        released code. style_window: (start, end) fractions of the steps in which style acts; outside, a step is as if no style
        were given. seed: of each prompt's first picture, the next ones count on; a picture depends on its own seed, not on its
        batch (up to 2/255 in a pixel: matrix products round differently). image: a photo to redraw (image_strength 0 to 1), with
        mask_image only where that is white; control_image: for the ControlNet. latents: (pictures, Z, h, w), noise to start from.
        progress: True for a bar, or a function of (steps done, steps in all); on_picture: called as soon as each is drawn;
        on_preview: after each step, to look at pictures in the making. What these raise ends the call.
        Other arguments go to the diffusers pipeline; what is None comes from `defaults`.
        Raises ConfigError or ReferenceError before anything is drawn.
        """
        call = Job(
            negative_prompt=self.defaults.negative_prompt if negative_prompt is None else negative_prompt,
            style=style,
            content=content,
            strength=strength,
            content_strength=content_strength,
            seed=seed,
            num_images=num_images,
            image=image,
            mask_image=mask_image,
            control_image=control_image,
        )
        jobs = [job.or_else(call) for job in as_jobs(prompt)]
        d = self.defaults
        options = _Options(
            steps=whole(
                "num_inference_steps", d.num_inference_steps if num_inference_steps is None else num_inference_steps, 1, 1000
            ),
            guidance=number("guidance_scale", d.guidance_scale if guidance_scale is None else guidance_scale, 0, 1000),
            scheduler=d.scheduler if scheduler is None else scheduler,
            batch_size=whole("batch_size", d.batch_size if batch_size is None else batch_size),
            window=_window(style_window),
            resize=self.adapter.config.preprocess.resize if resize is None else resize,
            width=d.width if width is None else width,
            height=d.height if height is None else height,
            image_strength=None if image_strength is None else number("image_strength", image_strength, 0, 1),
            latents=latents,
            callback=callback_on_step_end,
            callback_inputs=tuple(callback_on_step_end_tensor_inputs),
            on_preview=on_preview,
            arguments=arguments,
        )
        make_scheduler(options.scheduler, self.pipe.scheduler)  # a wrong name is an error now, not after the references are read
        items = self._items(jobs, options)
        if latents is not None and len(latents) != len(items):
            raise ConfigError(f"latents hold {len(latents)} pictures: expected one for each of the {len(items)} to draw")
        return self._draw(items, options, progress, on_picture)

    def again(self, recipe: Recipe, *, progress: bool | Progress = False, **sources: Any) -> StylizerOutput:
        """The picture of a recipe once more: byte for byte, given the same weights, versions, machine and thread count.

        sources: style=, content=, image=, mask_image=, control_image= opened pictures (Reference) for those the recipe names.
        """
        if recipe.unrecorded:
            raise ConfigError(
                f"this picture was made with {', '.join(recipe.unrecorded)}, which a recipe cannot hold: it cannot be made again"
            )
        job = Job(
            prompt=recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            strength=recipe.strength,
            content_strength=recipe.content_strength,
            seed=recipe.seed,
            num_images=1,
            **sources,
        )
        row, rows = recipe.place
        output = self(
            [job] * rows,  # the same shape of batch: matrix products differ in their last bits between shapes
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            scheduler=recipe.scheduler,
            batch_size=rows,
            style_window=recipe.style_window,
            resize=recipe.resize,
            image_strength=recipe.image_strength,
            width=recipe.width,
            height=recipe.height,
            progress=progress,
            **recipe.arguments,
        )
        return StylizerOutput(
            images=[output.images[row]], seeds=[recipe.seed], recipes=[output.recipes[row]], flagged=[output.flagged[row]]
        )

    def encode(self, style: Any = None, content: Any = None, *, resize: str | None = None) -> SeenTokens:
        """References -> Tokens, to be given as style= or content= of many calls: the references are then read once."""
        how = self.adapter.config.preprocess.resize if resize is None else resize
        seen: dict[Any, Any] = {}
        styles = references(style, "style")
        return SeenTokens.of(
            self._mixed(styles, Role.STYLE, how, seen),
            self._mixed(references(content, "content"), Role.CONTENT, how, seen),
            self._look(styles, how, seen),
        )

    # ---- references -> tokens ----

    def _mixed(self, items: list[Any], role: Role, resize: str, seen: dict[Any, Any]) -> Tensor | None:
        """The weighted mean of the references' tokens, (1, I, C). Each is encoded alone, so that none depends on its company."""
        live = [item for item in items if weight_of(item) > 0]
        total = sum(weight_of(item) for item in live)
        mixed = None
        for item in live:
            tokens = self._tokens(item, role, resize, seen)
            part = tokens if len(live) == 1 else tokens * (weight_of(item) / total)
            mixed = part if mixed is None else mixed + part
        return mixed

    def _look(self, items: list[Any], resize: str, seen: dict[Any, Any]) -> Look | None:
        """How the style references look, where the model uses that; cached tokens of elsewhere bring no look."""
        if not self.adapter.config.look.used:
            return None
        parts: list[tuple[Look, float]] = []
        for item in items:
            if weight_of(item) > 0:
                look = self._seen(item, resize, seen) if isinstance(item, Reference) else getattr(item[0], "look", None)
                parts += [] if look is None else [(look, weight_of(item))]
        return parts[0][0] if len(parts) == 1 else Look.mixed(parts) if parts else None

    def _seen(self, item: Reference, resize: str, seen: dict[Any, Any]) -> Look:
        key = item.sha256, "look", resize
        if key not in seen:
            vae = self.pipe.vae
            square = replace(self.adapter.config.preprocess, resize=resize, size=self.native_size[0]).fit(item.picture)
            pixels = self.pipe.image_processor.preprocess(square).to(vae.device, vae.dtype)
            seen[key] = Look(encoded(vae, pixels).float().contiguous(), (1.0,))  # one layout: others round otherwise
        return seen[key]

    def _tokens(self, item: Any, role: Role, resize: str, seen: dict[Any, Any]) -> Tensor:
        if not isinstance(item, Reference):
            tokens = getattr(item[0], role.value, None)
            config = self.adapter.config
            if tokens is None or tuple(tokens.shape) != (1, config.num_tokens, config.token_dim):
                got = "none" if tokens is None else f"shape {tuple(tokens.shape)}"
                raise ReferenceError(
                    f"the cached tokens given as {role} have {got}: expected (1, {config.num_tokens}, {config.token_dim}); "
                    f"make them with stylizer.encode({role}=picture)"
                )
            return tokens.to(self.adapter.device, self.adapter.dtype)
        key = item.sha256, role, resize
        if key not in seen:
            pixels = replace(self.adapter.config.preprocess, resize=resize)(item.picture)
            with torch.no_grad():
                tokens = self.adapter(**{role.value: pixels})
            seen[key] = getattr(tokens, role.value)
        return seen[key]

    # ---- jobs -> pictures to draw ----

    def _items(self, jobs: list[Job], options: _Options) -> list[_Item]:
        """Every reference is read and encoded, every number checked, before the first step."""
        encoded: dict[Any, Any] = {}
        opened: dict[tuple[str, str], Any] = {}  # a path named by many jobs is read once
        items: list[_Item] = []
        start = secrets.randbelow(2**32)
        has_control = getattr(self.pipe, "controlnet", None) is not None
        for prompt in dict.fromkeys(job.prompt for job in jobs):
            _warn_of_length(self.pipe, prompt)
        for job in jobs:
            check_text("negative_prompt", job.negative_prompt)
            count = whole("num_images", job.num_images, 1, 100_000)
            seeds = seeds_of(job, count, (start + len(items)) % MAX_SEED)
            style, content = (_open_once(getattr(job, role.value), role, opened) for role in Role)
            photo = open_picture(job.image, "image")
            mask = open_picture(job.mask_image, "mask image")
            control = open_picture(job.control_image, "control image")
            if mask is not None and photo is None:
                raise ConfigError(
                    "a mask_image is given without an image: expected the photo that is to be redrawn where the mask is white"
                )
            if has_control != (control is not None):
                got = "there is a ControlNet but no" if has_control else "there is no ControlNet for the"
                raise ConfigError(
                    f"{got} control_image: load(..., controlnet=...) and control_image= go together (image= is a photo to redraw)"
                )
            size = self._size(photo or control, options)
            recipe = Recipe(
                prompt=job.prompt,
                negative_prompt=job.negative_prompt or "",
                style=sources(style),
                content=sources(content),
                strength=number("strength", job.strength, 0, 100),
                content_strength=number("content_strength", job.content_strength, 0, 100),
                style_window=options.window,
                resize=options.resize,
                seed=0,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                scheduler=options.scheduler,
                width=options.width,
                height=options.height,
                image=source(photo),
                image_strength=self._image_strength(photo, mask, options),
                mask_image=source(mask),
                control_image=source(control),
                unrecorded=_unrecorded(options, style, content),
                arguments={k: v for k, v in options.arguments.items() if _plain(v)},
                **self._identity(),
            )
            tokens = [
                self._mixed(refs, role, options.resize, encoded) for refs, role in ((style, Role.STYLE), (content, Role.CONTENT))
            ]
            look = self._look(style, options.resize, encoded)
            pictures = {
                "image": None if photo is None else resized(photo.picture, size or photo.picture.size),
                "mask": None
                if mask is None
                else resized(mask_of(mask.picture), size or mask.picture.size, Image.Resampling.NEAREST),
                "control": None if control is None else resized(control.picture, size or control.picture.size),
            }
            for seed in seeds:
                index = len(items)
                item = _Item(
                    index=index,
                    job=job,
                    seed=seed,
                    style=tokens[0],
                    content=tokens[1],
                    look=look,
                    size=size,
                    recipe=replace(recipe, seed=seed),
                    **pictures,
                )
                items.append(item)
        return items

    def _size(self, picture: Reference | None, options: _Options) -> tuple[int, int] | None:
        """(width, height) where something fixes it; None leaves it to the pipeline."""
        step = getattr(self.pipe, "vae_scale_factor", 8)
        for name in ("width", "height"):
            value = getattr(options, name)
            if value is not None and whole(name, value, step, MAX_SIDE) % step:
                raise ConfigError(
                    f"{name} is {value}: expected a multiple of {step} pixels, such as {max(1, round(value / step)) * step}"
                )
        native = self.native_size
        if picture is not None:
            return fitting_size(picture.picture, options.width, options.height, native, step)
        if options.width or options.height:
            return options.width or native[0], options.height or native[1]
        return None

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) in pixels that the base model was trained at."""
        sample = self.pipe.unet.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        step = getattr(self.pipe, "vae_scale_factor", 8)
        return width * step, height * step

    @property
    def look_shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of a reference's latents, where the model looks at them."""
        side = self.native_size[0] // getattr(self.pipe, "vae_scale_factor", 8)
        return self.pipe.vae.config.latent_channels, side, side

    def _image_strength(self, photo: Any, mask: Any, options: _Options) -> float | None:
        if photo is None:
            return None
        given = 1.0 if mask is not None else self.defaults.image_strength
        strength = given if options.image_strength is None else options.image_strength
        if int(options.steps * strength) < 1:
            raise ConfigError(f"image_strength {strength:g} of {options.steps} steps leaves no step: give more of either")
        return strength

    def _identity(self) -> dict[str, Any]:
        origin = self.origin
        loras = origin.loras or _active_loras(self.pipe)
        return {
            "model": origin.model,
            "base": origin.base,
            "controlnet": origin.controlnet,
            "loras": loras,
            "safety_checker": getattr(self.pipe, "safety_checker", None) is not None,
            "fingerprint": self.fingerprint,
            "dtype": str(self.pipe.unet.dtype).removeprefix("torch."),
            "device": str(self.pipe.unet.device),
            "versions": versions(),
        }

    # ---- drawing ----

    def _draw(
        self, items: list[_Item], options: _Options, progress: bool | Progress, on_picture: OnPicture | None
    ) -> StylizerOutput:
        texts: dict[tuple[str, str], tuple[Tensor | None, ...]] = {}
        images: list[Any] = [None] * len(items)
        recipes: list[Any] = [None] * len(items)
        flagged = [False] * len(items)
        with _reporter(progress, len(items) * options.steps) as report:
            done = 0
            for batch in _batches(items, options.batch_size):
                before = done

                def step_done(fraction: float, before: int = before, rows: int = len(batch)) -> None:
                    report(before + round(fraction * rows * options.steps))

                pictures, nsfw = self._draw_batch(batch, options, texts, step_done)
                for row, (item, picture) in enumerate(zip(batch, pictures, strict=True)):
                    images[item.index] = picture
                    recipes[item.index] = replace(item.recipe, place=(row, len(batch)))
                    flagged[item.index] = bool(nsfw[row]) if nsfw else False
                    if on_picture is not None:
                        on_picture(item.index, picture, recipes[item.index])
                done += len(batch) * options.steps
                report(done)
        return StylizerOutput(images=images, seeds=[item.seed for item in items], recipes=recipes, flagged=flagged)

    def _draw_batch(
        self, batch: list[_Item], options: _Options, texts: dict[Any, Any], step_done: Callable[[float], None]
    ) -> tuple[Sequence[Any], Any]:
        first = batch[0]
        unet_channels = self.pipe.unet.config.in_channels
        latent_channels = self.pipe.vae.config.latent_channels
        blended = first.mask is not None and unet_channels == latent_channels != 4
        task = "" if first.image is None else "Img2Img" if first.mask is None or blended else "Inpaint"
        pipe = make_pipeline(self.pipe, task, make_scheduler(options.scheduler, self.pipe.scheduler))
        accepted = inspect.signature(pipe.__call__).parameters
        check_arguments(options.arguments, accepted)

        # text, one prompt at a time: a prompt's embedding must not depend on its neighbours
        guided = options.guidance > 1 and pipe.unet.config.time_cond_proj_dim is None
        rows = [self._text(pipe, item.job, guided, options.arguments, texts) for item in batch]
        text, negative, pooled, negative_pooled = (
            None if column[0] is None else torch.cat(column) for column in zip(*rows, strict=True)
        )

        # [text | style | content], with style and, outside its window, as if there were none
        tokens = Tokens(
            *(
                None if column[0] is None else torch.cat(column)
                for column in zip(*((i.style, i.content) for i in batch), strict=True)
            )
        )
        strengths = [torch.tensor([getattr(i.recipe, n) for i in batch]) for n in ("strength", "content_strength")]
        idle = self.adapter.idle(tokens)
        inside = self._embed(*self._beside_look(first, text, strengths), negative, tokens, idle)
        outside = self._embed(text, strengths, negative, Tokens(None, tokens.content), Tokens(None, idle.content))
        live = _live(0.0, options.window)
        embeds, negative_embeds = inside if live else outside

        keywords: dict[str, Any] = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
        if pooled is not None:
            keywords |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
        seeds = [item.seed for item in batch]
        keywords |= {
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
            **options.arguments,
        }
        if options.latents is not None:
            keywords["latents"] = options.latents[[item.index for item in batch]].to(pipe.unet.device, pipe.unet.dtype)
        if first.image is not None:
            keywords |= {"image": [item.image for item in batch], "strength": first.recipe.image_strength}
        if task == "Inpaint":
            keywords["mask_image"] = [item.mask for item in batch]
        if first.control is not None:
            keywords["control_image" if task else "image"] = [item.control for item in batch]
        if first.size is not None and "width" in accepted:
            keywords |= {"width": first.size[0], "height": first.size[1]}
        shown = None
        if first.look is not None:  # only then is the empty prompt read
            nothing = self._text(pipe, replace(first.job, prompt=""), guided, options.arguments, texts)[0]
            shown = self._shown(pipe, batch, tokens, strengths[0], nothing)
        blend = LatentBlend(pipe, [_sure(i.image) for i in batch], [_sure(i.mask) for i in batch], seeds) if blended else None

        switched = tokens.style is not None and (options.window[0] > 0.0 or options.window[1] < 1.0)
        state = {"live": live}
        if shown is not None:
            shown.live = live
        watch = None if options.on_preview is None else Watch(pipe.scheduler)

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            result = dict(tensors)
            if options.callback is not None:
                asked = {name: tensors[name] for name in options.callback_inputs}
                result |= options.callback(pipe, step, timestep, asked) or {}
            if shown is not None and shown.live and step + 1 == pipe.num_timesteps:
                result["latents"] = shown.toned(result["latents"])
            if blend is not None:
                result["latents"] = blend(pipe, step, result["latents"])
            fraction = (step + 1) / pipe.num_timesteps
            if switched and (now := _live(fraction, options.window)) != state["live"]:
                state["live"] = now
                if shown is not None:
                    shown.live = now
                positive, uncond = inside if now else outside
                result["prompt_embeds"] = torch.cat([uncond, positive]) if guided else positive
            step_done(fraction)
            if watch is not None and watch.latents is not None and options.on_preview is not None:
                options.on_preview([item.index for item in batch], functools.partial(preview_pictures, pipe, watch.latents))
            return result

        inputs = dict.fromkeys(["latents"])
        if options.callback is not None:
            inputs |= dict.fromkeys(options.callback_inputs)
        keywords |= {"callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": list(inputs)}
        for name in [name for name, value in keywords.items() if name not in accepted and value is not None]:
            raise ConfigError(f"{name} cannot be used with {type(pipe).__name__}: leave it out")
        with nullcontext() if shown is None else shown.while_drawing():
            output = pipe(**{name: value for name, value in keywords.items() if name in accepted})
        return output.images, getattr(output, "nsfw_content_detected", None)

    def _text(self, pipe: Any, job: Job, guided: bool, arguments: dict[str, Any], seen: dict[Any, Any]) -> Any:
        """(text, negative, pooled, negative pooled) of one prompt, (1, T, C) or None, by the pipeline's own encode_prompt."""
        key = job.prompt, job.negative_prompt
        if key not in seen:
            options = {
                "clip_skip": arguments.get("clip_skip"),
                "lora_scale": (arguments.get("cross_attention_kwargs") or {}).get("scale"),
            }
            options = {
                k: v for k, v in options.items() if v is not None and k in inspect.signature(pipe.encode_prompt).parameters
            }
            with torch.no_grad(), _READING:
                encoded = pipe.encode_prompt(
                    prompt=job.prompt,
                    device=pipe._execution_device,
                    num_images_per_prompt=1,
                    do_classifier_free_guidance=guided,
                    negative_prompt=job.negative_prompt or None,
                    **options,
                )
            text, negative, pooled, negative_pooled = (*encoded, None, None)[:4]
            seen[key] = (text, negative if guided else None, pooled, negative_pooled if guided else None)
        return seen[key]

    def _beside_look(self, item: _Item, text: Tensor | None, strengths: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """Texts and strengths of a batch as they are told where its style references are looked at (LookConfig).

        The prompts' sketches are told louder, unless a content reference brings a shape of its own.
        """
        look, (style, content) = self.adapter.config.look, strengths
        if item.look is None or text is None:
            return text, strengths
        if item.content is None:
            text = emphasised(text, sketch_tokens(self.pipe.text_encoder.config), look.sketch, style)
        return text, [style * look.tokens, content]

    def _shown(self, pipe: Any, batch: list[_Item], tokens: Tokens, strengths: Tensor, nothing: Tensor) -> Shown:
        """The batch's style references, to be seen beside it: told their style, and no words."""
        looks = [item.look for item in batch if item.look is not None]
        embeds = self.adapter.embed(nothing.expand(len(batch), -1, -1), tokens.style)
        return Shown(looks, strengths, embeds, self.adapter.config.look, pipe.scheduler)

    def _embed(
        self, text: Tensor | None, strengths: list[Tensor], negative: Tensor | None, tokens: Tokens, idle: Tokens
    ) -> tuple[Tensor, Tensor]:
        """(prompt_embeds, negative_prompt_embeds), both (B, U, C), or (B, T, C) where there are no tokens."""
        assert text is not None
        embeds = self.adapter.embed(text, tokens.style, tokens.content, *strengths)
        return embeds, None if negative is None else self.adapter.embed(negative, *idle)  # pyright: ignore[reportReturnType]


def check_arguments(arguments: dict[str, Any], accepted: Any) -> None:
    """Arguments for the diffusers pipeline that it does not have, or that are the Stylizer's own, are errors."""
    import difflib

    for name in arguments:
        if name in OURS:
            raise ConfigError(f"{name} is made by the Stylizer: use {OURS[name]}")
        if name not in accepted:
            own = [p for p in inspect.signature(Stylizer.__call__).parameters if p not in ("self", "arguments")]
            near = difflib.get_close_matches(name, [*own, *accepted], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"there is no option {name!r}, here or in the diffusers pipeline{hint}")


def _batches(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    """Pictures of one kind together, in order, at most `size` at once."""
    kinds: dict[Any, list[_Item]] = {}
    for item in items:
        key = item.kind, item.recipe.image_strength, None if item.control is None else item.control.size
        kinds.setdefault(key, []).append(item)
    for same in kinds.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _window(window: Any) -> tuple[float, float]:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ConfigError(f"style_window is {window!r}: expected (start, end) as fractions of the steps, such as (0, 0.6)")
    start, end = number("style_window start", window[0], 0, 1), number("style_window end", window[1], 0, 1)
    if start > end:
        raise ConfigError(f"style_window is ({start:g}, {end:g}): expected the start before the end")
    return start, end


def _live(fraction: float, window: tuple[float, float]) -> bool:
    """Whether the step that begins at `fraction` of the steps lies in the window."""
    return window[0] <= fraction < window[1]


def _open_once(given: Any, role: Role, opened: dict[tuple[str, str], Any]) -> list[Any]:
    key = (role.value, repr(given)) if isinstance(given, (str, list, tuple)) and _plain(given) else None
    if key is None:
        return references(given, role.value)
    if key not in opened:
        opened[key] = references(given, role.value)
    return opened[key]


def _plain(value: Any) -> bool:
    """Whether JSON can hold it as it is."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def _unrecorded(options: _Options, style: list[Any], content: list[Any]) -> tuple[str, ...]:
    """What went in that a recipe cannot hold."""
    names = [name for name, value in options.arguments.items() if not _plain(value)]
    names += ["latents"] if options.latents is not None else []
    names += ["callback_on_step_end"] if options.callback is not None else []
    names += [
        f"cached {role} tokens" for role, refs in (("style", style), ("content", content)) for r in refs if isinstance(r, tuple)
    ]
    return tuple(names)


def _active_loras(pipe: Any) -> tuple[tuple[str, float], ...]:
    """Names of LoRAs that the caller loaded into the pipeline; their files are not known."""
    names = pipe.get_active_adapters() if getattr(pipe.unet, "peft_config", None) and hasattr(pipe, "get_active_adapters") else []
    return tuple((name, 1.0) for name in names)


def _warn_of_length(pipe: Any, prompt: str) -> None:
    length = pipe.tokenizer.model_max_length
    with _READING:
        ids = pipe.tokenizer(prompt[: 40 * length], truncation=False, verbose=False).input_ids
    if len(ids) > length or len(prompt) > 40 * length:
        unread = pipe.tokenizer.decode(ids[length - 1 : length + 15], skip_special_tokens=True)
        log.warning(
            "the prompt is longer than the %d tokens the model reads: unread from '%s' on",
            length,
            one_line(ValueError(unread[:60])),
        )


def _sure(picture: Image.Image | None) -> Image.Image:
    assert picture is not None
    return picture


class _reporter:  # noqa: N801  (a context manager used like a function)
    """progress= -> report(done): nothing, a bar, or the caller's function."""

    def __init__(self, progress: bool | Progress, total: int) -> None:
        self.progress, self.total, self.bar, self.done = progress, total, None, 0

    def __enter__(self) -> Callable[[int], None]:
        if self.progress is True:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=self.total, unit="step", leave=False)
        return self.report

    def report(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(done - self.done)
        elif callable(self.progress):
            self.progress(done, self.total)
        self.done = done

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
