"""Pictures of the present state: what the adapter draws for the references of the validation draws."""

from collections.abc import Sequence

import torch
from PIL import Image

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.contact_sheet import Row, contact_sheet
from deadiff.training.bases import Base
from deadiff.training.features import Features
from deadiff.training.objectives import Objective
from deadiff.training.sources import VALIDATION, Source

COUNT, STEPS, GUIDANCE = 4, 25, 7.5


@torch.no_grad()
def draw_preview(
    base: Base, adapter: DEADiffAdapter, features: Features, source: Source, prompts: Sequence[str] = (), steps: int = STEPS
) -> Image.Image:
    """A contact sheet: reference, prompt, what is drawn with style tokens at a fixed seed. The adapter is injected."""
    references, _, captions = source.numbers(Objective.STRE, VALIDATION, COUNT)
    prompts = [prompts[i % len(prompts)] for i in range(COUNT)] if prompts else captions
    rows = []
    for number, prompt in zip(references, prompts, strict=True):
        tokens = adapter.extractors["style"](features.vision([number], source).to(base.device, adapter.dtype))
        said, empty = base.read_text([prompt]), base.read_text([""])
        dtype = base.unet.dtype
        given = {
            "prompt_embeds": adapter.embed(said["text"].to(dtype), tokens),
            "negative_prompt_embeds": adapter.embed(empty["text"].to(dtype), *adapter.idle(Tokens(tokens))),
        }
        if base.is_xl:
            given |= {
                "pooled_prompt_embeds": said["pooled"].to(dtype),
                "negative_pooled_prompt_embeds": empty["pooled"].to(dtype),
            }
        base.pipe.set_progress_bar_config(disable=True)
        latents = base.pipe(
            **given, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="latent", height=base.resolution,
            width=base.resolution, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        pixels = base.vae.decode((latents.to(base.vae.dtype) / base.scaling) + base.shift).sample[0]
        drawn = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        rows.append(
            Row(
                prompt=prompt,
                references=[(Image.fromarray(source.picture(int(number))), "style")],
                pictures=[(Image.fromarray(drawn), "")],
            )
        )
    return contact_sheet(rows)
