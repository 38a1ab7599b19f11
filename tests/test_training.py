"""The whole making of a model in miniature: 24 subjects of art, nine stages of a few steps each, packed and drawn with."""

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deadiff.adapter import DEADiffAdapter
from deadiff.canvas import load_unet
from deadiff.data.build import BuildConfig, build
from deadiff.data.splits import house_set
from deadiff.embedded import load_embedded
from deadiff.errors import CheckpointError, ConfigError, DataError
from deadiff.extractor import Places
from deadiff.sketch import latents_of, load_text_tower, patches_of
from deadiff.training import redrawn, stages
from deadiff.training.base import BaseConfig, even_timesteps
from deadiff.training.icon_art import IconArt
from deadiff.training.loop import LoopConfig, latest_checkpoint, train
from deadiff.training.objectives import Objective, keep_text, live_parts
from deadiff.training.reader import tokenize
from deadiff.training.shared_words import word_owners

ART = Path(__file__).parent / "fixtures" / "art"
LOOP = "[loop]\nsteps = 6\nbatch_size = 4\nworkers = 2\nlearning_rate = 1e-3\nwarmup_steps = 2\nlog_steps = 2\n"
RECIPES = {
    "autoencoder": "[model]\nblock_out_channels = [3, 12, 16, 16, 16]\nlatent_channels = 8\nfitted_on = 256\n",
    "reader": "[model]\nvocab_size = 700\ntext_length = 16\ntext_width = 64\ntext_layers = 1\nword_weight = 0.0\n",
    "sketch": "[model]\nsketch_hidden = 32\nplain_captions = 2\n",
    "eye": "[model]\nvision_width = 64\nvision_layers = 2\npicture_size = 64\npatch_size = 32\nprojection_dim = 32\n",
    "base": "[model]\nblock_out_channels = [32, 32, 32]\nhead_dim = 16\n",
    "decoder": "[model]\npictures = 12\n",
    "alignment": "",
    "adapter": "",
    "content": "",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build(folder, BuildConfig(size=64, renditions=2), art=ART)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for stage in stages.STAGES:
        stages.run_stage(recipe(folder, stage), data, folder)
    return folder


def recipe(folder: Path, stage: str, loop: str = LOOP) -> stages.Recipe:
    path = folder / f"{stage}.toml"
    path.write_text(f'stage = "{stage}"\n{loop}{RECIPES[stage]}')
    return stages.read_recipe(path)


def test_nine_stages_make_a_model_that_draws(run: Path, tmp_path: Path) -> None:
    size = stages.pack(run, tmp_path / "model", stages.provenance_of(run))
    assert 0 < size < 3e6
    assert not any(str(run) in path.read_text() for path in (tmp_path / "model").rglob("*.json"))  # no place on this machine
    pipe, adapter = load_embedded(tmp_path / "model")
    adapter.inject(pipe.unet)
    reference = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    text = pipe.encode_prompt("a cat", "cpu", 1, True)
    tokens = adapter.encode(style=reference)

    def draw(tokens) -> np.ndarray:
        prompted, empty = adapter.embed(text[0], *tokens), adapter.embed(text[1], *adapter.idle(tokens))
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompt_embeds=prompted, negative_prompt_embeds=empty, num_inference_steps=2, generator=generator, output_type="np"
        ).images

    styled = draw(tokens)
    assert styled.shape == (1, 64, 64, 3) and np.isfinite(styled).all()
    assert not np.array_equal(styled, draw(adapter.idle(tokens)))  # the reference matters
    assert "adapter 24" in adapter.config.provenance["training"]


