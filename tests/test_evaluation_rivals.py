"""The paper's bench in miniature: every rival and ablation of recipes/rivals trained for two steps, compared, killed, resumed."""

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import test_evaluation as fakes
import tiny
from deadiff.config import LookConfig
from deadiff.data.build import BuildConfig, build
from deadiff.embedded import save_embedded
from deadiff.errors import ConfigError, DataError
from deadiff.evaluation import rivals
from deadiff.evaluation.design import read_eval_recipe
from deadiff.evaluation.drawing import open_model, routed
from deadiff.evaluation.protocol import Evaluation, evaluate
from deadiff.evaluation.report import write_report
from deadiff.evaluation.rivals import Bench, finished, run_bench, train_rivals, with_titles
from deadiff.evaluation.scores import IconsScorer
from deadiff.evaluation.set_scores import kid_to_true
from deadiff.routes import ABLATIONS, ROUTES
from deadiff.training import stages
from deadiff.training.adapter import AdapterTrainingConfig, switched
from deadiff.training.from_model import unpack
from deadiff.training.icon_art import IconArt
from deadiff.training.objectives import Objective

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
MINI = """
seeds = 1
num_inference_steps = 2
[prompts]
"a red heart" = "2764"
"eyes" = "1F440"
[references]
seen = 1
unseen = 2
[variants.instantstyle]
of = "ip-adapter"
routes = "icons"
[claims]
ours = "deadiff"
rivals = ["words", "ip-adapter", "instantstyle", "reconstructive"]
reconstructive = ["ip-adapter", "reconstructive"]
ablations = ["no-stre", "coarse-all"]
"""


