"""Adapter training on real bases: what is trained, exact resume, caches, run folders that survive a kill."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scale_training as scale
import small_models as small
import tiny
from deadiff.adapter import DEADiffAdapter
from deadiff.apps.cli import run as run_command
from deadiff.errors import CheckpointError, ConfigError, DataError
from deadiff.routes import ROUTES
from deadiff.toml_tables import read_table
from deadiff.training.accelerated import Training, start_adapter
from deadiff.training.adapter import AdapterTrainingConfig
from deadiff.training.adapter_recipe import parse_recipe
from deadiff.training.adapter_step import AdapterStep
from deadiff.training.average import Average
from deadiff.training.bases import load_base
from deadiff.training.features import Features
from deadiff.training.initialise import blip_diffusion_name, select_trained, start_from_blip_diffusion
from deadiff.training.objectives import Live, Objective, diffusion_loss
from deadiff.training.plan import estimate
from deadiff.training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
EVERYTHING = Live(*torch.ones(3, 2, dtype=torch.bool))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_model_folder(tmp_path_factory.mktemp("models") / "sd15", "sd15")


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eye")
    small.vision().save_pretrained(folder)
    return folder


# ---- what is trained ----


@pytest.mark.parametrize("layout", ["sd15", "sdxl", "icons"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_exactly_what_is_trained(
    layout: str, checkpointing: bool, model: Path, eye: Path, tmp_path: Path
) -> None:
    """Image K/V of every layer (16, or SDXL's 70), both Q-Formers with queries and word, projections, ln_vision; nothing else."""
    if layout == "sdxl":
        base, recipe = scale.sdxl_base(), scale.sdxl_recipe(eye)
    else:
        folder = model if layout == "sd15" else tiny.tiny_model_folder(tmp_path / "icons", "icons")
        recipe = scale.recipe(folder, layout)
        base = load_base(recipe.base, torch.float32)
    adapter = start_adapter(recipe, base)
    if checkpointing:
        base.unet.enable_gradient_checkpointing()
    trained = select_trained(adapter)
    assert len(adapter.image_kv) == (70 if layout == "sdxl" else 16)
    features = Features(base, adapter, scale.FakePairs(128 if layout == "icons" else 64))
    step = AdapterStep(adapter, base, base.read_text([""]))
    step(features.sample(Objective.STRE, 0, 2), EVERYTHING, torch.Generator().manual_seed(0)).backward()
    reached = {name for name, p in adapter.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert reached == set(trained)
    frozen = [*base.unet.parameters(), *base.vae.parameters(), *adapter.vision.parameters()]
    frozen += [p for _, encoder in base.readers for p in encoder.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    for part in ("image_kv", "query_tokens", "projection.dense1", "ln_vision", "crossattention", "word_embeddings"):
        assert any(part in name for name in trained)
    assert not any("ln_vision" in name for name in select_trained(adapter, train_ln_vision=False))


def test_an_idle_role_gets_no_gradient_and_changes_nothing(model: Path) -> None:
    """Both readers always run; the one that is not live takes part with a factor of zero, as if it were left out."""
    recipe = scale.recipe(model)
    base = load_base(recipe.base, torch.float32)
    adapter = start_adapter(recipe, base).eval()
    select_trained(adapter)
    step = AdapterStep(adapter, base, base.read_text([""]))
    sample = Features(base, adapter, scale.FakePairs()).sample(Objective.STRE, 0, 2)
    live = Live(torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool))

    def loss() -> torch.Tensor:
        return step(sample, live, torch.Generator().manual_seed(0))

    before = loss()
    before.backward()
    idle = [p for name, p in adapter.named_parameters() if name.startswith("extractors.content.") and p.grad is not None]
    assert idle and all((p.grad == 0).all() for p in idle)
    with torch.no_grad():
        adapter.extractors["content"].query_tokens.add_(1.0)
    assert torch.equal(loss(), before)


def test_the_image_keys_and_values_start_as_the_texts(model: Path) -> None:
    recipe = scale.recipe(model)
    base = load_base(recipe.base, torch.float32)
    adapter = start_adapter(recipe, base)
    layer = base.unet.get_submodule("up_blocks.1.attentions.2.transformer_blocks.0.attn2")
    assert torch.equal(adapter.kv("up_blocks.1.attentions.2").to_k.weight, layer.to_k.weight)
    assert adapter.kv("up_blocks.1.attentions.2").to_k.weight is not layer.to_k.weight


def blip_diffusion_weights(adapter: DEADiffAdapter) -> dict[str, torch.Tensor]:
    """A Q-Former as BLIP-Diffusion's pipeline keeps it: the names of diffusers' Blip2QFormerModel, with its own vision tower."""
    names = {}
    for ours, tensor in adapter.extractors["style"].state_dict().items():
        theirs = ours.replace("qformer.embeddings.layernorm.", "embeddings.LayerNorm.").removeprefix("qformer.")
        theirs = theirs.replace("projection.norm.", "proj_layer.LayerNorm.").replace("projection.", "proj_layer.")
        names[theirs.replace("ln_vision.", "visual_encoder.post_layernorm.")] = tensor
    weights = {name: small.noise(*tensor.shape, seed=i) for i, (name, tensor) in enumerate(names.items())}
    unread = {
        "embeddings.position_ids": torch.arange(512)[None],
        "visual_encoder.embeddings.class_embedding": torch.zeros(1, 1, 16),
    }
    return {**weights, **unread, "visual_encoder.encoder.layers.0.self_attn.qkv.weight": torch.zeros(48, 16)}


@pytest.mark.parametrize("form", ["qformer/model.safetensors", "pytorch_model.bin"])
def test_both_q_formers_start_from_blip_diffusions(form: str, model: Path, tmp_path: Path) -> None:
    recipe = scale.recipe(model)
    adapter = start_adapter(recipe, load_base(recipe.base, torch.float32))
    weights = blip_diffusion_weights(adapter)
    assert "encoder.layer.0.crossattention.attention.query.weight" in weights  # as the published file has it
    assert "encoder.layer.1.intermediate_query.dense.weight" in weights and "proj_layer.dense1.bias" in weights
    file = tmp_path / form
    file.parent.mkdir(exist_ok=True)
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    start_from_blip_diffusion(adapter, tmp_path)
    for role in ("style", "content"):
        reader = adapter.extractors[role]
        assert torch.equal(reader.query_tokens, weights["query_tokens"])
        assert torch.equal(reader.ln_vision.weight, weights["visual_encoder.post_layernorm.weight"])
        assert torch.equal(reader.projection.norm.bias, weights["proj_layer.LayerNorm.bias"])
        assert torch.equal(reader.qformer.embeddings.layernorm.weight, weights["embeddings.LayerNorm.weight"])


def test_another_models_q_former_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    recipe = scale.recipe(model)
    adapter = start_adapter(recipe, load_base(recipe.base, torch.float32))
    weights = blip_diffusion_weights(adapter)
    assert blip_diffusion_name("encoder.layer.0.output.dense.bias") == "qformer.encoder.layer.0.output.dense.bias"
    for change, says in (
        (lambda w: w.pop("query_tokens"), "missing"),
        (lambda w: w.update({"itm_head.weight": torch.zeros(1)}), "itm_head"),
        (lambda w: w.update({"query_tokens": torch.zeros(1, 3, 32)}), "shape"),
    ):
        changed = dict(weights)
        change(changed)
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=says):
            start_from_blip_diffusion(adapter, tmp_path)
    with pytest.raises(CheckpointError, match="no Q-Former in"):
        start_from_blip_diffusion(adapter, tmp_path / "nowhere")


def test_the_switches_of_the_ablations_reach_this_loop_too(model: Path, tmp_path: Path) -> None:
    """Other routes, separate softmax, no word, reconstructive pairs, frozen image K/V: AdapterTrainingConfig's, as for icons."""
    recipe = scale.recipe(model, steps=1)
    routes = {path: "both" for path in ROUTES["sd15"]}
    changes = {"routes": routes, "attention": "separate", "instructions": {"style": [], "content": []}}
    training_config = AdapterTrainingConfig(paired=False, train_image_kv=False, adapter=changes)
    training = Training(replace(recipe, model=training_config), scale.FakePairs(), tmp_path)
    assert training.adapter.config.attention == "separate" and set(training.adapter.config.route_table.values()) == {"both"}
    assert not any(name.startswith("image_kv") for name in training.trained)
    assert not any("word_embeddings" in name for name in training.trained)
    sample = training.features.sample(Objective.STRE, 0, 2)
    _, targets, _ = training.source.numbers(Objective.STRE, 0, 2)
    assert torch.equal(sample.vision, training.features.vision(targets))
    training.run()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in training.trained.values())
    reached = {name for name, p in training.trained.items() if bool(training.optimizer.state[p]["exp_avg_sq"].abs().sum() > 0)}
    assert reached == set(training.trained)


