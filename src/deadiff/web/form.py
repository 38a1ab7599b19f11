"""The form of the page: its components, how they are read into a Request, and how a Request fills them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from deadiff.errors import ConfigError
from deadiff.jobs import MAX_SEED
from deadiff.schedulers import MODEL, SCHEDULERS
from deadiff.web.folder import source_name
from deadiff.web.request import MOST_PICTURES, MOST_REFERENCES, Given, Request
from deadiff.web.words import PRESETS, Settings, preset

AUTO = "the model's default"  # of the solver


@dataclass(frozen=True, kw_only=True)
class References:
    """The references of one role: uploads, ticked saved styles (style only), and a weight for each."""

    role: str
    pictures: gr.Gallery
    saved: gr.Dropdown | None
    weights: tuple[gr.Slider, ...]
    names: gr.State  # list of str: what each weight is for

    @property
    def parts(self) -> list[Any]:
        return [self.pictures, *([self.saved] if self.saved is not None else []), *self.weights]

    def read(self, values: dict[Any, Any]) -> tuple[Given, ...]:
        paths = [path for path, _ in values[self.pictures] or []]
        names = list(values[self.saved] or []) if self.saved is not None else []
        if len(paths) + len(names) > MOST_REFERENCES:
            got = len(paths) + len(names)
            raise ConfigError(f"there are {got} {self.role} references: expected at most {MOST_REFERENCES}; remove some")
        weights = [values[slider] for slider in self.weights]
        if len(paths) + len(names) < 2:
            weights = [1.0]  # the weight of a single reference means nothing, and its slider is not shown
        found = [Given(path=path) for path in paths] + [Given(style=name) for name in names]
        return tuple(Given(path=one.path, style=one.style, weight=float(w)) for one, w in zip(found, weights, strict=False))

    def fill(self, given: Sequence[Given]) -> dict[Any, Any]:
        pictures = [one for one in given if one.path is not None]
        saved = [one for one in given if one.style is not None]
        changes: dict[Any, Any] = {self.pictures: [one.path for one in pictures] or None}
        if self.saved is not None:
            changes[self.saved] = [one.style for one in saved]
        shown = [*pictures, *saved]
        return {**changes, **self.show_weights([one.name for one in shown], [one.weight for one in shown])}

    def show_weights(self, names: Sequence[str], weights: Sequence[float]) -> dict[Any, Any]:
        """A slider for each of several references; none for a single one."""
        several = len(names) > 1
        changes: dict[Any, Any] = {self.names: list(names)}
        for number, slider in enumerate(self.weights):
            here = number < len(names)
            label = f"Weight of {names[number][:40]}" if here else "Weight"
            changes[slider] = gr.update(visible=several and here, label=label, value=weights[number] if here else 1.0)
        return changes

    def follow(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """After references came or went: weights stay with the reference of the same name."""
        names = [source_name(path) for path, _ in values[self.pictures] or []]
        names += list(values[self.saved] or []) if self.saved is not None else []
        before = dict(zip(values[self.names], [values[slider] for slider in self.weights], strict=False))
        return self.show_weights(names[:MOST_REFERENCES], [before.get(name, 1.0) for name in names[:MOST_REFERENCES]])


def references(role: str, styles: Sequence[str] | None) -> References:
    """The components of one role, made where they are called."""
    pictures = gr.Gallery(
        label=f"{role.capitalize()} references",
        elem_id=f"{role}-references",
        elem_classes="references",
        type="filepath",
        file_types=["image"],
        sources=["upload", "clipboard"],
        columns=3,
        height=150,
        object_fit="contain",
        interactive=True,
        buttons=[],
    )
    saved = None
    if styles is not None:
        saved = gr.Dropdown(
            label="Saved styles",
            choices=list(styles),
            value=[],
            multiselect=True,
            visible=bool(styles),
            interactive=True,
            elem_id="saved-styles",
        )
    weights = tuple(
        gr.Slider(0, 2, 1.0, step=0.05, label="Weight", visible=False, elem_id=f"{role}-weight-{i + 1}")
        for i in range(MOST_REFERENCES)
    )
    return References(role=role, pictures=pictures, saved=saved, weights=weights, names=gr.State([]))


@dataclass(frozen=True, kw_only=True)
class Form:
    """Everything that goes into a drawing."""

    prompt: gr.Textbox
    style: References
    content: References
    strength: gr.Slider
    content_strength: gr.Slider
    number: gr.Slider
    seed: gr.Textbox
    model: gr.Dropdown
    preset: gr.Dropdown
    steps: gr.Slider
    guidance: gr.Slider
    scheduler: gr.Dropdown
    negative: gr.Textbox
    start: gr.Slider
    end: gr.Slider

    @property
    def plain(self) -> list[Any]:
        names = (
            *("prompt", "strength", "content_strength", "number", "seed", "model", "steps", "guidance", "scheduler"),
            *("negative", "start", "end"),
        )
        return [getattr(self, name) for name in names]

    @property
    def inputs(self) -> set[Any]:
        return {*self.plain, *self.style.parts, *self.content.parts}

    @property
    def outputs(self) -> list[Any]:
        return [*self.plain, *self.style.parts, self.style.names, *self.content.parts, self.content.names]

    def read(self, values: dict[Any, Any]) -> Request:
        """Raises ConfigError, in one line."""
        return Request(
            prompt=values[self.prompt] or "",
            style=self.style.read(values),
            content=self.content.read(values),
            strength=float(values[self.strength]),
            content_strength=float(values[self.content_strength]),
            model=values[self.model],
            num_inference_steps=int(values[self.steps]),
            guidance_scale=float(values[self.guidance]),
            scheduler=None if values[self.scheduler] == AUTO else values[self.scheduler],
            negative_prompt=values[self.negative] or None,
            style_window=(float(values[self.start]), float(values[self.end])),
            seed=read_seed(values[self.seed] or ""),
            num_images=int(values[self.number]),
        )

    def fill(self, request: Request) -> dict[Any, Any]:
        """Changes that make the form say what the request says."""
        return {
            self.prompt: request.prompt,
            **self.style.fill(request.style),
            **self.content.fill(request.content),
            self.strength: request.strength,
            self.content_strength: request.content_strength,
            self.number: request.num_images,
            self.seed: "" if request.seed is None else str(request.seed),
            self.model: request.model,
            self.steps: request.num_inference_steps,
            self.guidance: request.guidance_scale,
            self.scheduler: request.scheduler or AUTO,
            self.negative: request.negative_prompt or "",
            self.start: request.style_window[0],
            self.end: request.style_window[1],
        }

    def settle(self, settings: Settings) -> dict[Any, Any]:
        """Changes of a preset."""
        return {
            self.strength: settings.strength,
            self.content_strength: settings.content_strength,
            self.steps: settings.steps,
            self.guidance: settings.guidance,
            self.start: settings.start,
            self.end: settings.end,
        }


def read_seed(text: str) -> int | None:
    """A whole number, or nothing for a random one. Raises ConfigError."""
    text = text.strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > MAX_SEED:
        raise ConfigError(f"seed is {text[:30]!r}: expected a whole number from 0 on, or nothing for a random one")
    return int(text)


def make_form(models: Sequence[str], defaults: Any, styles: Sequence[str]) -> tuple[Form, gr.Button, gr.Button, gr.HTML]:
    """The form with its two buttons and the place below them where progress is shown, top to bottom as on a phone."""
    own = preset("", defaults)
    prompt = gr.Textbox(label="What to draw", placeholder="a cat", lines=1, max_lines=4, autofocus=True, elem_id="prompt")
    style = references("style", styles)
    with gr.Row(elem_id="go"):
        draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
        cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel", min_width=100)
    now = gr.HTML("", elem_id="now")
    strength = gr.Slider(0, 2, own.strength, step=0.05, label="Style strength", elem_id="strength")
    with gr.Row():
        number = gr.Slider(1, min(16, MOST_PICTURES), 4, step=1, label="Pictures", elem_id="number", min_width=120)
        seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1, elem_id="seed", min_width=100)
    with gr.Accordion("Content reference: whose subject to keep", open=False, elem_id="content-part"):
        content = references("content", None)
        content_strength = gr.Slider(0, 2, own.content_strength, step=0.05, label="Content strength", elem_id="content-strength")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        chosen = gr.Dropdown(
            label="Preset", choices=[(f"{name}: {text}", name) for name, text in PRESETS.items()], value=None, elem_id="preset"
        )
        model = gr.Dropdown(label="Model", choices=list(models), value=models[0], elem_id="model")
        steps = gr.Slider(1, 200, own.steps, step=1, label="Steps", elem_id="steps")
        guidance = gr.Slider(0, 20, own.guidance, step=0.1, label="Guidance: how closely to follow the words", elem_id="guidance")
        scheduler = gr.Dropdown(label="Solver", choices=[AUTO, MODEL, *SCHEDULERS], value=AUTO, elem_id="scheduler")
        negative = gr.Textbox(label="Keep out", placeholder="blurry", elem_id="negative")
        with gr.Row():
            start = gr.Slider(0, 1, 0.0, step=0.01, label="Style acts from", elem_id="start", min_width=120)
            end = gr.Slider(0, 1, 1.0, step=0.01, label="until (parts of the steps)", elem_id="end", min_width=120)
    form = Form(
        prompt=prompt,
        style=style,
        content=content,
        strength=strength,
        content_strength=content_strength,
        number=number,
        seed=seed,
        model=model,
        preset=chosen,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        negative=negative,
        start=start,
        end=end,
    )
    return form, draw, cancel, now
