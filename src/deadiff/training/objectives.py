"""The three training tasks (paper section 3.3) as pure functions: what the U-Net is told, and what it is asked to predict.

- STRE, style representation extraction: reference and target share a style; only the style tokens are live.
- SERE, semantic representation extraction: reference and target share a subject; only the content tokens are live.
- Reconstruction: the reference is the target; both are live, the prompt is empty.
"""

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# B batch, T text tokens, I image tokens of a role, C token width, Z latent channels


class Objective(StrEnum):
    """The tasks by the paper's names. `Objective("stre")` works."""

    STRE = "stre"
    SERE = "sere"
    RECONSTRUCTION = "reconstruction"


CONDITION_DROP = {Objective.STRE: 0.15, Objective.SERE: 0.15, Objective.RECONSTRUCTION: 0.0}  # share of samples, released config


class Live(NamedTuple):
    """Which image tokens each sample keeps, (B,) bool per role, and whether its prompt is kept."""

    style: Tensor
    content: Tensor
    text: Tensor


def live_parts(objective: Objective, batch: int, generator: torch.Generator, text_drop: float = 0.0) -> Live:
    """Draw what is live for each of `batch` samples of one task.

    Reconstruction drops by the batch, as the released code does: one draw decides between style alone, content alone and both.
    """
    kept = torch.rand(batch, generator=generator) >= CONDITION_DROP[objective]
    none = torch.zeros(batch, dtype=torch.bool)
    if objective is Objective.RECONSTRUCTION:
        choice = int(torch.randint(3, (), generator=generator))
        return Live(torch.full_like(none, choice != 1), torch.full_like(none, choice != 0), none)
    text = torch.rand(batch, generator=generator) >= text_drop
    return Live(kept, none, text) if objective is Objective.STRE else Live(none, kept, text)


def keep_text(text: Tensor, empty: Tensor, kept: Tensor) -> Tensor:
    """(B, T, C) with the empty prompt (1, T, C) where `kept` (B,) is false."""
    return torch.where(kept[:, None, None], text, empty.to(text.dtype))


def plain_weights(signal_to_noise: Tensor, velocity: bool) -> Tensor:
    """Every noise level counts the same (the paper)."""
    return torch.ones_like(signal_to_noise)


def min_snr_weights(signal_to_noise: Tensor, velocity: bool) -> Tensor:
    """min(SNR, 5) / SNR, or / (SNR + 1) for velocity: almost clean levels count less (Hang et al. 2023, arXiv 2303.09556)."""
    capped = signal_to_noise.clamp(max=5.0)
    return capped / (signal_to_noise + 1) if velocity else capped / signal_to_noise.clamp(min=1e-8)


LOSS_WEIGHTS = {"plain": plain_weights, "min_snr": min_snr_weights}


def diffusion_loss(
    predicted: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, schedule, weighting: str = "plain"
) -> Tensor:
    """Mean squared error against the schedule's own target: noise (SD 1.5, the paper) or velocity (icons).

    predicted, latents, noise (B, Z, h, w); `schedule` is a diffusers scheduler with `get_velocity`; weighting: of LOSS_WEIGHTS.
    """
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(latents, noise, timesteps) if velocity else noise
    if weighting == "plain":
        return F.mse_loss(predicted.float(), target.float())
    signal = schedule.alphas_cumprod.to(timesteps.device)[timesteps]  # (B,)
    weights = LOSS_WEIGHTS[weighting](signal / (1 - signal), velocity)
    return (weights * F.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))).mean()
