"""Each metric against an independent implementation, and each rewards what it should: truth, a pasted reference, chance."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, Dinov2Config, Dinov2Model

from deadiff.errors import CheckpointError, DataError
from deadiff.evaluation import encoders, intervals, metrics
from deadiff.evaluation.style_words import VOCABULARY, find_style_words, without_content

AESTHETIC = next(
    (folder / "data" / "sac+logos+ava1-l14-linearMSE.pth" for parent in Path(__file__).resolve().parents
     for folder in parent.glob("shared") if (folder / "data").is_dir()), None)  # fmt: skip


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ---- intervals ----


def test_an_interval_without_clusters_is_as_wide_as_theory_says() -> None:
    scores = features(2000)
    found = intervals.mean(scores)
    assert found.low < found.estimate < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * scores.std() / 2000**0.5, rel=0.1)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    reference, prompt = np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)
    hits = 0
    for trial in range(120):  # effects of references, of prompts and of each picture: the truth is 0
        scores = rng.normal(size=12)[reference] + rng.normal(size=10)[prompt] + rng.normal(size=120)
        found = intervals.mean(scores, reference, prompt, resamples=300, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.88 < hits / 120 <= 1
    naive = intervals.mean(scores, resamples=300)
    assert naive.high - naive.low < 0.7 * (found.high - found.low)  # what ignoring the clusters would claim


def test_one_clustering_equals_the_bootstrap_of_its_means() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(size=30)
    found = intervals.mean(np.repeat(means, 4), np.repeat(np.arange(30), 4), resamples=4000)
    draws = means[rng.integers(0, 30, (4000, 30))].mean(1)
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.05)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.05)


def test_differences_and_ratios_are_paired() -> None:
    noise = features(400, seed=3)
    a, b = noise + 2.1, noise + 2.0
    found = intervals.difference(a, b)
    assert found.estimate == pytest.approx(0.1) and found.high - found.low < 1e-9
    share = intervals.ratio(0.9 * b, b)
    assert share.estimate == pytest.approx(0.9) and share.high - share.low < 1e-9
    with pytest.raises(DataError, match="says nothing"):
        intervals.ratio(a, np.zeros(400))


@pytest.mark.parametrize(
    ("values", "clusters", "says"),
    [([], (), "at least one"), ([1.0, np.nan], (), "not finite"), ([1.0, 2.0], (["a"],), "one name a score")],
)
def test_scores_that_cannot_be_averaged_are_refused(values: list[float], clusters: tuple, says: str) -> None:
    with pytest.raises(DataError, match=says):
        intervals.mean(values, *clusters)


# ---- metrics of pairs ----


def test_cosines_equal_torch() -> None:
    a, b = features(7, 32), features(7, 32, seed=1)
    expected = F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    for metric in (metrics.text_alignment, metrics.style_similarity, metrics.picture_similarity):
        np.testing.assert_allclose(metric(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(
        metrics.text_alignment(a, b[:1]), F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b[:1]))
    )
    with pytest.raises(DataError, match="expected"):
        metrics.cosine(a, b[:, :5])
    with pytest.raises(DataError, match="direction"):
        metrics.cosine(np.zeros((1, 4)), np.ones((1, 4)))


def test_dino_leakage_equals_the_double_loop_and_is_zero_by_chance() -> None:
    x, r = features(6, 16), features(6, 16, seed=1)
    r[3] = r[0]  # two pictures share a reference
    expected = []
    for i in range(6):
        others = [
            np.dot(x[i], r[j]) / np.linalg.norm(x[i]) / np.linalg.norm(r[j]) for j in range(6) if not np.allclose(r[j], r[i])
        ]
        expected.append(np.dot(x[i], r[i]) / np.linalg.norm(x[i]) / np.linalg.norm(r[i]) - np.mean(others))
    np.testing.assert_allclose(metrics.dino_leakage(x, r), expected, atol=1e-12)
    many = features(400, 64, seed=2)
    assert abs(metrics.dino_leakage(features(400, 64, seed=3), many).mean()) < 0.02
    assert metrics.dino_leakage(many, many).mean() > 0.95
    with pytest.raises(DataError, match="two different"):
        metrics.dino_leakage(x, np.tile(r[:1], (6, 1)))


def test_gram_matrices_equal_einsum_and_know_texture_but_not_place() -> None:
    maps = features(2, 5, 6, 7)
    expected = np.einsum("nahw,nbhw->nab", maps, maps) / (5 * 42)
    np.testing.assert_allclose(metrics.gram_matrix(maps), expected, atol=1e-12)
    moved = np.roll(maps, (2, 3), (2, 3))
    np.testing.assert_allclose(metrics.gram_distance([maps], [moved]), 0, atol=1e-12)
    other = features(2, 5, 9, 9, seed=1)
    by_hand = [
        np.sqrt(((metrics.gram_matrix(maps)[i] - metrics.gram_matrix(other)[i]) ** 2).sum())
        / np.sqrt((metrics.gram_matrix(other)[i] ** 2).sum())
        for i in range(2)
    ]
    np.testing.assert_allclose(metrics.gram_distance([maps, maps], [other, other]), by_hand)


# ---- metrics of sets ----


def test_squared_mmd_equals_the_sums_of_its_formula_and_is_unbiased() -> None:
    x, y = features(9, 4), features(7, 4, seed=1) + 0.5

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    xy = sum(k(a, b) for a in x for b in y) / 63
    assert metrics.squared_mmd(x, y) == pytest.approx(xx + yy - 2 * xy)
    same = [metrics.squared_mmd(features(40, 4, seed=2 * i), features(40, 4, seed=2 * i + 1)) for i in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5  # equal sets: 0 on average, below 0 as often


def test_kid_ranks_sets_by_distance() -> None:
    near, far = features(300, 8, seed=1) + 0.2, features(300, 8, seed=2) + 1
    (a, spread), (b, _) = metrics.kid(features(300, 8), near, 20, 100), metrics.kid(features(300, 8), far, 20, 100)
    assert 0 < a < b and spread > 0
    with pytest.raises(DataError, match="two rows"):
        metrics.squared_mmd(features(1, 8), near)


# ---- judges' answers ----


def test_leakage_has_a_known_answer() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    found = metrics.leakage(probabilities, [0, 0, 0], [1, 1, 1])
    assert found.prompt.tolist() == [True, False, False]
    assert found.reference.tolist() == [False, True, False]
    assert found.preferred.tolist() == [False, True, True]  # a third thing, but nearer to the reference's
    with pytest.raises(DataError, match="leakage cannot be told"):
        metrics.leakage(probabilities, [0, 1, 2], [1, 1, 1])


def test_top_k_and_calibration_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), 400)
    target = np.array([rng.choice(6, p=row) for row in p])  # honest by construction
    ranks = (-p).argsort(1)
    for k in (1, 3):
        assert metrics.top(p, target, k).tolist() == [t in row[:k] for t, row in zip(target, ranks, strict=True)]
    assert metrics.calibration_error(p, target) < 0.1
    sure, right = p.max(1), p.argmax(1) == target
    by_hand = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            by_hand += inside.sum() / 400 * abs(right[inside].mean() - sure[inside].mean())
    assert metrics.calibration_error(p, target) == pytest.approx(by_hand)
    boasting = np.eye(6)[p.argmax(1)]
    assert metrics.calibration_error(boasting, target) == pytest.approx(1 - right.mean())
    with pytest.raises(DataError, match="outside"):
        metrics.top(p, target + 6)


# ---- words for a style ----


class Words:
    """A joint space in which texts are bags of words: the nearest phrases are known."""

    def __init__(self) -> None:
        words = {word for phrases in VOCABULARY.values() for phrase in phrases for word in phrase.replace(",", "").split()}
        self.number = {word: i for i, word in enumerate(sorted(words))}

    def __call__(self, texts) -> np.ndarray:
        vectors = np.full((len(texts), len(self.number)), 1e-6)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.replace(",", "").split():
                row[self.number[word]] += 1
        return vectors


def test_style_words_describe_the_reference_and_hold_no_content() -> None:
    encode = Words()
    reference = encode(["a woodcut print, ukiyo-e, bold outlines, muted colours"])[0]
    found = find_style_words(reference, encode)
    assert {"a woodcut print", "ukiyo-e", "bold outlines", "muted colours"} == set(found)
    without = find_style_words(reference, encode, content=["Woodcuts of a red robot"])
    assert "a woodcut print" not in without and not any("red" in phrase.split() for phrase in without)
    own, other = (metrics.style_similarity(reference[None], encode([text]))[0] for text in (", ".join(found), "a neon sign"))
    assert own > 0.99 > other
    assert without_content(["red boxes", "a boxer", "blue"], ["box"]) == ["a boxer", "blue"]
    with pytest.raises(DataError, match="whole vocabulary"):
        find_style_words(reference, encode, content=["red"], vocabulary={"colour": ["red"]})


# ---- the networks ----


def pictures(count: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40 + 8 * i, 56, 3), np.uint8) for i in range(count)]


class BagTokenizer:
    """Letters as tokens: enough for a random text tower."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        ids = torch.full((len(texts), max_length), 1)
        for row, text in zip(ids, texts, strict=True):
            letters = [2 + ord(letter) % 50 for letter in text][: max_length - 1]
            row[: len(letters)] = torch.tensor(letters)
            row[len(letters)] = 63
        return argparse.Namespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_clip_features_equal_the_whole_model() -> None:
    text = CLIPTextConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=12, eos_token_id=63)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                              patch_size=8)  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)).eval()
    encoder = encoders.ClipEncoder(model, BagTokenizer())
    pixels = encoders.normalised(pictures(), 32, encoders.CLIP_MEAN, encoders.CLIP_STD)
    ids = BagTokenizer()(["a cat", "robots"], None, True, 12, "pt").input_ids
    with torch.no_grad():
        whole = model(input_ids=ids, pixel_values=pixels)
    np.testing.assert_allclose(encoder.pictures(pictures()), whole.image_embeds, atol=1e-5)
    np.testing.assert_allclose(encoder.texts(["a cat", "robots"]), whole.text_embeds, atol=1e-5)


