"""Schedulers (solvers) by name: the noise schedule and what the model predicts come from the model, the name says how to step."""

import copy
import difflib
from typing import Any

import diffusers

from deadiff.errors import ConfigError

MODEL = "model"  # the scheduler that came with the model, as it is
# name -> diffusers class, settings. "ddim" is the released sampler: with SD's betas it equals the official DDIM, eta 0.
_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, **_LEADING}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),  # the released code's second sampler
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def make_scheduler(name: str, model_scheduler: Any) -> Any:
    """A fresh scheduler: schedulers hold state, so every call gets its own. Raises ConfigError for an unknown name.

    Models trained down to zero signal (rescale_betas_zero_snr) keep their own timestep spacing: they start at the last timestep.
    """
    if name == MODEL:
        return copy.deepcopy(model_scheduler)
    if name not in SCHEDULERS:
        near = difflib.get_close_matches(name, SCHEDULERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no scheduler {name!r}: expected one of {', '.join([MODEL, *SCHEDULERS])}{hint}")
    class_name, settings = SCHEDULERS[name]
    config = dict(model_scheduler.config)
    if config.get("rescale_betas_zero_snr"):
        settings = {k: v for k, v in settings.items() if k not in (*_LEADING, "set_alpha_to_one")}
    return getattr(diffusers, class_name).from_config(config, **settings)