class Judges(fakes.ColourJudges):
    """Knows every subject that the miniature may name."""

    def __init__(self, subjects: Sequence[str]) -> None:
        self.subjects = list(subjects)  # type: ignore[assignment]

    def subject(self, pictures: np.ndarray) -> np.ndarray:
        means = pictures.reshape(len(pictures), -1).mean(1, keepdims=True)
        odds = np.exp(-np.abs(means - np.linspace(0, 255, len(self.subjects))) / 50)
        return odds / odds.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build(folder, BuildConfig(size=128, renditions=2), art=HERE / "fixtures" / "art")
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as the package ships it, random and tiny."""
    folder = tmp_path_factory.mktemp("shipped")
    pipe = tiny.tiny_pipeline("icons")
    save_embedded(pipe, tiny.tiny_adapter(pipe.unet, "icons"), folder)
    return folder


def scorer(named: Sequence[str]) -> IconsScorer:
    return IconsScorer(Judges(sorted({s for s in named if s})), named)


@pytest.fixture(scope="module")
def bench(data: Path, shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    out = tmp_path_factory.mktemp("bench")
    return Bench(data=data, out=out, recipes=RECIPES, model=shipped, budget=64, start_budget=128)


@pytest.fixture(scope="module")
def done(bench: Bench, data: Path) -> list[Evaluation]:
    """Killed while the third rival trains, then run to its end, then run again."""
    (bench.out / "mini.toml").write_text(MINI)
    recipe = with_titles(read_eval_recipe(bench.out / "mini.toml"), bench.rivals())
    found: list[Evaluation] = []

    def compare(models: dict[str, str], folder: Path) -> None:
        found.append(evaluate(recipe, models, folder, scorer, data=data))

    told: list[str] = []

    def killed(text: str) -> None:
        told.append(text)
        if sum("training" in line for line in told) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(bench, compare, None, killed)
    assert not found
    made = [p for p in bench.out.rglob("*/adapter/model.safetensors") if p.parents[2].name != "base"]
    before = {p: p.stat().st_mtime_ns for p in made}
    assert len(before) == 4  # two starts, two rivals
    told.clear()
    run_bench(bench, compare, None, told.append)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert not [line for line in told if "training deadiff" in line]
    told.clear()
    run_bench(bench, compare, None, told.append)
    assert told == []  # nothing left to train
    return found


def test_all_rivals_are_trained_compared_and_resumed(done: list[Evaluation], bench: Bench) -> None:
    first, again = done
    names = [path.stem for path in (RECIPES / "rivals").glob("*.toml")]
    assert {m.name for m in first.methods} == {*names, "instantstyle", "words", "plain", "reference", "random", "true"}
    assert len(names) == 15 and first.methods[0].name == "deadiff"
    for method in first.methods:
        for column in ("style", "text"):
            before, after = (found.scores[method.name].columns[column] for found in done)
            assert np.array_equal(before, after, equal_nan=method.kind == "true")
    pages = [path.read_text() for path in write_report(again)]
    for title in ("IP-Adapter", "without STRE", "coarse set: all layers", "text only"):
        assert all(title in page for page in pages)
    assert "what it takes away matters" in pages[1]
    kinds = [reference.kind for reference in first.references]
    assert kinds.count("seen style") == 1 and kinds.count("unseen style") == 2
    assert not {r.subject for r in first.references} & set(first.recipe.prompts.values())


def test_the_true_picture_shows_the_prompts_subject_in_the_references_style(done: list[Evaluation], data: Path) -> None:
    """Pixel for pixel a picture of the data with that subject and style; where the data has none, the scores are empty."""
    from deadiff.data.store import PARTS, decode_png, read_rows, shards

    first = done[0]
    held = [row for shard in shards(data, PARTS) for row in read_rows(shard, ["image", "subject", "set", "rendition"])]
    references = {reference.name: reference for reference in first.references}
    scores = first.scores["true"].chosen(first.main_cells)
    met = 0
    for i, cell in enumerate(scores.cells):
        style, subject = references[cell.reference].style, first.recipe.prompts[cell.prompt]
        fitting = [
            r for r in held if r["subject"] == subject and style in (r["rendition"], r["set"] * (r["rendition"] == "plain"))
        ]
        assert bool(fitting) == bool(scores.pictures[i]) == (not np.isnan(scores.columns["text"][i]))
        if fitting:
            pixels = fakes.decoded((first.out / scores.pictures[i]).read_bytes())
            assert any(np.array_equal(pixels, decode_png(row["image"]["bytes"])) for row in fitting)
            met += 1
    assert met > 0


def test_kid_is_smallest_for_the_true_pictures(done: list[Evaluation]) -> None:
    class Colours:
        name = "mean colours"

        def pictures(self, pictures: np.ndarray) -> np.ndarray:
            return pictures.reshape(len(pictures), -1, 3).mean(1) / 255

    distances = kid_to_true(done[0], Colours())
    assert distances.keys() == {method.name for method in done[0].methods}
    assert min(distances, key=lambda name: distances[name][0]) == "true"
    assert "KID" in write_report(done[0], Colours())[1].read_text()
    assert "KID" not in write_report(done[0])[1].read_text()


def test_a_coarse_set_of_all_layers_draws_what_no_reference_changes(done: list[Evaluation]) -> None:
    """Style tokens that no layer reads: only the idle content tokens are left, the same for every reference."""
    scores = done[0].scores["coarse-all"]
    by_prompt: dict[str, set[bytes]] = {}
    for cell, picture in zip(scores.cells, scores.pictures, strict=True):
        by_prompt.setdefault(cell.prompt, set()).add(fakes.decoded((done[0].out / picture).read_bytes()).tobytes())
    assert all(len(drawn) == 1 for drawn in by_prompt.values())
    other = done[0].scores["coarse-none"]
    drawn = [fakes.decoded((done[0].out / p).read_bytes()).tobytes() for p in other.pictures]
    assert len(set(drawn)) == len(drawn)


def test_a_larger_budget_goes_on_from_the_smaller_one(done: list[Evaluation], bench: Bench) -> None:
    from dataclasses import replace

    recipe = bench.rivals()["no-sere"]
    run = bench.out / "no-sere"
    assert finished(run, recipe, 64) and finished(run, recipe, 32) and not finished(run, recipe, 96)
    more = replace(bench, budget=96, only=("no-sere",))
    lines: list[dict] = []
    train_rivals(more, report=lines.append)
    assert finished(run, recipe, 96)
    checkpoints = sorted(path.name for path in (run / "adapter").glob("checkpoint-*.pt"))
    assert checkpoints[-1] == "checkpoint-00000003.pt"


def test_rivals_share_budget_loop_and_data() -> None:
    """One [loop] for all: what differs is in [model] alone."""
    ours = tomllib.loads((RECIPES / "icons" / "adapter.toml").read_text())
    for path in (RECIPES / "rivals").glob("*.toml"):
        table = tomllib.loads(path.read_text())
        assert table["loop"] == ours["loop"] and table["plain_share"] == ours["plain_share"], path.stem
        assert table["title"]
        stages.build(AdapterTrainingConfig, table["model"], path.stem)
    assert tomllib.loads((RECIPES / "rivals" / "deadiff.toml").read_text())["model"] == ours["model"]


def test_the_evaluation_recipes_can_be_read_and_name_rivals_that_exist() -> None:
    known = {path.stem for path in (RECIPES / "rivals").glob("*.toml")} | {"words", "instantstyle"}
    for name in ("paper", "short"):
        recipe = read_eval_recipe(RECIPES / "eval" / f"{name}.toml")
        assert {*recipe.claims.rivals, *recipe.claims.ablations, recipe.claims.ours} == known
    paper = read_eval_recipe(RECIPES / "eval" / "paper.toml")
    assert (paper.references.seen + paper.references.unseen, len(paper.prompts), paper.seeds) == (32, 35, 4)  # the paper's shape
    read_eval_recipe(RECIPES / "eval" / "examples.toml")


def test_the_whole_bench_is_one_command(
    done: list[Evaluation], bench: Bench, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make paper` runs, on trainings and pictures that are there already: it trains and draws nothing."""
    from deadiff.apps.cli import run
    from deadiff.evaluation import judges

    known = {r.subject for r in done[0].references} | set(done[0].recipe.prompts.values())
    monkeypatch.setattr(judges, "load_judges", lambda folder=None: Judges(sorted(known)))
    drawn = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*.png")}
    threads = torch.get_num_threads()
    given = {"--data": data, "--out": bench.out, "--recipes": RECIPES, "--evaluation": bench.out / "mini.toml", "--budget": 64}
    arguments = [str(part) for pair in given.items() for part in pair]
    some = ["--start-budget", "128", "--skip-speed", "--only", "deadiff", "--only", "ip-adapter"]
    monkeypatch.setattr(sys, "argv", ["deadiff", "eval", "paper", *arguments, *some])
    assert run(sys.argv[1:]) == 0
    torch.set_num_threads(threads)
    assert capsys.readouterr().out.split() == [str(bench.out / "evaluation" / f"report.{kind}") for kind in ("html", "md")]
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*.png")} == drawn
    page = (bench.out / "evaluation" / "report.md").read_text()
    assert "IP-Adapter's way" in page and "without STRE" not in page and "deadiff eval paper" in page


