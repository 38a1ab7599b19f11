"""What a picture will be, seen before it is finished: the noise-free latents that the model expects at each step.

B pictures, Z latent channels, h, w latent size.
"""

import functools
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIDE = 256  # pixels; larger previews are drawn smaller, so that they cost little beside a step


class Watch:
    """Keeps the estimate of the finished latents that every step of a scheduler implies; what the scheduler does is unchanged."""

    def __init__(self, scheduler: Any) -> None:
        """scheduler: one call's own, whose step() is wrapped."""
        self.latents: Tensor | None = None  # (B, Z, h, w) once a step is done
        step = scheduler.step

        @functools.wraps(step)  # pipelines read the signature of step()
        def watched(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
            done = step(model_output, timestep, sample, *args, **options)
            self.latents = finished(scheduler, model_output, timestep, sample)
            return done

        scheduler.step = watched


def finished(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """x_0 as the model sees it from x_t: sample = a x_0 + s noise, solved for x_0. All (B, Z, h, w).

    Schedulers of the Euler family scale their latents so that a = 1; the others keep a^2 + s^2 = 1.
    """
    alpha = scheduler.alphas_cumprod[int(timestep)].to(sample.device, torch.float32)
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    x, out = sample.float(), model_output.float()
    if float(scheduler.init_noise_sigma) != 1.0:  # Euler's x / a: back to unit variance
        x = x * a
    kind = scheduler.config.prediction_type
    if kind == "sample":
        estimate = out
    elif kind == "v_prediction":
        estimate = a * x - s * out
    else:
        estimate = (x - s * out) / a.clamp(min=1e-4)
    return estimate.to(sample.dtype)


@torch.no_grad()
def preview_pictures(pipe: Any, latents: Tensor) -> list[Image.Image]:
    """Latents (B, Z, h, w) -> small PIL pictures. Large latents are averaged first: a glance, not the picture."""
    scale = getattr(pipe, "vae_scale_factor", 8)
    height, width = latents.shape[2:]
    shrink = max(1, -(-max(height, width) * scale // SIDE))
    if shrink > 1:
        latents = F.adaptive_avg_pool2d(latents, (max(1, height // shrink), max(1, width // shrink)))
    config = pipe.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    pixels = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(pixels, output_type="pil")