def test_the_aesthetic_head_is_a_chain_of_five_products(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(  # the published class, by its description
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1),
        nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    torch.save({f"layers.{name}": x for name, x in layers.state_dict().items()}, tmp_path / "head.pth")
    head = encoders.AestheticHead.from_file(tmp_path / "head.pth")
    x = features(4, 768)
    unit = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()
    np.testing.assert_allclose(head.score(x), layers(unit)[:, 0].detach(), atol=1e-6)
    with pytest.raises(CheckpointError, match="ViT-L/14"):
        head.score(features(2, 512))


@pytest.mark.skipif(AESTHETIC is None, reason="the published aesthetic head is not here")
def test_the_published_aesthetic_head_is_read_and_scores_in_its_range() -> None:
    assert AESTHETIC is not None
    head = encoders.AestheticHead.from_file(AESTHETIC)
    scores = head.score(features(50, 768))
    assert scores.min() > 2 and scores.max() < 9  # random directions: the middle of the scale of 1 to 10
    weights = encoders.read_tensors(AESTHETIC)
    product, bias = np.eye(768), np.zeros(768)
    for place in encoders.AestheticHead.PLACES:  # no activations: the five layers are one affine map
        w, b = weights[f"layers.{place}.weight"].double().numpy(), weights[f"layers.{place}.bias"].double().numpy()
        product, bias = w @ product, w @ bias + b
    x = features(5, 768)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(head.score(x), (unit @ product.T + bias)[:, 0], atol=1e-4)


class OpenAITower(nn.Module):
    """OpenAI's image tower in plain torch, in the layout of CSD's checkpoint."""

    def __init__(self, width: int, layers: int, patch: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(OpenAIBlock(width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x)
        return self.ln_post(x[:, 0])


class OpenAIBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        h = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(h * torch.sigmoid(1.702 * h))


def test_csd_weights_are_read_in_the_published_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = OpenAITower(128, 2, 14, 56).eval()
    head = torch.randn(128, 24)
    weights = {f"module.backbone.{name}": x for name, x in tower.state_dict().items()}
    weights |= {"module.last_layer_style": head, "module.last_layer_content": torch.randn(128, 24)}
    training = {"args": argparse.Namespace(lr=1e-4), "iter": 3, "loss": np.float64(0.5)}  # the published file holds such things
    torch.save({"model_state_dict": weights, **training}, tmp_path / "csd.bin")
    encoder = encoders.CsdEncoder.from_file(tmp_path / "csd.bin")
    pixels = encoders.normalised(pictures(), 56, encoders.CLIP_MEAN, encoders.CLIP_STD)
    with torch.no_grad():
        expected = F.normalize(tower(pixels) @ head, dim=-1)
    np.testing.assert_allclose(encoder.pictures(pictures()), expected, atol=2e-5)
    del weights["module.backbone.ln_post.bias"]
    torch.save({"model_state_dict": weights}, tmp_path / "less.bin")
    with pytest.raises(CheckpointError, match="missing"):
        encoders.CsdEncoder.from_file(tmp_path / "less.bin")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"model_state_dict": {"x": torch.ones(1)}, "evil": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match="no plain weights"):
        encoders.read_tensors(tmp_path / "evil.bin")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(CheckpointError):
        encoders.AestheticHead.from_file(tmp_path / "text.pth")


def test_dino_gives_the_class_token() -> None:
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    ).eval()
    encoder = encoders.DinoEncoder(model, 28)
    with torch.no_grad():
        seen = model(encoders.normalised(pictures(), 28, encoders.IMAGENET_MEAN, encoders.IMAGENET_STD))
    np.testing.assert_allclose(encoder.pictures(pictures()), seen.last_hidden_state[:, 0], atol=1e-5)
    with pytest.raises(CheckpointError, match="cannot load"):
        encoders.DinoEncoder.from_pretrained("/no/such/folder")


def torchvision_mobilenet(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """MobileNetV2's pooled features from torchvision's keys, by the table of Sandler et al. 2018."""

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1, act: bool = True) -> torch.Tensor:
        x = F.conv2d(x, w[f"{conv}.weight"], None, stride, w[f"{conv}.weight"].shape[2] // 2, 1, groups)
        stats = (w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *stats, eps=1e-5)
        return F.relu6(x) if act else x

    x, i = layer(x, "features.0.0", "features.0.1", 2), 1
    for expand, _, count, first in TABLE:
        for k in range(count):
            p, stride, y = f"features.{i}.conv", first if k == 0 else 1, x
            if expand == 1:
                y = layer(layer(y, f"{p}.0.0", f"{p}.0.1", stride, y.shape[1]), f"{p}.1", f"{p}.2", act=False)
            else:
                y = layer(y, f"{p}.0.0", f"{p}.0.1")
                y = layer(layer(y, f"{p}.1.0", f"{p}.1.1", stride, y.shape[1]), f"{p}.2", f"{p}.3", act=False)
            x, i = (x + y if y.shape == x.shape else y), i + 1
    return layer(x, "features.18.0", "features.18.1").mean((2, 3))


TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def torchvision_weights() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, in its order."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, inner: int, outer: int, kernel: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(outer, inner, kernel, kernel, generator=generator) * (inner * kernel**2) ** -0.5
        for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            weights[f"{norm}.{part}"] = low + torch.rand(outer, generator=generator)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("features.0.0", "features.0.1", 3, 32, 3)
    inner, i = 32, 1
    for expand, outer, count, _ in TABLE:
        for _ in range(count):
            p, wide = f"features.{i}.conv", inner * expand
            if expand == 1:
                add(f"{p}.0.0", f"{p}.0.1", 1, wide, 3)
                add(f"{p}.1", f"{p}.2", wide, outer, 1)
            else:
                add(f"{p}.0.0", f"{p}.0.1", inner, wide, 1)
                add(f"{p}.1.0", f"{p}.1.1", 1, wide, 3)
                add(f"{p}.2", f"{p}.3", wide, outer, 1)
            inner, i = outer, i + 1
    add("features.18.0", "features.18.1", 320, 1280, 1)
    return weights | {"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}


def test_mobilenet_reads_torchvision_weights(tmp_path: Path) -> None:
    weights = torchvision_weights()
    torch.save(weights, tmp_path / "mobilenet.pth")
    encoder = encoders.MobileNetEncoder.from_file(tmp_path / "mobilenet.pth", size=64)
    with torch.no_grad():
        expected = torchvision_mobilenet(
            weights, encoders.normalised(pictures(), 64, encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
        )
    np.testing.assert_allclose(encoder.pictures(pictures()), expected, rtol=1e-4, atol=1e-5)
    maps = encoder.maps(pictures())
    assert [x.shape for x in maps] == [(3, 24, 16, 16), (3, 32, 8, 8), (3, 64, 4, 4), (3, 160, 2, 2)]
    assert metrics.gram_distance(maps, maps).max() == 0 < metrics.gram_distance(maps, [x[::-1] for x in maps])[0]
    weights.pop("features.18.1.bias")
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="expected MobileNetV2"):
        encoders.MobileNetEncoder.from_file(tmp_path / "less.pth")