# ---- what the switches do ----


def layers(first: int, last: int) -> set[str]:
    return set(list(ROUTES["icons"])[first : last + 1])


def test_coarse_sets_are_counted_in_execution_order() -> None:
    content = {name: {p for p, role in table.items() if role == "content"} for name, table in ABLATIONS.items()}
    assert content["icons-content-0-3"] == layers(0, 3) and content["icons-content-9-15"] == layers(9, 15)
    assert content["icons-content"] == layers(0, 15) and not content["icons-style"]
    assert {p for p, role in ROUTES["icons"].items() if role == "content"} == layers(4, 8)
    assert set(ABLATIONS["icons-both"].values()) == {"both"}
    assert all(list(table) == list(ROUTES["icons"]) for table in ABLATIONS.values())


def test_unpaired_references_are_the_targets_themselves(data: Path) -> None:
    art = IconArt(data)
    art.latents = np.arange(len(art.rows), dtype=np.float16)[:, None, None, None]
    for objective in (Objective.STRE, Objective.SERE):
        pictures, latents, _ = art.for_adapter(objective, 3, 8, paired=False)
        assert all(np.array_equal(p, art.pictures[int(z)]) for p, z in zip(pictures, latents.ravel(), strict=True))
        pictures, latents, _ = art.for_adapter(objective, 3, 8)
        assert not any(np.array_equal(p, art.pictures[int(z)]) for p, z in zip(pictures, latents.ravel(), strict=True))