def test_gradients_reach_all_that_is_trained_and_nothing_else(run: Path, data: Path, tmp_path: Path) -> None:
    """Image K/V of every layer, both Q-Formers with queries and word, projections and ln_vision; not the eye, not the base."""
    task = stages.STAGES["adapter"][0](recipe(tmp_path, "adapter", LOOP + 'precision = "fp32"\n'), IconArt(data), run)
    adapter, gradients = task.modules["adapter"], {}
    for draw in range(3):  # one batch of each task
        task.loss(task.batch(draw, 8), torch.Generator().manual_seed(draw))[0].backward()
    for name, parameter in adapter.named_parameters():
        gradients[name] = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    unreached = {name for name, reached in gradients.items() if not reached and not name.startswith("vision.")}
    last = "qformer.encoder.layer.1."  # the word is not read after the last layer, so its feed-forward there has nothing to learn
    assert unreached == {n for n in gradients if f"{last}intermediate." in n or f"{last}output." in n}
    assert not [name for name, reached in gradients.items() if reached and name.startswith("vision.")]
    assert all(p.grad is None for p in task.unet.parameters()) and all(p.grad is None for p in task.text_encoder.parameters())


@pytest.mark.parametrize("stage", list(stages.STAGES))
def test_a_resumed_run_equals_an_unbroken_one(stage: str, run: Path, data: Path, tmp_path: Path) -> None:
    art = IconArt(data)
    make, _ = stages.STAGES[stage]

    def weights(*sittings: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"{stage}-{len(sittings)}"
        for steps in sittings:
            torch.manual_seed(0)
            config = LoopConfig(steps=steps, batch_size=4, workers=2, warmup_steps=2, log_steps=2)
            train(make(recipe(tmp_path, stage), art, run), config, folder)
        found = latest_checkpoint(folder)
        assert found is not None
        state = torch.load(found, weights_only=True)
        assert state["step"] == sittings[-1]
        return {**state["weights"], **{f"average {k}": v for k, v in state["average"].items()}}

    whole, broken = weights(4), weights(1, 3, 4)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_run_that_is_asked_to_stop_keeps_its_last_step(run: Path, data: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM finish the step, write a checkpoint and end as an interrupt."""
    before = signal.getsignal(signal.SIGTERM)
    task = stages.STAGES["autoencoder"][0](recipe(tmp_path, "autoencoder"), IconArt(data), run)
    config = LoopConfig(steps=1000, batch_size=2, warmup_steps=2, log_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(
            task, config, tmp_path / "run", report=lambda line: signal.raise_signal(signal.SIGTERM) if line["step"] == 2 else None
        )
    found = latest_checkpoint(tmp_path / "run")
    assert found is not None and torch.load(found, weights_only=True)["step"] == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_pairs_share_what_they_should_and_never_a_picture(data: Path) -> None:
    art, rng = IconArt(data), np.random.default_rng(0)
    for objective in (Objective.STRE, Objective.SERE):
        found = 0
        for target in range(len(art.rows)):
            reference = art.reference_for(objective, target, rng)
            if reference is None:
                continue
            found += 1
            a, b = art.rows[target], art.rows[reference]
            same_style = (a["rendition"], a["palette"]) == (b["rendition"], b["palette"]) and (
                a["rendition"] != "plain" or a["set"] == b["set"]
            )
            assert reference != target and not b["reference_holdout"]
            assert same_style == (objective is Objective.STRE)
            assert (a["subject"] == b["subject"]) == (objective is Objective.SERE)
        assert found > 10


def test_captions_leave_to_the_reference_what_it_is_there_to_say(data: Path) -> None:
    art = IconArt(data)
    _, targets, captions = art.pairs(Objective.SERE, 3, 200)
    phrases = [stages.style_phrases(art.rows[target]["set"], art.rows[target]["rendition"]) for target in targets]
    assert 0.35 < np.mean([said in known for said, known in zip(captions, phrases, strict=True)]) < 0.65  # the style alone
    rendered = np.array([i for i in range(len(art.rows)) if art.rows[i]["rendition"] != "plain"])
    told = art.captions(rendered, np.random.default_rng(0), 1.0)
    words = [stages.style_phrases("", art.rows[i]["rendition"]) for i in rendered]
    assert np.mean([any(phrase.split(",")[0] in said for phrase in some) for said, some in zip(told, words, strict=True)]) > 0.9


def test_a_subject_has_one_shape_that_prompts_without_a_style_mean(data: Path) -> None:
    """The first set of a fixed order draws it; renditions are of that drawing, and other sets' are told by their captions."""
    art = IconArt(data, plain_share=0.5)
    drawn = [art.rows[i] for i in art.house]
    assert sorted({row["subject"] for row in drawn}) == art.subjects and len(drawn) == len(art.subjects)
    sets = {row["subject"]: row["set"] for row in drawn}
    for i in (*art.other, *art.house_rendered):
        row = art.rows[i]
        assert (row["set"] == sets[row["subject"]]) == (row["rendition"] != "plain")
        assert row["rendition"] != "plain" or house_set(row["subject"], [sets[row["subject"]], row["set"]]) != row["set"]
    targets = art.choose_targets(np.random.default_rng(0), 2000)
    shares = [np.isin(targets, pool).mean() for pool in (art.house, art.other, art.house_rendered)]
    assert shares == pytest.approx([0.3, 0.2, 0.5], abs=0.05)
    said, pictures, is_plain = art.for_sketch(plain=2, styled=1)
    assert len(said) == len(pictures) == len(is_plain)
    assert np.isin(pictures[is_plain], art.house).all() and "" in said


def test_a_word_that_many_subjects_carry_stands_for_the_nearest_in_meaning(data: Path) -> None:
    """Two cars and a car's owner: the label that means most nearly the same; a label is nobody else's word."""
    rows = [
        {"subject": "1", "label": "Automobile", "tags": ["car", "vehicle"]},
        {"subject": "2", "label": "police car", "tags": ["car", "patrol"]},
        {"subject": "3", "label": "vehicle", "tags": ["Car"]},
        {"subject": "2", "label": "police car", "tags": ["car", "patrol"]},
    ]
    meant = {"a car": 0.0, "an automobile": 0.1, "a police car": 0.5, "a vehicle": 0.9, "a patrol": 2.0}

    def embed(phrases: Sequence[str]) -> np.ndarray:
        angles = np.array([meant[phrase] for phrase in phrases])
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    assert word_owners(rows, embed) == {"car": "1", "patrol": "2"}
    assert word_owners(rows[2:3], embed) == {"car": "3"} and word_owners([{**rows[0], "tags": []}], embed) == {}

    art = IconArt(data)
    before, (said, pictures, is_plain) = art.for_sketch(2, 1), art.for_sketch(2, 1, {"thing": art.subjects[0], "x": "no subject"})
    assert said[: len(before[0])] == before[0]
    added = range(len(before[0]), len(said))
    assert {said[i] for i in added} >= {"thing", "a thing", "an icon of a thing"} and "x" not in said
    assert all(art.rows[pictures[i]]["subject"] == art.subjects[0] and pictures[i] in art.house and is_plain[i] for i in added)


def test_the_sketch_is_read_after_the_words_and_learns_what_captions_mean(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 values of 4 patches behind 16 words; after some hundred steps they are far closer to the latents than their mean."""
    monkeypatch.setattr(stages, "teacher_folder", lambda: None)  # the same bank wherever the tests run
    loop = 'precision = "fp32"\nema_decay = 0.9\n'
    further = LOOP.replace("steps = 6", "steps = 300").replace("batch_size = 4", "batch_size = 64") + loop
    folder = tmp_path / "run"
    stages.run_stage(recipe(tmp_path, "sketch", further), data, folder, start=run)
    tower = load_text_tower(folder / "sketch" / "text_encoder")
    tokenizer = stages.CLIPTokenizer.from_pretrained(run / "reader" / "tokenizer")
    art, scale = IconArt(data), stages._vae(run).config.scaling_factor
    captions, pictures, is_plain = art.for_sketch(plain=2, styled=1)
    states = tower(tokenize(tokenizer, captions)).last_hidden_state.detach()
    assert states.shape[1:] == (20, 64)
    latents = torch.from_numpy(np.load(run / "autoencoder" / "latents.npy")[pictures].astype(np.float32)) * scale
    wanted, sketched = patches_of(latents), states[:, 16:, :32]
    assert torch.equal(wanted[0, 1].reshape(8, 2, 2), latents[0, :, :2, 2:])  # the second patch of the first row
    plain = torch.from_numpy(is_plain)
    error, spread = (sketched - wanted)[plain].square().mean(), (wanted - wanted[plain].mean(0))[plain].square().mean()
    assert error < 0.8 * spread
    assert not torch.equal(states[0, 16, 32:], states[0, 17, 32:])  # which patch it is
    words = load_text_tower(run / "reader" / "text_encoder")(tokenize(tokenizer, captions)).last_hidden_state
    assert torch.equal(states[:, :16], words)


def test_the_base_meets_words_and_sketches_that_differ(run: Path, data: Path, tmp_path: Path) -> None:
    """Of the captions with a style about half have another sketch: their subject's, or their style's and the subject's added."""
    art = IconArt(data, plain_share=0.5)
    art.latents = np.zeros((len(art.rows), 1), np.float16)
    drawn = art.for_base(0, 2000)
    said = list(zip(drawn.words, drawn.sketched, drawn.added, strict=True))
    phrases = {phrase for row in art.rows for phrase in stages.style_phrases(row["set"], row["rendition"])}
    assert {words for words, sketched, added in said if added} <= phrases
    assert all(words == sketched for words, sketched, added in said if added)
    styleless = [sketched for words, sketched, added in said if words != sketched]
    assert not any(phrase in sketched for sketched in styleless for phrase in phrases)
    named = 0.3 * 0.2 + 0.2 + 0.5  # of house drawings, other sets' and renditions
    assert np.mean([bool(added) for *_, added in said]) == pytest.approx(named * 0.2, abs=0.03)
    assert len(styleless) / len(said) == pytest.approx(named * 0.45, abs=0.03)

    task = stages.STAGES["base"][0](recipe(tmp_path, "base"), IconArt(data), run)
    ids = tokenize(task.tokenizer, ["a cat", "a woodcut", "a woodcut", "a cat", "a woodcut", "a woodcut", "", "", "a cat"])
    states = task.text_encoder(tokenize(task.tokenizer, ["", "a cat", "a woodcut"])).last_hidden_state
    empty, cat, woodcut = states[:, 16:]
    read = task.read(ids.view(3, 3, -1), torch.float32)
    assert torch.allclose(read[:, :16], states[[1, 2, 2], :16], atol=1e-5)
    assert torch.allclose(read[:, 16:], torch.stack([cat, woodcut, woodcut + cat - empty]), atol=1e-5)


def test_a_reader_that_sketches_goes_on_from_its_sketch(run: Path, data: Path, tmp_path: Path) -> None:
    stages.pack(run, tmp_path / "model", stages.provenance_of(run))
    shipped = load_embedded(tmp_path / "model")[0].text_encoder.state_dict()
    further = LOOP.replace("steps = 6", "steps = 2").replace("1e-3", "0.0") + 'precision = "fp32"\n'
    stages.run_stage(recipe(tmp_path, "sketch", further), data, tmp_path / "run", init=tmp_path / "model")
    went_on = load_text_tower(tmp_path / "run" / "sketch" / "text_encoder").state_dict()
    assert all(torch.equal(went_on[name], shipped[name]) for name in shipped)


def test_shifted_timesteps_are_noisier_and_uniform_ones_stay_even() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform, shifted = even_timesteps(1000, generator), even_timesteps(1000, generator, shift=4.0)
    assert torch.equal(uniform.sort().values, torch.arange(1000))  # one of each band
    assert (shifted > 600).float().mean() == pytest.approx(1 - 0.6 / (4 - 3 * 0.6), abs=0.005)
    assert shifted.min() >= 0 and shifted.max() <= 999
    with pytest.raises(ConfigError, match="timestep_shift"):
        BaseConfig(timestep_shift=0.0)


def test_each_task_leaves_only_its_own_parts_alive() -> None:
    generator = torch.Generator().manual_seed(0)
    for objective in (Objective.STRE, Objective.SERE):
        live = live_parts(objective, 400, generator, text_drop=0.1)
        own, idle = (live.style, live.content) if objective is Objective.STRE else (live.content, live.style)
        assert not idle.any()
        assert 0.79 < own.float().mean() < 0.91  # dropped with probability 0.15
        assert 0.85 < live.text.float().mean() < 0.95
    seen = set()
    for _ in range(30):
        live = live_parts(Objective.RECONSTRUCTION, 40, generator)
        assert not live.text.any()  # the empty prompt
        assert len(live.style.unique()) == len(live.content.unique()) == 1  # by the batch
        seen.add((bool(live.style[0]), bool(live.content[0])))
    assert seen == {(True, True), (True, False), (False, True)}
    said = keep_text(torch.ones(2, 3, 4), torch.full((1, 3, 4), 7.0), torch.tensor([True, False]))
    assert (said[0] == 1).all() and (said[1] == 7).all()


def test_a_finished_model_is_trained_on(run: Path, data: Path, tmp_path: Path) -> None:
    stages.pack(run, tmp_path / "model", stages.provenance_of(run))
    unet = load_embedded(tmp_path / "model")[0].unet.state_dict()
    further = LOOP.replace("steps = 6", "steps = 2").replace("1e-3", "0.0")  # nothing is learned: the weights show where it began
    stages.run_stage(recipe(tmp_path, "base", further), data, tmp_path / "run", init=tmp_path / "model")
    made = load_unet(tmp_path / "run" / "base" / "unet").state_dict()
    assert all(torch.allclose(made[name], unet[name], rtol=0.01, atol=1e-4) for name in unet)  # saved from bf16
    for stage in ("alignment", "adapter"):
        stages.run_stage(recipe(tmp_path, stage, further), data, tmp_path / "run")
        went_on = DEADiffAdapter.from_pretrained(tmp_path / "run" / stage / "adapter").state_dict()
        shipped = load_embedded(tmp_path / "model")[1].state_dict()
        kept = [name for name in shipped if not name.startswith("image_kv")]
        assert all(torch.allclose(went_on[name], shipped[name], rtol=0.01, atol=1e-4) for name in kept)
    told = made["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]  # image K/V begin anew, from the base's
    assert any(torch.allclose(value, told, rtol=0.01, atol=1e-4) for value in went_on.values() if value.shape == told.shape)
    said = stages.provenance_of(tmp_path / "run")["training"]
    assert "reader 24" in said and "base 32" in said and "adapter 32" in said  # with what the model had seen before
    with pytest.raises(ConfigError, match="of other sizes"):
        sizes = {"block_out_channels": [32, 32, 64], "head_dim": 16}
        other = stages.Recipe(stage="base", loop={"steps": 2, "batch_size": 2}, model=sizes)
        stages.run_stage(other, data, tmp_path / "other", init=tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('stage = "stew"', "expected one of autoencoder"),
        ("stage = ", "is not TOML"),
        ('stage = "base"\ncolour = 3', "unknown key 'colour'"),
        ("", "stage"),
    ],
)
def test_a_bad_recipe_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        stages.read_recipe(tmp_path / "r.toml")
    assert "\n" not in str(caught.value)


def test_a_stage_that_comes_too_early_says_which_one_is_missing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train the autoencoder stage"):
        stages.run_stage(recipe(tmp_path, "base"), data, tmp_path / "empty")


def test_a_checkpoint_of_another_model_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    art = IconArt(data)
    task = stages.STAGES["autoencoder"][0](recipe(tmp_path, "autoencoder"), art, run)
    with pytest.raises(DataError, match="not this model's"):
        train(task, LoopConfig(steps=9, batch_size=2), run / "base")


def test_a_full_disk_leaves_the_model_that_was_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.pack(run, tmp_path / "model", {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(weights: object, path: Path, levels: int) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deadiff.eight_bit.save", full)
    with pytest.raises(CheckpointError, match="No space left on device: make room and pack it again"):
        stages.pack(run, tmp_path / "model", {"licence": "another"})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_folder_of_another_make_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    stages.pack(run, tmp_path, {})
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(CheckpointError, match="weights are missing"):
        load_embedded(tmp_path)


# ---- what betters a finished model ----


def test_the_fewer_steps_are_drawn_the_nearer_it_stays(run: Path, data: Path, tmp_path: Path) -> None:
    task = stages.STAGES["base"][0](recipe(tmp_path, "base"), IconArt(data), run)
    latents = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    text = task.read(task.empty.expand(3, 1, -1), torch.float32)

    def moved(left: int) -> float:
        noise = torch.Generator().manual_seed(1)
        drawn = redrawn.redraw(task.modules["unet"], latents, text.expand(6, -1, -1), text, left, noise)
        assert drawn.shape == latents.shape and torch.isfinite(drawn).all()
        return float((drawn - latents).square().mean())

    assert moved(1) < moved(4) < moved(8)
    assert moved(1) < 0.2


def test_what_the_base_has_drawn_is_kept_and_the_rest_drawn_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    task = stages.STAGES["base"][0](recipe(tmp_path, "base"), IconArt(data), run)
    art = IconArt(data)
    art.latents = np.load(run / "autoencoder" / "latents.npy")
    whole = redrawn.make_redrawn(tmp_path / "drawn", redrawn.CHUNK + 3, 0, art, task)
    first, second = sorted((tmp_path / "drawn").iterdir())
    before = first.stat().st_mtime_ns
    second.unlink()  # as if killed between the two
    again = redrawn.make_redrawn(tmp_path / "drawn", redrawn.CHUNK + 3, 0, art, task)
    assert first.stat().st_mtime_ns == before
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
    assert len(whole.latents) == len(whole.picture) == redrawn.CHUNK + 3 and len(set(whole.left)) == 2


def test_the_decoder_sees_true_and_drawn_latents_beside_their_pictures(data: Path) -> None:
    art = IconArt(data)
    art.latents = np.arange(len(art.rows), dtype=np.float16)[:, None, None, None]
    drawn = redrawn.Redrawn(-art.latents[:9], np.arange(9), np.full(9, 0.25))
    latents, pictures, left = art.for_decoder(drawn, 0.6, 0, 1000)
    of_base = left > 0
    assert of_base.mean() == pytest.approx(0.6, abs=0.05)
    number = np.abs(latents[:, 0, 0, 0]).astype(int)
    assert (latents[of_base] <= 0).all() and (latents[~of_base] >= 0).all()
    assert all(np.array_equal(art.pictures[n], picture) for n, picture in zip(number[:50], pictures, strict=False))


def test_the_decoder_learns_to_clean_and_the_encoder_stays(run: Path, data: Path, tmp_path: Path) -> None:
    task = stages.STAGES["decoder"][0](recipe(tmp_path, "decoder"), IconArt(data), run)
    vae, generator = task.modules["vae"], torch.Generator().manual_seed(0)
    encoder = vae.encoder.weight.clone()
    far = task.batch(0, 4)._replace(left=torch.full((4,), 0.75))
    said = task.loss(far, generator)[1]
    assert said["pixel"] == said["edge"] == 0 and said["coarse"] < 0.05  # it says what the decoder before says
    optimizer, shown = torch.optim.AdamW(vae.parameters(), lr=5e-3), task.batch(0, 8)

    def lost() -> torch.Tensor:
        return task.loss(shown, torch.Generator().manual_seed(1))[0]

    before = float(lost().detach())
    for _ in range(60):
        optimizer.zero_grad()
        lost().backward()
        optimizer.step()
    assert float(lost().detach()) < 0.8 * before
    assert vae.encoder.weight.grad is None and torch.equal(vae.encoder.weight, encoder)
    assert all(p.grad is None for p in task.before.parameters())


def test_a_token_sees_its_own_place() -> None:
    """4 x 4 vision tokens on a grid of 2 x 2: the third image token reads the lower left four, row by row."""
    places = Places(vision_dim=3, side=4, num_tokens=4, token_dim=12)
    with torch.no_grad():
        places.linear.weight.copy_(torch.eye(12))
    hidden = torch.arange(17.0)[None, :, None].expand(1, 17, 3)  # the class token is 0, then 1, 2, ... row by row
    assert places(hidden)[0, 2].tolist() == [9, 9, 9, 10, 10, 10, 13, 13, 13, 14, 14, 14]
    for tokens, side in ((5, 4), (4, 3)):
        with pytest.raises(ConfigError, match="cannot be placed"):
            Places(vision_dim=3, side=side, num_tokens=tokens, token_dim=12)


def test_places_are_silent_until_they_have_learned(run: Path) -> None:
    adapter = DEADiffAdapter.from_pretrained(run / "adapter" / "adapter")
    assert adapter.config.placed == ("content",)
    silent = DEADiffAdapter.from_base(
        load_unet(run / "base" / "unet"), stages.CLIPVisionModel.from_pretrained(run / "eye" / "image_encoder"), adapter.config
    )
    without = {name: value for name, value in silent.state_dict().items() if ".places." not in name}
    assert len(without) == len(silent.state_dict()) - 2
    unplaced = DEADiffAdapter.from_weights(replace(adapter.config, placed=()), without).eval()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    both = [made.eval().encode(picture, picture) for made in (silent, unplaced)]
    assert torch.equal(both[0].content, both[1].content) and torch.equal(both[0].style, both[1].style)
    with pytest.raises(ConfigError, match="placed"):
        type(adapter.config).from_dict({**adapter.config.to_dict(), "placed": ["colour"]})


def test_the_content_reader_learns_to_draw_what_it_sees_and_style_stays(run: Path, data: Path, tmp_path: Path) -> None:
    loop = "[loop]\nsteps = 300\nbatch_size = 16\nlearning_rate = 3e-3\nwarmup_steps = 2\nlog_steps = 10\nema_decay = 0.9\n"
    lines: list[dict[str, float]] = []
    stages.run_stage(recipe(tmp_path, "content", loop), data, tmp_path / "run", report=lines.append, start=run)
    assert lines[-1]["content"] < 0.5 * lines[0]["content"]
    before = DEADiffAdapter.from_pretrained(run / "adapter" / "adapter")
    after = DEADiffAdapter.from_pretrained(tmp_path / "run" / "content" / "adapter")
    changed = {name.split(".")[0] + "." + name.split(".")[1] for name, value in before.state_dict().items()
               if not torch.equal(value, after.state_dict()[name])}  # fmt: skip
    assert "extractors.content" in changed and any(name.startswith("vision") for name in changed)
    assert not any(name.startswith(("extractors.style", "image_kv")) for name in changed)
    pictures = IconArt(data).pictures[:32]
    said, says = (adapter.encode(style=pictures).style for adapter in (before, after))
    assert (said - says).square().mean() < 0.3 * (said - said.mean(0)).square().mean() + 0.05 * said.square().mean()
    assert latents_of(after.encode(content=pictures).content[..., :32], 4).shape == (32, 8, 4, 4)


def test_a_model_is_packed_with_what_was_bettered_last(run: Path, tmp_path: Path) -> None:
    stages.pack(run, tmp_path / "model", stages.provenance_of(run))
    pipe, adapter = load_embedded(tmp_path / "model")
    assert adapter.config.placed == ("content",)
    decoder = stages.PatchAutoencoder.from_pretrained(run / "decoder" / "vae").decoder.conv_in.weight
    older = stages.PatchAutoencoder.from_pretrained(run / "autoencoder" / "vae").decoder.conv_in.weight
    shipped = pipe.vae.decoder.conv_in.weight
    assert (shipped - decoder).abs().max() < (shipped - older).abs().max()
    assert "decoder 24" in adapter.config.provenance["training"] and "content 24" in adapter.config.provenance["training"]