# ---- exactness ----


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    run = RunFolder(folder)
    found = run.load()
    assert found is not None
    curve = [{k: v for k, v in line.items() if k != "samples_per_second"} for line in run.curve()]
    return found[1], curve


def test_a_run_in_three_sittings_equals_an_unbroken_one_bit_for_bit(model: Path, tmp_path: Path) -> None:
    """Weights, average, optimiser, curve and validation; one sitting with caches, the others without knowing of it."""

    def run(name: str, *sittings: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
        for steps in sittings:
            torch.manual_seed(steps)  # whatever the global generator holds must not matter
            recipe = scale.recipe(model, steps=steps, log_steps=2, validate_steps=2)
            Training(recipe, scale.FakePairs(), tmp_path / name, cache=tmp_path / "cache").run()
        return trained(tmp_path / name)

    (whole, curve), (broken, its_curve) = run("whole", 5), run("broken", 1, 4, 5)
    assert whole.keys() == broken.keys() and len([k for k in whole if k.startswith("optimizer/exp_avg_sq/")]) > 50
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert curve == its_curve and [line["step"] for line in curve] == [2, 2, 4, 4]
    assert "validation_stre" in curve[1] and "stre" in curve[0]


def test_the_average_follows_the_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = Average({"w": weight})
    with torch.no_grad():
        weight.add_(1.0)
    average.update(0.75)
    assert torch.equal(average.values["w"], torch.full((2,), 0.25))
    with average.shown():
        assert torch.equal(weight, torch.full((2,), 0.25))
    assert torch.equal(weight, torch.ones(2))


def test_a_killed_training_leaves_a_readable_folder_and_loses_no_more_than_an_interval(model: Path, tmp_path: Path) -> None:
    """SIGKILL at twenty random moments; then files that cannot grow, as on a full disk."""
    script = Path(__file__).parent / "killed_training.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, str(script), str(model), str(tmp_path / "run"), "20"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["kills"]["steps"]) == 20 and told["kills"]["steps"] == sorted(told["kills"]["steps"])
    assert told["kills"]["steps"][-1] > 0
    disk = told["disk"]
    assert disk["code"] == 7 and disk["before"] == disk["after"] and not disk["left"]
    assert disk["said"].startswith("DataError: no room for the checkpoint of step") and "\n" not in disk["said"]


def test_another_recipe_or_other_data_cannot_go_on_with_a_run(model: Path, tmp_path: Path) -> None:
    Training(scale.recipe(model, steps=1), scale.FakePairs(), tmp_path).run()
    with pytest.raises(DataError, match="another optimisation.*new run folder"):
        Training(scale.recipe(model, steps=2, learning_rate=0.5), scale.FakePairs(), tmp_path).run()
    others = scale.FakePairs()
    others.fingerprint = "1" * 64
    with pytest.raises(DataError, match="another data"):
        Training(scale.recipe(model, steps=2), others, tmp_path).run()
    path = RunFolder(tmp_path).latest()
    assert path is not None
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged.*delete it and run again"):
        Training(scale.recipe(model, steps=2), scale.FakePairs(), tmp_path).run()


def test_two_trainings_cannot_share_a_run_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock(), pytest.raises(DataError, match="another training is running"), RunFolder(tmp_path).lock():
        pass
    with RunFolder(tmp_path).lock():  # free again
        pass


def test_half_a_line_and_lines_after_the_checkpoint_leave_the_curve(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "curve.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    folder.cut_curve(2)
    assert folder.curve() == [{"step": 1}, {"step": 2}]


# ---- a whole run ----


def test_a_run_leaves_all_that_is_needed_to_repeat_it(model: Path, tmp_path: Path) -> None:
    said: list[dict] = []
    loop = {"steps": 2, "validate_steps": 2, "precision": "fp32", "trackers": ["tensorboard"], "gradient_checkpointing": True}
    out = Training(scale.recipe(model, **loop), scale.FakePairs(), tmp_path / "run", report=said.append).run()
    adapter = DEADiffAdapter.from_pretrained(out)
    assert "2 steps, 8 samples" in adapter.config.provenance["training"]
    state, _ = trained(tmp_path / "run")
    name = "extractors.style.query_tokens"
    assert torch.equal(adapter.state_dict()[name], state[f"average/{name}"])
    assert not torch.equal(state[f"average/{name}"], state[f"weights/{name}"])
    again = parse_recipe(read_table(tmp_path / "run" / "recipe.toml"), "again")
    assert again.to_dict() == scale.recipe(model, **loop).to_dict()
    note = json.loads((tmp_path / "run" / "run.json").read_text())
    assert note["data"] == "0" * 64 and note["versions"]["torch"] and len(note["base"]) == 64 and note["seed"] == 0
    assert {"validation_stre", "validation_sere", "validation_reconstruction"} < said[-1].keys()
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))


