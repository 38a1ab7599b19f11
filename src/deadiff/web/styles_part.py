"""The library of named styles on the page: save, use, rename, delete, share as a file."""

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from deadiff.errors import DEADiffError
from deadiff.web import markup
from deadiff.web.form import Form
from deadiff.web.studio import Studio

CONFIRM = """(name, ticked) =>
  [name && confirm(`Delete the style '${name}'? Its file goes.`) ? name : null, ticked]"""


class StylesPart:
    """Made inside the page's tab; `wire` connects it once the form is complete."""

    def __init__(self, studio: Studio, form: Form) -> None:
        assert form.style.saved is not None
        self.studio, self.form, self.saved = studio, form, form.style.saved
        self.said = gr.HTML("", elem_id="style-said")
        with gr.Row():
            self.new_name = gr.Textbox(label="Name", placeholder="blue ink", max_lines=1, elem_id="style-name", scale=3)
            self.save = gr.Button("Save the references as a style", size="md", elem_id="style-save", scale=2, min_width=140)
        self.gallery = gr.Gallery(
            label="Saved styles",
            elem_id="style-gallery",
            columns=5,
            height="auto",
            interactive=False,
            allow_preview=False,
            buttons=[],
        )
        self.choice = gr.Dropdown(label="Style", choices=studio.folder.styles.names(), value=None, elem_id="style-choice")
        with gr.Row():
            self.use = gr.Button("Use", size="sm", elem_id="style-use", min_width=80)
            self.share = gr.DownloadButton("Share as a file", size="sm", elem_id="style-share", interactive=False, min_width=110)
            self.delete = gr.Button("Delete", size="sm", variant="stop", elem_id="style-delete", min_width=80)
        with gr.Row():
            self.other_name = gr.Textbox(label="New name", max_lines=1, elem_id="style-new-name", scale=3)
            self.rename = gr.Button("Rename", elem_id="style-rename", scale=1, min_width=90)
        self.bring = gr.UploadButton("Bring in a style file", size="sm", file_types=[".safetensors"], elem_id="style-bring")
        self.shared = tempfile.TemporaryDirectory(prefix="deadiff-shared-")  # where styles to download lie until the app ends

    @property
    def lists(self) -> list[Any]:
        """What shows the library's names, and the chosen one's file."""
        return [self.gallery, self.choice, self.saved, self.share]

    def now(self, chosen: str | None = None) -> dict[Any, Any]:
        styles = self.studio.folder.styles.styles()
        names = [style.name for style in styles]
        return {
            self.gallery: [(style.thumbnail, style.name) for style in styles],
            self.choice: gr.update(choices=names, value=chosen),
            self.saved: gr.update(choices=names, visible=bool(names)),
            self.share: self._offer(chosen),
        }

    def wire(self, private: dict[str, Any]) -> None:
        outputs = [self.said, *self.lists]
        for event in (self.save.click, self.new_name.submit):
            event(self._save, {self.new_name, *self.form.inputs}, [*outputs, self.new_name], **private)
        self.gallery.select(self._select, None, [self.choice, self.share], **private)
        self.choice.input(self._offer, [self.choice], [self.share], **private)
        self.use.click(self._use, [self.choice, self.saved], [self.saved, self.said], **private)
        for event in (self.rename.click, self.other_name.submit):
            event(self._rename, {self.choice, self.other_name, self.saved}, [*outputs, self.other_name], **private)
        self.delete.click(self._delete, [self.choice, self.saved], outputs, js=CONFIRM, **private)
        self.bring.upload(self._bring, [self.bring], outputs, **private)

    def _save(self, values: dict[Any, Any]) -> dict[Any, Any]:
        try:
            given = self.form.style.read(values)
            style = self.studio.save_style(values[self.new_name] or "", given, values[self.form.model])
        except DEADiffError as error:
            return {self.said: markup.wrong(str(error))}
        return {**self.now(style.name), self.said: markup.said(f"Saved the style '{style.name}'"), self.new_name: ""}

    def _select(self, event: gr.SelectData) -> dict[Any, Any]:
        names = self.studio.folder.styles.names()
        name = names[event.index] if isinstance(event.index, int) and event.index < len(names) else None
        return {self.choice: name, self.share: self._offer(name)}

    def _offer(self, name: str | None) -> Any:
        """The style's file, ready behind the button."""
        try:
            if not name:
                return gr.update(value=None, interactive=False)
            file, data = self.studio.folder.styles.export(name)
        except DEADiffError:
            return gr.update(value=None, interactive=False)
        path = Path(self.shared.name) / file
        path.write_bytes(data)
        return gr.update(value=str(path), interactive=True)

    def _use(self, name: str | None, ticked: list[str] | None) -> dict[Any, Any]:
        if not name:
            return {self.said: markup.wrong("no style is chosen: pick one above")}
        names = [*(ticked or []), *([] if name in (ticked or []) else [name])]
        return {self.saved: names, self.said: markup.said(f"'{name}' is among the style references now")}

    def _rename(self, values: dict[Any, Any]) -> dict[Any, Any]:
        old = values[self.choice]
        try:
            if not old:
                return {self.said: markup.wrong("no style is chosen: pick one above")}
            style = self.studio.folder.styles.rename(old, values[self.other_name] or "")
        except DEADiffError as error:
            return {self.said: markup.wrong(str(error))}
        ticked = [style.name if name == old else name for name in values[self.saved] or []]
        return {
            **self.now(style.name),
            **self._ticked(ticked),
            self.said: markup.said(f"'{old}' is called '{style.name}' now"),
            self.other_name: "",
        }

    def _delete(self, name: str | None, ticked: list[str] | None) -> dict[Any, Any]:
        if not name:
            return {self.said: ""}
        try:
            self.studio.folder.styles.delete(name)
        except DEADiffError as error:
            return {self.said: markup.wrong(str(error))}
        kept = [one for one in ticked or [] if one != name]
        return {**self.now(), **self._ticked(kept), self.said: markup.said(f"Deleted the style '{name}'")}

    def _bring(self, path: str) -> dict[Any, Any]:
        try:
            style = self.studio.folder.styles.import_style(path)
        except DEADiffError as error:
            return {self.said: markup.wrong(str(error).replace(str(path), Path(path).name))}
        return {**self.now(style.name), self.said: markup.said(f"Brought in the style '{style.name}'")}

    def _ticked(self, names: list[str]) -> dict[Any, Any]:
        there = self.studio.folder.styles.names()
        return {self.saved: gr.update(choices=there, value=names, visible=bool(there))}
