"""A finished model back into a run folder, so that rivals and new adapters can be trained on its base without training that."""

import json
import re
from pathlib import Path

from transformers import CLIPVisionConfig, CLIPVisionModel

from deadiff.embedded import ICONS, load_embedded
from deadiff.errors import CheckpointError
from deadiff.training.autoencoder import encode_all, save_latents
from deadiff.training.icon_art import IconArt

DONE = "from-model.txt"  # written last
SEEN = "samples-seen.json"  # stage -> samples that the model had seen, as its provenance tells


def unpack(run: Path, art: IconArt, model: Path = ICONS) -> Path:
    """An icons model's folder -> RUN/{autoencoder,reader,sketch,eye,base,alignment}, as the stages would have left them.

    The adapter stands where the alignment would: both stages go on from it. Returns RUN. Raises CheckpointError for a model of
    another make.
    """
    if (run / DONE).is_file() and (run / DONE).read_text().strip() == str(model.resolve()):
        return run
    pipe, adapter = load_embedded(model)
    if adapter.config.base != "icons":
        raise CheckpointError(f"'{model}' is an adapter for {adapter.config.base}: expected an icons model")
    run.mkdir(parents=True, exist_ok=True)
    (run / DONE).unlink(missing_ok=True)
    pipe.vae.save_pretrained(run / "autoencoder" / "vae")
    pipe.unet.save_pretrained(run / "base" / "unet")
    for stage in ("reader", "sketch"):  # the tower is one; each stage trains its part of it
        pipe.text_encoder.save_pretrained(run / stage / "text_encoder")
    pipe.tokenizer.save_pretrained(run / "reader" / "tokenizer")
    whole_eye(adapter.vision).save_pretrained(run / "eye" / "image_encoder")
    adapter.save_pretrained(run / "alignment" / "adapter")
    save_latents(run / "autoencoder" / "latents.npy", encode_all(pipe.vae, art.pictures))  # pyright: ignore[reportArgumentType]
    told = re.findall(r"(\w+) ([\d,]+)", adapter.config.provenance.get("training", ""))
    (run / SEEN).write_text(json.dumps({stage: int(count.replace(",", "")) for stage, count in told}))
    (run / DONE).write_text(f"{model.resolve()}\n")
    return run


def whole_eye(headless: CLIPVisionModel) -> CLIPVisionModel:
    """The adapter's eye with a last block and norm again, which nobody reads: an adapter is built from an eye that has them."""
    sizes = headless.config.to_dict()
    eye = CLIPVisionModel(CLIPVisionConfig(**{**sizes, "num_hidden_layers": sizes["num_hidden_layers"] + 1}))
    weights = eye.state_dict()
    kept = headless.state_dict()
    assert kept.keys() <= weights.keys()
    eye.load_state_dict({**weights, **kept})
    return eye.eval()