def test_a_preview_shows_references_and_what_is_drawn(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deadiff.training.preview.STEPS", 1)
    training = Training(scale.recipe(model, steps=1), scale.FakePairs(), tmp_path)
    before = {name: p.clone() for name, p in training.trained.items()}
    training.preview()
    assert (tmp_path / "preview-00000000.png").stat().st_size > 5000
    assert all(torch.equal(before[name], p) for name, p in training.trained.items())


def test_sdxl_trains_and_resumes(eye: Path, tmp_path: Path) -> None:
    """The reduced U-Net with its 70 layers, pooled text and sizes; from caches."""
    for steps in (1, 2):
        recipe = scale.sdxl_recipe(eye, steps=steps, global_batch=2)
        training = Training(recipe, scale.FakePairs(), tmp_path / "run", base=scale.sdxl_base(), cache=tmp_path / "cache")
        training.run()
    curve = RunFolder(tmp_path / "run").curve()
    assert [line["step"] for line in curve] == [1, 2] and all(np.isfinite(line["loss"]) for line in curve)
    text = training.features.caches["text"]
    assert {name: tuple(x.shape) for name, x in text[list(text._places)[:1]].items()} == {
        "text": (1, small.TEXT, small.WIDTH),
        "pooled": (1, 16),
    }


# ---- caches ----


@pytest.fixture
def cached(model: Path, tmp_path: Path) -> Features:
    recipe = scale.recipe(model)
    base = load_base(recipe.base, torch.float32)
    features = Features(base, start_adapter(recipe, base), scale.FakePairs())
    features.open_caches(tmp_path / "cache")
    features.fill([features.source], batch_size=4)
    return features


def reopened(features: Features, folder: Path) -> Features:
    again = Features(features.base, features.adapter, features.source)
    again.open_caches(folder)
    return again


def test_cached_features_are_what_the_encoders_say_and_cost_no_picture(cached: Features, tmp_path: Path) -> None:
    fresh = Features(cached.base, cached.adapter, cached.source)
    for objective in Objective:
        expected = fresh.sample(objective, 5, 3)
        seen = cached.source.seen
        got = reopened(cached, tmp_path / "cache").sample(objective, 5, 3)
        assert cached.source.seen == seen  # no picture was opened
        for a, b in zip(expected[1:4], got[1:4], strict=True):
            assert b.dtype == torch.float16 and a.shape == b.shape
            assert (a - b.float()).abs().max() <= 2e-3 * a.abs().max().clamp(min=1)  # fp16 keeps 11 bits


def test_a_cache_of_another_encoder_or_preprocessing_is_stale(cached: Features, tmp_path: Path) -> None:
    with torch.no_grad():
        next(cached.adapter.vision.parameters()).add_(1.0)
    with pytest.raises(DataError, match="stale: its encoder is .*--cache") as caught:
        reopened(cached, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    cached.base.resolution = 32
    with pytest.raises(DataError, match="stale: its preprocessing"):
        reopened(cached, tmp_path / "cache")


def test_a_changed_picture_is_computed_anew_and_alone(cached: Features, tmp_path: Path) -> None:
    cached.source.pictures[2] = 255 - cached.source.pictures[2]
    again = reopened(cached, tmp_path / "cache")
    assert len(again.caches["vision"].missing([again.source.sha256(n) for n in range(scale.PICTURES)])) == 1
    with pytest.raises(DataError, match="lacks .*the data has changed"):
        again.vision([2])
    told = []
    again.fill([again.source], 4, tick=lambda kind, done, total: told.append((kind, done, total)))
    assert told == [("vision", 1, 1), ("latents", 1, 1)]
    assert (again.vision([2]).float() - Features(again.base, again.adapter, again.source).vision([2])).abs().max() < 0.05


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_shard_is_one_clear_line(damage: str, cached: Features, tmp_path: Path) -> None:
    shard = next((tmp_path / "cache" / "vision").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-40] ^= 0x40
    shard.write_bytes(data[:-64] if damage == "cut" else data)
    with pytest.raises(DataError, match=f"'{shard}' is damaged.*delete it") as caught:
        reopened(cached, tmp_path / "cache").vision(list(range(scale.PICTURES)))
    assert "\n" not in str(caught.value)
    shard.unlink()
    again = reopened(cached, tmp_path / "cache")
    again.fill([again.source], 4)
    assert torch.equal(again.vision([0]), cached.vision([0]))


def test_several_processes_share_the_filling(cached: Features, tmp_path: Path) -> None:
    ranks = []
    for _ in range(2):
        part = Features(cached.base, cached.adapter, cached.source)
        part.open_caches(tmp_path / "shared")
        ranks.append(part)
    for rank, part in enumerate(ranks):  # both opened before either wrote
        part.fill([part.source], 2, rank, 2)
    with pytest.raises(DataError, match="lacks 3 of 6"):
        Features.check(type("Lonely", (), {"caches": {"vision": _copy(ranks[0], tmp_path)}})(), [cached.source])
    ranks[0].check([cached.source])
    assert torch.equal(ranks[0].vision(range(6)), cached.vision(range(6)))


def _copy(features: Features, tmp_path: Path):
    """The vision cache without what the other process wrote."""
    cache = features.caches["vision"]
    own = {place[0] for place in cache._places.values()}
    for shard in cache.folder.glob("*.safetensors"):
        target = tmp_path / "own" / shard.name
        target.parent.mkdir(exist_ok=True)
        if shard in own:
            save_file(load_file(shard), target, metadata={"rows": json.dumps(_rows(cache, shard))})
    return type(cache)(tmp_path / "own", {k: v for k, v in cache.about.items() if k != "format"})


def _rows(cache, shard: Path) -> list:
    rows = sorted((row, key, checksum) for key, (where, row, checksum) in cache._places.items() if where == shard)
    return [[key, checksum] for _, key, checksum in rows]


# ---- recipes and losses ----


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.toml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_for_a_real_base_can_be_read(path: Path) -> None:
    table = read_table(path)
    if table.get("stage") == "deadiff":
        recipe = parse_recipe(table, str(path))
        assert recipe.loop.draws >= 1
        assert parse_recipe({k: v for k, v in recipe.to_dict().items()}, "again").to_dict() == recipe.to_dict()


def test_the_papers_recipe_is_the_papers() -> None:
    loop = parse_recipe(read_table(ROOT / "recipes/paper/sd15.toml"), "paper").loop
    assert (loop.learning_rate, loop.warmup_steps, loop.steps, loop.loss_weighting) == (1e-4, 10_000, 100_000, "plain")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loop.colour": "3"}, "unknown key 'colour'"),
        ({"loop.steps": "many"}, "steps = 'many' is str; expected int"),
        ({"loop.global_batch": "3"}, "must be a multiple of batch_size = 2"),
        ({"loop.precision": "fp8"}, "expected one of bf16, fp32"),
        ({"loop.loss_weighting": "best"}, "expected one of plain, min_snr"),
        ({"base.layout": "sd3"}, "expected one of sd15"),
        ({"base.resolution": "500"}, "multiple of 8"),
        ({"model.objectives": '["stew"]'}, "'stew'; expected some of stre"),
        ({"start.adapter": "somewhere"}, r"leave out \[start\] qformer and \[adapter\]"),
        ({"colour": "3"}, "unknown key 'colour'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_clear_line(changes: dict[str, str], says: str) -> None:
    table = {"loop": dict(scale.LOOP), "base": {"layout": "sd15"}, "adapter": dict(scale.SMALL_ADAPTER)}
    with pytest.raises(ConfigError, match=says) as caught:
        parse_recipe(table, "recipe 'r.toml'", changes)
    assert "\n" not in str(caught.value)


def test_draws_must_be_shared_out_evenly() -> None:
    loop = parse_recipe({"loop": dict(scale.LOOP)}, "test").loop
    assert (loop.accumulated(1), loop.accumulated(2)) == (2, 1)
    with pytest.raises(ConfigError, match="not a multiple of the 3 processes"):
        loop.accumulated(3)


def test_loss_weights_by_name() -> None:
    from diffusers import DDPMScheduler

    latents, noise, predicted = small.noise(3, 4, 8, 8), small.noise(3, 4, 8, 8, seed=1), small.noise(3, 4, 8, 8, seed=2)
    timesteps = torch.tensor([5, 500, 995])
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    each = ((predicted - noise) ** 2).mean((1, 2, 3))
    signal = schedule.alphas_cumprod[timesteps]
    ratio = signal / (1 - signal)
    assert torch.allclose(diffusion_loss(predicted, latents, noise, timesteps, schedule), each.mean())
    expected = (each * ratio.clamp(max=5) / ratio).mean()
    assert torch.allclose(diffusion_loss(predicted, latents, noise, timesteps, schedule, "min_snr"), expected)
    assert expected < each.mean()


# ---- the command and the plan ----


def test_a_dry_run_takes_a_step_and_says_what_the_training_costs(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", str(ROOT / "recipes/icons/deadiff.toml"), "--dry-run", "--set", "loop.steps=123456"]) == 0
    said = capfd.readouterr()
    assert "first step taken: loss" in said.err and "16 layers routed" in said.err
    for part in ("123,456 steps", "trained  ", "memory  ", "arithmetic", "A100 hours"):
        assert part in said.out


def test_the_simulated_step_counts_what_lives_and_what_is_recomputed() -> None:
    recipe = parse_recipe(read_table(ROOT / "recipes/icons/deadiff.toml"), "icons")
    plain, saving = (estimate(replace(recipe, loop=replace(recipe.loop, gradient_checkpointing=on))) for on in (False, True))
    assert saving.operations > 1.2 * plain.operations  # the forward pass runs twice
    assert saving.activation_bytes < plain.activation_bytes
    assert plain.state_bytes == 16 * plain.trained and plain.activation_bytes > 4 * plain.trained


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipes/icons/base.toml", "--dry-run"], "--dry-run is for recipes of stage"),
        (["recipes/sd15/adapter.toml", "--set", "loop.steps"], "expected NAME=VALUE"),
        (["recipes/sd15/adapter.toml", "--set", "loop.stps=3"], "unknown key 'stps'"),
        (["recipes/sd15/adapter.toml", "--data", "/nowhere"], "'/nowhere'"),
        (["recipes/none.toml"], "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, *options = arguments
    assert run_command(["train", str(ROOT / path), *options]) == 2
    said = capfd.readouterr().err.strip()
    assert says in said and said.count("\n") == 0 and said.startswith("error: ")
