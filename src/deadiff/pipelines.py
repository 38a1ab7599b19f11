"""One set of modules, many diffusers pipelines: a shell for each call, of the class that the task needs."""

import copy
import inspect
import re
from typing import Any

import diffusers

from deadiff.errors import ConfigError

_NAME = re.compile(r"(?P<family>StableDiffusion(XL)?)(ControlNet)?(Img2Img|Inpaint)?Pipeline")


def make_pipeline(pipe: Any, task: str, scheduler: Any) -> Any:
    """A pipeline for the task ("", "Img2Img", "Inpaint") over the modules of `pipe`, with a scheduler of its own.

    A shell is cheap and keeps what a call sets (guidance, scheduler state, progress) apart from other threads. Pipelines of other
    families than Stable Diffusion are copied as they are and do their own task only.
    """
    match = _NAME.fullmatch(type(pipe).__name__)
    if match is None:
        if task:
            raise ConfigError(f"{type(pipe).__name__} does not start from photos: expected a Stable Diffusion pipeline")
        shell = copy.copy(pipe)
    else:
        control = "ControlNet" if getattr(pipe, "controlnet", None) is not None else ""
        cls = getattr(diffusers, f"{match['family']}{control}{task}Pipeline")
        shell = copy.copy(pipe) if type(pipe) is cls else _build(cls, pipe)
    shell.scheduler = scheduler
    shell.set_progress_bar_config(disable=True)
    return shell


def _build(cls: Any, pipe: Any, **more: Any) -> Any:
    """A pipeline of another class around the same modules. Options that are not modules come along by name."""
    available = {**{k: v for k, v in pipe.config.items() if not k.startswith("_")}, **pipe.components, **more}
    names = inspect.signature(cls.__init__).parameters
    arguments = {name: available[name] for name in names if name in available}
    arguments["scheduler"] = copy.deepcopy(arguments["scheduler"])  # constructors of pipelines correct old schedulers in place
    if "requires_safety_checker" in names:
        arguments["requires_safety_checker"] = available.get("safety_checker") is not None
    return cls(**arguments)


def with_controlnet(pipe: Any, controlnet: Any) -> Any:
    """The ControlNet pipeline of the same family around the same modules."""
    match = _NAME.fullmatch(type(pipe).__name__)
    if match is None:
        raise ConfigError(f"{type(pipe).__name__} takes no ControlNet: expected a Stable Diffusion pipeline")
    return _build(getattr(diffusers, f"{match['family']}ControlNetPipeline"), pipe, controlnet=controlnet)
