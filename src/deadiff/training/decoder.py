"""Stage 6 of the icons model: the decoder learns to make sharp pictures of what the base draws.

The autoencoder's decoder has seen true latents, hardly any noise: what noise a small base leaves (a fifth of the latents' spread)
it draws as grain on every ground. Here it is shown as much noise, and latents that the base drew (deadiff.training.redrawn),
beside a critic that knows how patches of each style look (Isola et al. 2017, PatchGAN; Miyato and Koyama 2018, projection).
Encoder and base stay as they are.

B batch, S picture side in pixels, Z latent channels, h = w = S / 16, F features of the critic.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deadiff.autoencoder import PatchAutoencoder
from deadiff.training.autoencoder import edge_difference
from deadiff.training.loop import Task
from deadiff.training.samples import to_pixels

SHOWN = 2**31  # the draw of the previews
COARSE = 8  # pixels: what a drawing has to keep of its latents are colours and shapes of this size


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What is drawn and how the losses weigh."""

    pictures: int = 6400  # that the base draws once, before the first step
    drawn_share: float = 0.6  # of the samples; the others are true latents with a little noise
    noise: float = 0.1  # greatest standard deviation of that noise, in units of the latents' own
    critic_weight: float = 0.1
    critic_width: int = 48
    critic_from: int = 300  # draw from which the critic is first heard


class Shown(NamedTuple):
    latents: Tensor  # (B, Z, h, w), unscaled
    pictures: Tensor  # (B, 3, S, S) that they were meant to be
    left: Tensor  # (B,) share of the steps that the base drew; 0: true latents
    style: Tensor  # (B,) class
    real: Tensor  # (B, 3, S, S) others, for the critic
    real_style: Tensor  # (B,)


class PatchCritic(ModelMixin, ConfigMixin):
    """Pictures (B, 3, S, S) and their styles (B,) -> (B, S / 8, S / 8) for each patch: above 0 real, below 0 drawn."""

    @register_to_config
    def __init__(self, styles: int, width: int = 48) -> None:
        super().__init__()

        def layer(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
            norm = nn.GroupNorm(8, after) if before > 3 else nn.Identity()
            return [nn.Conv2d(before, after, kernel, stride, padding=1), norm, nn.LeakyReLU(0.2)]

        self.features = nn.Sequential(
            *layer(3, width, 4, 2), *layer(width, 2 * width, 4, 2), *layer(2 * width, 4 * width, 4, 2),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.real = nn.Conv2d(4 * width, 1, 1)
        self.style = nn.Embedding(styles, 4 * width)
        nn.init.normal_(self.style.weight, std=(4 * width) ** -0.5)

    def forward(self, pictures: Tensor, style: Tensor) -> Tensor:
        return self.judge(self.features(pictures), style)

    def judge(self, features: Tensor, style: Tensor) -> Tensor:
        """The same of features (B, F, S / 8, S / 8) that are there already."""
        return self.real(features)[:, 0] + torch.einsum("bfhw,bf->bhw", features, self.style(style))


class DecoderTask(Task):
    """`draw(draw, count)` -> Shown, on numpy arrays as IconArt has them."""

    def __init__(
        self, config: DecoderConfig, vae: PatchAutoencoder, styles: int, draw: Callable[[int, int], dict[str, np.ndarray]]
    ) -> None:
        self.config, self.draw = config, draw
        self.before = copy.deepcopy(vae).requires_grad_(False).eval()
        vae.encoder.requires_grad_(False)
        vae.inverse.requires_grad_(False)
        self.modules = {"vae": vae, **({"critic": PatchCritic(styles, config.critic_width)} if config.critic_weight else {})}

    def batch(self, draw: int, batch_size: int) -> tuple[int, Shown]:
        found = self.draw(draw, batch_size)
        pictures, real = to_pixels(found["pictures"]), to_pixels(found["real"])
        rest = (torch.from_numpy(np.asarray(found[name])) for name in ("latents", "left", "style", "real_style"))
        latents, left, style, real_style = rest
        return draw, Shown(latents.float(), pictures, left.float(), style, real, real_style)

    def loss(self, batch: tuple[int, Shown], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Decoder and critic at once: each sees the other's weights as constants.

        Near latents keep their pixels and edges (L1 to the picture, less the more was drawn), far ones what the decoder before
        made of them, in squares of COARSE pixels, and hinge losses settle what is in between (Lim and Ye 2017).
        """
        draw, shown = batch
        vae: Any = self.modules["vae"]
        dtype, scaling = vae.dtype, vae.config.scaling_factor
        much = torch.rand(len(shown.latents), 1, 1, 1, generator=generator) * self.config.noise / scaling
        much = much * (shown.left == 0)[:, None, None, None]
        latents = shown.latents + much * torch.randn(shown.latents.shape, generator=generator)
        with torch.no_grad():
            before = self.before.decode(latents.to(self.before.dtype)).sample.float().clamp(-1, 1)  # pyright: ignore
        drawn = vae.decode(latents.to(dtype)).sample

        near = (1 - 2 * shown.left).clamp(min=0)[:, None, None, None]  # 1 for true latents, 0 once half of the steps are drawn
        error = (drawn.float() - shown.pictures) * near
        pixel, edge = error.abs().mean(), edge_difference(error, torch.zeros_like(error))
        coarse = (F.avg_pool2d(drawn.float() - before, COARSE) * (1 - near)).abs().mean()

        loss, said = pixel + edge + coarse, {"pixel": pixel, "edge": edge, "coarse": coarse}
        if "critic" in self.modules:
            believed, told = self.heard(drawn, shown)
            loss = loss + self.config.critic_weight * (draw >= self.config.critic_from) * believed + told
            said |= {"believed": believed, "told": told}
        return loss, {name: value.detach() for name, value in said.items()}

    def heard(self, drawn: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        """Hinge losses (Lim and Ye 2017) of decoder and critic, each with the other's weights as constants."""
        critic: Any = self.modules["critic"]
        fixed = {name: weight.detach() for name, weight in critic.state_dict().items()}
        believed = -functional_call(critic, fixed, (drawn, shown.style)).float().mean()
        features = critic.features(shown.real.to(drawn.dtype))
        on_drawn = critic(drawn.detach(), shown.style).float()
        on_real, mistaken = (critic.judge(features, style).float() for style in (shown.real_style, shown.style))
        other = (shown.style != shown.real_style)[:, None, None]
        told = F.relu(1 + on_drawn).mean() + F.relu(1 - on_real).mean() + 0.5 * (F.relu(1 + mistaken) * other).mean()
        return believed, told

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """What was meant, as decoded before, and as decoded now."""
        shown = self.batch(SHOWN, 16)[1]
        vae: Any = self.modules["vae"]
        made = [self.before.decode(shown.latents.to(self.before.dtype)).sample, vae.decode(shown.latents.to(vae.dtype)).sample]  # pyright: ignore
        rows = [torch.cat(list(x.float()), dim=2) for x in (shown.pictures, *made)]
        sheet = torch.cat(rows, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(sheet).save(folder / f"preview-{step:08d}.png")
