"""The page: what stands where, and what happens when something is pressed. What it does is in studio.py."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from deadiff.errors import DEADiffError
from deadiff.web import markup
from deadiff.web.drawing import Event
from deadiff.web.folder import source_name
from deadiff.web.form import Form, References, make_form
from deadiff.web.look import SHOW_PROGRESS
from deadiff.web.request import MOST_REFERENCES, request_of
from deadiff.web.studio import Studio, read_strengths
from deadiff.web.styles_part import StylesPart
from deadiff.web.words import EXAMPLES, preset

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # the page is no interface for programs


class Page:
    """One page over one Studio; `blocks` is what Gradio serves. Each browser tab has its own form and its own Cancel."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._cancels: dict[str, threading.Event] = {}  # browser tab -> the drawing it asked for
        folder, models = studio.folder, studio.models
        with gr.Blocks(analytics_enabled=False, title="DEADiff", delete_cache=(3600, 24 * 3600)) as blocks:
            gr.HTML("<h1>DEADiff</h1><p>Draw what you say, in the style of a picture.</p>", elem_classes="title")
            with gr.Row(elem_id="sides"):
                with gr.Column(scale=5, min_width=320):
                    self.examples = self._example_buttons()
                    form, self.draw_button, self.cancel_button, self.now = make_form(
                        models.names, models.defaults(models.names[0]), folder.styles.names()
                    )
                    self.form: Form = form
                with gr.Column(scale=6, min_width=320), gr.Tabs():
                    with gr.Tab("Pictures", elem_id="pictures-tab"):
                        self._gallery_part()
                    with gr.Tab("Compare", elem_id="compare-tab"):
                        self._compare_part()
                    with gr.Tab("Styles", elem_id="styles-tab"):
                        self.styles_part = StylesPart(studio, form)
            self._wire(blocks)
        self.blocks = blocks

    # ---- what stands where ----

    def _example_buttons(self) -> list[gr.Button]:
        self.examples_part = gr.Accordion("Examples to start from", open=True, elem_id="examples")
        with self.examples_part, gr.Row(elem_id="example-buttons"):
            return [
                gr.Button(example.label, icon=example.path, size="sm", elem_classes="example", min_width=100)
                for example in EXAMPLES
            ]

    def _gallery_part(self) -> None:
        self.lesson = gr.HTML(markup.EMPTY, visible=not self.studio.folder.pictures(), elem_id="lesson")
        self.gallery = gr.Gallery(
            label="Drawn, newest first",
            elem_id="gallery",
            columns=4,
            height="auto",
            object_fit="contain",
            interactive=False,
            allow_preview=False,
            buttons=[],
            visible=bool(self.studio.folder.pictures()),
        )
        self.shown = gr.State([])  # the gallery's files, as str
        self.selected = gr.State(None)
        self.details = gr.HTML("", elem_id="details")
        with gr.Row(visible=False, elem_id="actions") as self.actions:
            self.again_button = gr.Button("Again", size="sm", elem_id="again", min_width=90)
            self.vary_button = gr.Button("Vary", size="sm", elem_id="vary", min_width=90)
            self.as_style_button = gr.Button("Use as style", size="sm", elem_id="as-style", min_width=110)
            self.as_content_button = gr.Button("Use as content", size="sm", elem_id="as-content", min_width=110)
            self.save_button = gr.DownloadButton("Download", size="sm", elem_id="download", min_width=90)

    def _compare_part(self) -> None:
        gr.HTML("<p>The prompt and one seed, drawn in each style reference alone, at each strength.</p>")
        self.strengths = gr.Textbox("0.5, 1, 1.5", label="Strengths", elem_id="strengths")
        self.compare_button = gr.Button("Draw the grid", variant="primary", elem_id="compare")
        self.sheet = gr.Image(
            label="Comparison",
            type="filepath",
            format="png",
            interactive=False,
            elem_id="sheet",
            buttons=["download", "fullscreen"],
        )

    # ---- what happens ----

    def _wire(self, blocks: gr.Blocks) -> None:
        form = self.form
        self._drawing = [self.now, self.draw_button, self.cancel_button, self.compare_button, *self._gallery_outputs]

        for start in (self.draw_button.click, form.prompt.submit):
            self._on_start(start).then(self.draw, form.inputs, self._drawing, **TURNS)
        self._on_start(self.again_button.click).then(self.again, [self.selected], [*self._drawing, *form.outputs], **TURNS)
        self._on_start(self.vary_button.click).then(self.vary, [self.selected], [*self._drawing, *form.outputs], **TURNS)
        self._on_start(self.compare_button.click).then(
            self.compare, {*form.inputs, self.strengths}, [*self._drawing, self.sheet], **TURNS
        )
        self.cancel_button.click(self.cancel, None, [self.cancel_button], queue=False, **PRIVATE)

        self.gallery.select(self.select, [self.shown], [self.selected, self.details, self.actions, self.save_button], **PRIVATE)
        for button, part in ((self.as_style_button, form.style), (self.as_content_button, form.content)):
            button.click(self._use_as(part), [self.selected, part.pictures], [part.pictures, self.now], **PRIVATE)

        for part in (form.style, form.content):
            part.pictures.upload(self._check(part), [part.pictures], [part.pictures, self.now], **PRIVATE)
            changed = [part.pictures.change, *([part.saved.change] if part.saved is not None else [])]
            for change in changed:
                change(part.follow, {*part.parts, part.names}, [*part.weights, part.names], **PRIVATE)
        for button, example in zip(self.examples, EXAMPLES, strict=True):
            button.click(
                lambda example=example: {form.prompt: example.prompt, form.style.pictures: [str(example.path)]},
                None,
                [form.prompt, form.style.pictures],
                **PRIVATE,
            )
        settings = [form.strength, form.content_strength, form.steps, form.guidance, form.start, form.end]
        form.preset.input(self.settle, [form.preset, form.model], settings, **PRIVATE)
        form.model.input(self.settle, [form.preset, form.model], settings, **PRIVATE)
        self.styles_part.wire(PRIVATE)
        blocks.load(self.refresh, None, [*self._gallery_outputs, *self.styles_part.lists, self.examples_part], **PRIVATE)

    def _on_start(self, event: Any) -> Any:
        outputs = [self.now, self.draw_button, self.cancel_button]
        return event(self.begin, None, outputs, queue=False, js=SHOW_PROGRESS, **PRIVATE)

    @property
    def _gallery_outputs(self) -> list[Any]:
        return [self.gallery, self.shown, self.lesson]

    def _gallery_now(self) -> dict[Any, Any]:
        paths = self.studio.folder.pictures()
        captioned = [(str(path), self._caption(path)) for path in paths]
        return {
            self.gallery: gr.update(value=captioned, visible=bool(paths)),
            self.shown: [str(path) for path in paths],
            self.lesson: gr.update(visible=not paths),
        }

    def _caption(self, path: Path) -> str:
        recipe = self.studio.folder.recipe(path)
        return f"{recipe.prompt[:60] or 'no prompt'} · {recipe.seed}"

    def refresh(self) -> dict[Any, Any]:
        fresh = not self.studio.folder.pictures()
        return {**self._gallery_now(), **self.styles_part.now(), self.examples_part: gr.update(open=fresh)}

    # drawing

    def begin(self, request: gr.Request) -> dict[Any, Any]:
        """At once, before the queue: so that Cancel works also while another drawing is waited for."""
        self._cancels[str(request.session_hash)] = threading.Event()
        return {
            self.now: markup.said("Starting"),
            self.draw_button: gr.update(interactive=False),
            self.cancel_button: gr.update(interactive=True),
        }

    def cancel(self, request: gr.Request) -> dict[Any, Any]:
        self._cancels.setdefault(str(request.session_hash), threading.Event()).set()
        return {self.cancel_button: gr.update(interactive=False)}

    def draw(self, values: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from self._told(request, lambda cancel: self.studio.draw(self.form.read(values), cancel))

    def again(self, path: str | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        def start(cancel: threading.Event) -> Iterator[Event]:
            return self.studio.again(path or "", cancel)

        yield from self._refilled(path, request, start, {})

    def vary(self, path: str | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        changes = {"seed": None, "num_images": 4}

        def start(cancel: threading.Event) -> Iterator[Event]:
            wanted = request_of(self.studio.folder.recipe(path or ""), self.studio.folder)
            return self.studio.draw(replace(wanted, **changes), cancel)

        yield from self._refilled(path, request, start, changes)

    def compare(self, values: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from self._told(
            request,
            lambda cancel: self.studio.compare(self.form.read(values), read_strengths(values[self.strengths] or ""), cancel),
        )

    def _refilled(self, path: str | None, request: gr.Request, start: Callable[..., Any], changes: dict[str, Any]) -> Any:
        """The form says what the picture was made from, while it is drawn again."""
        try:
            known = request_of(self.studio.folder.recipe(path or ""), self.studio.folder)
            self.studio.models.check(known.model)
        except DEADiffError as error:
            yield {**self._idle(), self.now: markup.wrong(str(error))}
            return
        yield {**self.form.fill(replace(known, **changes)), self.now: markup.said("Starting")}
        yield from self._told(request, start)

    def _told(self, request: gr.Request, start: Callable[[threading.Event], Iterator[Event]]) -> Iterator[dict[Any, Any]]:
        """Events of a drawing -> changes of the page."""
        cancel = self._cancels.setdefault(str(request.session_hash), threading.Event())
        try:
            events = start(cancel)
        except DEADiffError as error:
            yield {**self._idle(), self.now: markup.wrong(str(error))}
            return
        for event in events:
            if not event.ended:
                text = event.note or (f"{event.done} of {event.total} steps" if event.total else "Starting")
                yield {self.now: markup.drawing_now(event, text)}
            elif event.error is not None:
                yield {**self._idle(), **self._gallery_now(), self.now: markup.wrong(event.error)}
            elif event.cancelled:
                yield {**self._idle(), **self._gallery_now(), self.now: markup.said("Cancelled. Finished pictures are kept.")}
            else:
                count = len(event.result.paths)
                text = f"{count} picture{'s' if count > 1 else ''} in {event.result.seconds:.1f} seconds"
                changes = {**self._idle(), **self._gallery_now(), self.now: markup.drawn(event, text)}
                if event.result.sheet is not None:
                    changes[self.sheet] = str(event.result.sheet)
                yield changes

    def _idle(self) -> dict[Any, Any]:
        return {self.draw_button: gr.update(interactive=True), self.cancel_button: gr.update(interactive=False)}

    # gallery and references

    def select(self, shown: list[str], event: gr.SelectData) -> dict[Any, Any]:
        path = shown[event.index] if isinstance(event.index, int) and event.index < len(shown) else ""
        try:
            recipe = self.studio.folder.recipe(path)
        except DEADiffError as error:
            return {self.details: markup.wrong(str(error)), self.actions: gr.update(visible=False), self.selected: None}
        return {
            self.selected: path,
            self.details: markup.told_recipe(Path(path).name, recipe),
            self.actions: gr.update(visible=True),
            self.save_button: gr.update(value=path),
        }

    def _use_as(self, part: References) -> Callable[..., Any]:
        def use(path: str | None, pictures: Any) -> dict[Any, Any]:
            there = [name for name, _ in pictures or []]
            if path is None or len(there) >= MOST_REFERENCES:
                return {self.now: markup.wrong(f"there are {len(there)} {part.role} references already: remove one first")}
            text = f"{source_name(path)} is a {part.role} reference now"
            return {part.pictures: [*there, path], self.now: markup.said(text)}

        return use

    def _check(self, part: References) -> Callable[..., Any]:
        def check(pictures: Any) -> dict[Any, Any]:
            """Uploads that are no pictures, or too many, leave at once, with one line that says why."""
            good, errors = [], []
            for path, _ in pictures or []:
                try:
                    self.studio.folder.keep_reference(path)
                    good.append(path)
                except DEADiffError as error:
                    errors.append(str(error))
            if len(good) > MOST_REFERENCES:
                errors.append(f"{len(good)} {part.role} references are too many: the first {MOST_REFERENCES} are kept")
                good = good[:MOST_REFERENCES]
            if not errors:
                return {self.now: ""}
            more = f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""
            return {part.pictures: good or None, self.now: markup.wrong(errors[0] + more)}

        return check

    def settle(self, name: str | None, model: str) -> dict[Any, Any]:
        return self.form.settle(preset(name or "", self.studio.models.defaults(model)))


TURNS: dict[str, Any] = {**PRIVATE, "concurrency_limit": 4, "concurrency_id": "drawing"}  # who waits is told so by the drawing