def test_tokens_read_as_words_never_learn_keys_of_their_own(done: list[Evaluation], bench: Bench) -> None:
    """T2I-Adapter's way: after training its image K/V still are the text's; everyone else's have moved."""
    for name, moved in (("t2i-adapter", False), ("ip-adapter", True), ("deadiff", True)):
        stylizer = open_model(str(bench.out / name))
        assert stylizer.adapter.config.look == LookConfig(), "what is compared is what the tokens bring"
        stylizer.adapter.eject()
        from deadiff.routes import match_routes

        same = [
            torch.equal(stylizer.adapter.kv(path).to_k.weight, layer.to_k.weight.bfloat16().float())  # trained in bf16
            for path, layer in match_routes(stylizer.pipe.unet, stylizer.adapter.config.route_table).items()
        ]
        assert all(same) is not moved, name


def test_instantstyle_is_ip_adapter_with_its_coarse_layers_silent(done: list[Evaluation], bench: Bench) -> None:
    """With a softmax of its own, idle tokens add exactly nothing: a silenced layer is the plain base's."""
    from deadiff.routes import cross_attention_layers

    stylizer = open_model(str(bench.out / "ip-adapter"))
    assert stylizer.adapter.config.attention == "separate"
    stylizer = routed(stylizer, "icons")
    tokens = stylizer.adapter.encode(style=tiny.picture(1))
    text = torch.randn(1, stylizer.adapter.config.text_length, stylizer.adapter.config.token_dim)
    with_style = stylizer.adapter.embed(text, *tokens)
    for path, layer in cross_attention_layers(stylizer.pipe.unet).items():
        hidden = torch.randn(1, 4, layer.to_q.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            silent = torch.equal(layer(hidden, text), layer(hidden, with_style))
        assert silent is (path in layers(4, 8)), path


def test_switches_that_do_not_exist_are_refused(bench: Bench, shipped: Path) -> None:
    for given, says in (
        ({"objectives": ()}, "objectives: empty"),
        ({"objectives": ("stew",)}, "'stew'"),
        ({"adapter": {"num_tokens": 4}}, "has 'num_tokens'"),
        ({"text_drop": 1.0}, "text_drop"),
    ):
        with pytest.raises(ConfigError, match=says):
            AdapterTrainingConfig(**given)
    adapter = tiny.tiny_adapter(tiny.tiny_pipeline("icons").unet, "icons")
    assert switched(adapter, {}) is adapter
    with pytest.raises(ConfigError, match="no route table is called 'nowhere'"):
        switched(adapter, {"routes": "nowhere"})
    with pytest.raises(ConfigError, match="no rival 'nobody'"):
        Bench(data=shipped, out=shipped, recipes=RECIPES, only=("nobody",)).rivals()
    with pytest.raises(ConfigError, match="holds no recipes"):
        Bench(data=shipped, out=shipped, recipes=shipped).rivals()


# ---- a finished model as a start ----


def test_an_unpacked_model_is_the_model(shipped: Path, data: Path, tmp_path: Path) -> None:
    art = IconArt(data)
    run = unpack(tmp_path / "base", art, shipped)
    text_encoder, tokenizer = stages._read(run)
    pipe, adapter = tiny_again(shipped)
    ids = tokenizer(["a red heart"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(text_encoder(ids).last_hidden_state, pipe.text_encoder(ids).last_hidden_state)
    from transformers import CLIPVisionModel

    eye = CLIPVisionModel.from_pretrained(run / "eye" / "image_encoder")
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        seen = eye(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(seen, adapter.see(pixels))  # what an adapter built from this eye sees
    assert len(np.load(run / "autoencoder" / "latents.npy")) == len(art.rows)
    stamp = (run / "autoencoder" / "latents.npy").stat().st_mtime_ns
    unpack(run, art, shipped)
    assert (run / "autoencoder" / "latents.npy").stat().st_mtime_ns == stamp  # once is enough


def tiny_again(folder: Path):
    from deadiff.embedded import load_embedded

    return load_embedded(folder)


def test_a_run_without_a_base_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    recipe = stages.read_recipe(RECIPES / "rivals" / "deadiff.toml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="train the autoencoder stage"):
        stages.run_stage(recipe, data, tmp_path / "run", start=tmp_path / "empty", samples=32)


def test_training_gives_the_threads_back(bench: Bench, done: list[Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(rivals, "run_stage", lambda *a, **k: os.fspath(a[2]))
    from dataclasses import replace

    train_rivals(replace(bench, budget=10_000, only=("no-stre",)))
    assert torch.get_num_threads() == before
