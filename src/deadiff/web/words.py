"""Examples and presets of the page."""

from dataclasses import dataclass
from pathlib import Path

from deadiff.defaults import Defaults

EXAMPLES_FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A reference that comes with the package, and words that go with it on the embedded model."""

    file: str
    prompt: str

    @property
    def path(self) -> Path:
        return EXAMPLES_FOLDER / self.file

    @property
    def label(self) -> str:
        return f"{self.prompt}, {self.path.stem.replace('-', ' ')}"


EXAMPLES = (
    Example(file="neon-camera.png", prompt="a cat"),
    Example(file="ink-pizza.png", prompt="a heart"),
    Example(file="vaporwave-dolphin.png", prompt="a robot"),
    Example(file="render-koala.png", prompt="a grinning face"),
    Example(file="watercolour-robot.png", prompt="a dog"),
    Example(file="paper-cut-rose.png", prompt="a fish"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of the form that a preset sets."""

    strength: float
    content_strength: float
    steps: int
    guidance: float
    start: float = 0.0  # of the window in which style acts, a fraction of the steps
    end: float = 1.0


PRESETS = {
    "The model's own": "Steps and guidance as the model recommends, strength 1.",
    "Quick sketch": "Half the steps: twice as fast, a little rougher.",
    "Fine": "Twice the steps.",
    "Words first": "Strength 0.7 and more guidance: when the reference takes over.",
    "Style first": "Strength 1.4: when the style is too faint.",
    "Style for the surface": "The style enters after a third of the steps: shapes stay the model's own.",
}


def preset(name: str, defaults: Defaults) -> Settings:
    """A preset for a model with these defaults."""
    steps, guidance = defaults.num_inference_steps, defaults.guidance_scale
    own = {"strength": 1.0, "content_strength": 1.0, "steps": steps, "guidance": guidance}
    changes: dict[str, dict[str, float]] = {
        "Quick sketch": {"steps": max(2, steps // 2)},
        "Fine": {"steps": min(200, steps * 2)},
        "Words first": {"strength": 0.7, "content_strength": 0.7, "guidance": round(guidance * 1.25, 1)},
        "Style first": {"strength": 1.4},
        "Style for the surface": {"start": 0.34},
    }
    return Settings(**{**own, **changes.get(name, {})})  # pyright: ignore[reportArgumentType]
