"""The published model's full size: weights made from keys and shapes, through the importer, against recorded outputs.

Peak memory 8.3 GB, about 31 CPU seconds.
"""

import pytest
import torch
from procedural import weight
from recorded import FOLDERS, Recording, manifest

from deadiff.adapter import DEADiffAdapter
from deadiff.official_plan import make_plan
from deadiff.weights import check_weights
from test_parity import MODULE, read_other_text

pytestmark = [pytest.mark.full_size, pytest.mark.slow]


@pytest.fixture(scope="module")
def plan():
    """All 2,562 keys; two eyes, because weights made from keys differ between the checkpoint's two copies of the vision tower."""
    return make_plan({key: tuple(entry["shape"]) for key, entry in manifest("deadiff_v1").items()}, two_eyes=True)


def made(plan, part: str) -> dict[str, torch.Tensor]:
    shapes = {key: tuple(entry["shape"]) for key, entry in manifest("deadiff_v1").items()}
    return dict(zip(plan.shapes(part), plan.tensors(part, lambda key: weight(key, shapes[key])), strict=True))


@pytest.fixture(scope="module")
def adapter(plan):
    return DEADiffAdapter.from_weights(plan.models["deadiff"].config, made(plan, "deadiff")).eval()


@torch.no_grad()
def test_full_size_readers_match_the_released_code(adapter):
    recorded = Recording(FOLDERS["compact"], "full_qformer")
    for role in ("style", "content"):
        seen = adapter.see(recorded["normalized"], role)
        recorded.close(f"{role}.vit_first8", seen[:, :8], MODULE)
        extractor = adapter.extractors[role]
        recorded.close(f"{role}.multimodal_embeds", extractor.read(seen)[:, :16], MODULE)
        recorded.close(f"{role}.ctx", extractor(seen), MODULE)


@torch.no_grad()
def test_full_size_unet_matches_the_released_code(adapter, plan):
    recorded = Recording(FOLDERS["compact"], "full_unet_w1.3")
    unet, weights = plan.models["unet"], made(plan, "unet")
    check_weights(unet.state_dict(), weights, "memory")
    unet.load_state_dict(weights, assign=True)
    adapter.inject(unet.eval())
    read_other_text(unet, recorded["content_text"])
    embeds = adapter.embed(
        recorded["style_text"], recorded["style_img"], recorded["content_img"], strength=1.3, content_strength=1.3
    )
    recorded.close("eps", unet(recorded["x"], recorded["t"], embeds).sample, MODULE)
