"""What is compared: the recipe of an evaluation, its methods, and the cells (method, reference, prompt, seed, strength).

A recipe is a TOML file (recipes/eval/); its keys are those of `EvalRecipe`. The paper's shape is 32 references x 35 prompts x 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError
from deadiff.toml_tables import build, read_table

MODEL, WORDS, PLAIN, PASTED, RANDOM, TRUE = "model", "words", "plain", "reference", "random", "true"
BASELINES = {  # scored beside every method, so that each score is seen to reward what it should
    WORDS: "text only: the style in words",
    PLAIN: "the plain base, no reference",
    PASTED: "the reference pasted back",
    RANDOM: "another reference, by lot",
    TRUE: "the true picture, from the data",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One column of the comparison. Baselines have no model of their own: those that draw use the first model's base."""

    name: str
    title: str
    kind: str = MODEL
    model: str = ""  # a name, folder or run folder, as given
    routes: str | dict[str, str] | None = None  # another route table at inference, the weights as they are

    @property
    def draws(self) -> bool:
        """Whether its pictures must be drawn: the others exist already."""
        return self.kind in (MODEL, WORDS, PLAIN)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture to draw and to score."""

    reference: str  # its name in the reference set
    prompt: str
    seed: int
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StrengthRecipe:
    """Further strengths, on a part of the grid: the curve of style against text."""

    values: tuple[float, ...] = ()
    references: int = 8  # evenly spaced in the set
    prompts: int = 8
    seeds: int = 1

    def __post_init__(self) -> None:
        if any(not 0 <= value <= 100 for value in self.values):
            raise ConfigError(f"[strength] values are {self.values}: expected numbers from 0 to 100")


@dataclass(frozen=True, kw_only=True)
class ReferenceRecipe:
    """Which references: files (with what is known of them), or chosen by rule from a data set (reference_set.py)."""

    files: tuple[str, ...] = ()  # globs, relative to the recipe
    seen: int = 0  # from the data set: styles that training knows, pictures never shown as references
    unseen: int = 0  # from the data set: held-out sets and renditions
    lot: int = 0  # another number, another choice


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Which methods stand for what in the verdicts; names of methods. What is absent is left out of the verdicts."""

    ours: str = ""  # "": the first model
    rivals: tuple[str, ...] = ()
    reconstructive: tuple[str, ...] = ()  # of the rivals, those that learn to redraw the reference
    ablations: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """All that an evaluation needs beside the models."""

    name: str
    prompts: dict[str, str]  # prompt -> the subject's class (a hexcode in the icons world), "" where unknown
    references: ReferenceRecipe
    seeds: int = 4  # pictures of each prompt with each reference
    num_inference_steps: int | None = None  # None: the model's default
    guidance_scale: float | None = None
    scheduler: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    strength: StrengthRecipe = field(default_factory=StrengthRecipe)
    claims: Claims = field(default_factory=Claims)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {of, routes}: a given model, routed otherwise
    titles: dict[str, str] = field(default_factory=dict)  # name of a method -> what tables call it
    folder: Path = field(default=Path("."), compare=False)  # where the recipe is; file patterns start here

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError(f"evaluation recipe {self.name!r} has no prompts: expected at least one")
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}: expected at least 1 picture of each prompt")
        chosen = self.references
        if not chosen.files and chosen.seen + chosen.unseen < 1:
            raise ConfigError(f"evaluation recipe {self.name!r} has no references: expected files, or seen and unseen counts")
        for name, variant in self.variants.items():
            if set(variant) != {"of", "routes"}:
                raise ConfigError(f"variant {name!r} has keys {sorted(variant)}: expected of (a model) and routes")

    def seed_of(self, prompt: str, number: int) -> int:
        """The seed of a prompt's n-th picture: another noise for each prompt, the same for every method and reference."""
        return list(self.prompts).index(prompt) * self.seeds + number

    def methods(self, models: Mapping[str, str]) -> list[Method]:
        """Models as given (name -> path), their variants, then the baselines. Raises ConfigError."""
        if taken := sorted(set(models) & set(BASELINES)):
            raise ConfigError(f"a model is called {taken[0]!r}, like a baseline: choose another name, --model NAME=PATH")
        found = [Method(name=name, title=self.titles.get(name, name), model=model) for name, model in models.items()]
        for name, variant in self.variants.items():
            if variant["of"] in models:
                title = self.titles.get(name, f"{variant['of']}, routed otherwise")
                found.append(Method(name=name, title=title, model=models[variant["of"]], routes=variant["routes"]))
        first = next(iter(models.values()), "")
        return [*found, *(Method(name=kind, kind=kind, title=title, model=first) for kind, title in BASELINES.items())]

    def cells(self, method: Method, references: Sequence[str]) -> Iterator[Cell]:
        """The grid at strength 1, then the part of it that is drawn at other strengths."""
        for reference in references:
            for prompt in self.prompts:
                for number in range(self.seeds):
                    yield Cell(reference=reference, prompt=prompt, seed=self.seed_of(prompt, number))
        if method.kind != MODEL:
            return
        for strength in self.strength.values:
            if strength != 1:
                for cell in self.curve_cells(references):
                    yield Cell(reference=cell.reference, prompt=cell.prompt, seed=cell.seed, strength=strength)

    def curve_cells(self, references: Sequence[str]) -> list[Cell]:
        """The part of the grid on which strengths are compared, at strength 1."""
        part = self.strength
        return [
            Cell(reference=reference, prompt=prompt, seed=self.seed_of(prompt, number))
            for reference in spaced(references, part.references)
            for prompt in spaced(list(self.prompts), part.prompts)
            for number in range(min(part.seeds, self.seeds))
        ]


def spaced(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first among them: chosen by rule, not by taste."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def read_eval_recipe(path: Path) -> EvalRecipe:
    """Raises ConfigError, in one line, for a file that cannot be read, is no TOML or has unknown keys."""
    return parse_eval_recipe(read_table(path), path)


def parse_eval_recipe(table: dict[str, Any], path: Path) -> EvalRecipe:
    """The table of the file at `path`. Raises ConfigError."""
    table = dict(table)
    prompts = table.get("prompts", {})
    table["prompts"] = dict.fromkeys(prompts, "") if isinstance(prompts, list) else prompts
    for name, kind in (("references", ReferenceRecipe), ("strength", StrengthRecipe), ("claims", Claims)):
        if name in table:
            table[name] = build(kind, table[name], f"[{name}] of '{path}'")
    table.setdefault("name", path.stem)
    return build(EvalRecipe, {**table, "folder": path.parent}, f"recipe '{path}'")
