"""The ComfyUI nodes: against our own processor on the same weights, and inside ComfyUI's real code where a copy is found."""

import asyncio
import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

import deadiff
from comfy_code import import_comfyui
from deadiff.adapter import Tokens
from deadiff.routes import ROUTES, cross_attention_layers
from tiny import TEXT_LENGTH, WIDTH, picture, tiny_adapter, tiny_model_folder, tiny_unet

ROOT = Path(__file__).parents[1] / "comfyui"
B, L = 2, 16


def load_package() -> Any:
    """As ComfyUI loads a folder of custom_nodes: by its path."""
    spec = importlib.util.spec_from_file_location("deadiff_comfyui", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deadiff_comfyui"] = module
    spec.loader.exec_module(module)
    return module


package = load_package()
patching = sys.modules["deadiff_comfyui.patching"]
NODES = package.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def sd15():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = tiny_unet("sd15")
    return unet, tiny_adapter(copy.deepcopy(unet), "sd15")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """ComfyUI's transformer block around attn2, as its documentation of the patches says: patch, project, replace, project."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attn2 = nn.Module()
        for name in ("to_q", "to_k", "to_v"):
            self.attn2.add_module(name, copy.deepcopy(getattr(layer, name)))
        self.attn2.add_module("to_out", copy.deepcopy(layer.to_out[0]))
        self.heads = layer.heads

    def forward(self, x: torch.Tensor, context: torch.Tensor, patches: list[Any], replace: Any) -> torch.Tensor:
        extra = {"n_heads": self.heads, "dim_head": x.shape[-1] // self.heads}
        value = context
        for patch in patches:
            x, context, value = patch(x, context, value, extra)
        q, k, v = self.attn2.to_q(x), self.attn2.to_k(context), self.attn2.to_v(value)
        return self.attn2.to_out(replace(q, k, v, extra))


class FakeModel:
    """A MODEL in the part of its interface that we use: clone, two setters, model.diffusion_model."""

    def __init__(self, unet: Any) -> None:
        layers = cross_attention_layers(unet)
        homes: dict[str, dict[int, Any]] = {"input": {}, "output": {}, "middle": {}}
        for path, (block, number) in patching.BLOCKS.items():
            homes[block][number] = Block(layers[path])
        inner = SimpleNamespace(middle_block=homes["middle"][0])
        for block, part in (("input", "input_blocks"), ("output", "output_blocks")):
            inner.__dict__[part] = [homes[block].get(i, nn.Identity()) for i in range(12)]
        self.model, self.patches, self.replaced = SimpleNamespace(diffusion_model=inner), [], {}

    def clone(self) -> "FakeModel":
        other = copy.copy(self)
        other.patches, other.replaced = list(self.patches), dict(self.replaced)
        return other

    def set_model_attn2_patch(self, patch: Any) -> None:
        self.patches.append(patch)

    def set_model_attn2_replace(self, patch: Any, block: str, number: int, transformer_index: int | None = None) -> None:
        self.replaced[block, number] = patch

    def block(self, block: str, number: int) -> Any:
        inner = self.model.diffusion_model
        return inner.middle_block if block == "middle" else getattr(inner, f"{block}_blocks")[number]


def test_every_node_has_what_comfyui_asks_of_a_node():
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES) and len(NODES) == 6
    for node in NODES.values():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional"} and "required" in inputs
        names = [name for group in inputs.values() for name in group]
        method = getattr(node, node.FUNCTION)
        assert set(names) == set(method.__code__.co_varnames[1 : method.__code__.co_argcount])
        assert isinstance(node.RETURN_TYPES, tuple) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert node.CATEGORY == "DEADiff"


def test_comfyui_numbers_its_blocks_as_the_released_code_does():
    assert set(patching.BLOCKS) == set(ROUTES["sd15"])
    official = {("input", n) for n in (1, 2, 4, 5, 7, 8)} | {("middle", 0)} | {("output", n) for n in range(3, 12)}
    assert set(patching.BLOCKS.values()) == official
    content = {patching.BLOCKS[path] for path, role in ROUTES["sd15"].items() if role == "content"}
    assert content == {("input", 7), ("input", 8), ("middle", 0), ("output", 3), ("output", 4)}


@pytest.mark.parametrize("path", list(ROUTES["sd15"]))
def test_a_patched_layer_equals_our_processor_on_the_same_weights(path, sd15):
    unet, adapter = sd15
    unet = copy.deepcopy(unet)
    adapter.inject(unet)
    try:
        layer = cross_attention_layers(unet)[path]
        model = patching.patch_model(patching.patch_model(FakeModel(unet), adapter), adapter)  # twice is as good as once
        block, number = patching.BLOCKS[path]
        x = random(B, L, layer.to_q.weight.shape[1], seed=1)
        text = random(B, TEXT_LENGTH["sd15"], WIDTH, seed=2)
        tokens = Tokens(random(B, 16, WIDTH, seed=3), random(B, 16, WIDTH, seed=4))
        for context in (adapter.embed(text, *tokens, strength=1.3), text, adapter.embed(text, tokens.style, None)):
            ours = layer(x, encoder_hidden_states=context)
            theirs = model.block(block, number)(x, context, model.patches, model.replaced[block, number])
            torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=1e-5)
    finally:
        adapter.eject()


def test_patching_leaves_the_given_model_alone_and_refuses_others(sd15):
    unet, adapter = sd15
    model = FakeModel(unet)
    patched = patching.patch_model(model, adapter)
    assert len(patched.replaced) == 16 and len(patched.patches) == 1 and not model.replaced and not model.patches
    with pytest.raises(deadiff.ConfigError, match=r"Stable Diffusion 1\.x"):
        patching.patch_model(model, tiny_adapter(tiny_unet("icons"), "icons"))
    smaller = FakeModel(unet)
    smaller.model.diffusion_model.output_blocks = smaller.model.diffusion_model.output_blocks[:6]
    with pytest.raises(deadiff.ConfigError, match="output 6"):
        patching.patch_model(smaller, adapter)


def test_conditionings_carry_the_tokens_and_a_controlnet_sees_the_text_alone(sd15):
    _, adapter = sd15
    node = NODES["DEADiffApply"]()
    text, negative = random(1, 154, WIDTH, seed=1), random(1, 77, WIDTH, seed=2)
    tokens = Tokens(random(1, 16, WIDTH, seed=3), None)
    given = [[text, {"pooled_output": "kept"}]]
    _, live, idle = node.apply(FakeModel(sd15[0]), given, [[negative, {}]], adapter, tokens, 0.5, 1.0)
    assert live[0][0].shape == (1, 154 + 32, WIDTH) and idle[0][0].shape == (1, 77 + 32, WIDTH)
    torch.testing.assert_close(live[0][0][:, 154:170], 0.5 * tokens.style)
    assert not live[0][0][:, 170:].any() and not idle[0][0][:, 77:].any()
    assert live[0][1]["cross_attn_controlnet"] is text and live[0][1]["pooled_output"] == "kept"
    assert given == [[text, {"pooled_output": "kept"}]]
    with pytest.raises(deadiff.ConfigError, match="multiple of 77"):
        node.apply(FakeModel(sd15[0]), [[random(1, 64, WIDTH), {}]], [], adapter, tokens, 1.0, 1.0)


def test_references_are_encoded_from_comfyui_images_and_mixed(sd15):
    _, adapter = sd15
    images = [torch.tensor(list(picture(seed, (20, 20)).tobytes())).view(1, 20, 20, 3) / 255 for seed in (1, 2)]
    encode = NODES["DEADiffEncodeReference"]().encode
    (first,), (second,) = (encode(adapter, image, "style") for image in images)
    torch.testing.assert_close(first.style, adapter.encode(style=picture(1, (20, 20))).style)
    assert first.content is None and encode(adapter, images[0], "style and content")[0].content is not None
    (batch,) = encode(adapter, torch.cat(images), "style")
    (mixed,) = NODES["DEADiffMixReferences"]().mix(first, second, 1.0, 1.0)
    torch.testing.assert_close(batch.style, mixed.style)
    (both,) = NODES["DEADiffMixReferences"]().mix(first, encode(adapter, images[1], "content")[0], 1.0, 0.3)
    torch.testing.assert_close(both.style, first.style)
    assert both.content is not None
    with pytest.raises(deadiff.ConfigError, match="weights are 0"):
        NODES["DEADiffMixReferences"]().mix(first, second, 0.0, 0.0)


def test_stylise_gives_comfyui_images_that_equal_the_stylizers(tmp_path):
    folder = tiny_model_folder(tmp_path / "model", "icons")
    stylizer, adapter = NODES["DEADiffLoad"]().load(str(folder), "auto")
    image = torch.tensor(list(picture(1).tobytes())).view(1, 30, 40, 3) / 255
    (tokens,) = NODES["DEADiffEncodeReference"]().encode(adapter, image, "style")
    options = {"pictures": 2, "seed": 7, "steps": 2, "guidance": -1.0, "solver": "ddim", "strength": 1.0, "content_strength": 1.0}
    (drawn,) = NODES["DEADiffStylise"]().stylise(stylizer, "a robot", "", tokens=tokens, **options)
    assert drawn.shape == (2, 128, 128, 3) and drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() <= 1
    expected = stylizer("a robot", style=tokens, num_images=2, seed=7, num_inference_steps=2, scheduler="ddim").images
    assert (drawn[1] * 255).round().to(torch.uint8).numpy().tobytes() == expected[1].tobytes()
    (plain,) = NODES["DEADiffStylise"]().stylise(stylizer, "a robot", "", **options)
    assert not torch.equal(plain, drawn)


def test_the_example_workflows_name_only_nodes_and_inputs_that_exist():
    found = sorted((ROOT / "example_workflows").glob("*.json"))
    assert len(found) == 2
    for path in found:
        workflow = json.loads(path.read_text())
        assert any(step["class_type"] in NODES for step in workflow.values())
        for step in workflow.values():
            for value in step["inputs"].values():
                assert not isinstance(value, list) or value[0] in workflow
            if step["class_type"] in NODES:
                inputs = NODES[step["class_type"]].INPUT_TYPES()
                assert set(inputs["required"]) <= set(step["inputs"]) <= {name for group in inputs.values() for name in group}


# ---- inside ComfyUI's own code ----


@pytest.fixture(scope="module")
def real():
    return import_comfyui()


@pytest.fixture(scope="module")
def wide_unet():
    """ComfyUI's class has 32 groups in every norm: so must ours, and so 32 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=32,
            sample_size=8,
        ).eval()


def in_comfyui(unet: Any) -> Any:
    """The weights of a diffusers U-Net in ComfyUI's class, by ComfyUI's own table of names."""
    from comfy import ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.utils import unet_to_diffusers

    config = {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 1, 1, 1], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        "context_dim": WIDTH, "num_heads": 2, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False,
    }  # fmt: skip
    table, source = unet_to_diffusers(config), unet.state_dict()
    made = UNetModel(**copy.deepcopy(config), dtype=torch.float32, device="cpu", operations=ops.disable_weight_init)
    weights = {theirs: source[ours] for ours, theirs in table.items() if ours in source}
    assert set(weights) == set(made.state_dict())
    made.load_state_dict(weights)
    return made.eval()


@pytest.mark.filterwarnings("default")
def test_comfyui_itself_loads_the_package(real):
    assert asyncio.run(real.load_custom_node(str(ROOT)))
    for name, node in NODES.items():
        theirs = real.NODE_CLASS_MAPPINGS[name]
        assert theirs.__name__ == node.__name__ and theirs.RELATIVE_PYTHON_MODULE.endswith("comfyui")


@pytest.mark.filterwarnings("default")
def test_the_whole_network_inside_comfyui_equals_ours(real, wide_unet):
    from comfy.model_patcher import ModelPatcher

    adapter = tiny_adapter(wide_unet, "sd15")
    ours, theirs = copy.deepcopy(wide_unet), in_comfyui(wide_unet)
    holder = nn.Module()
    holder.diffusion_model = theirs
    cpu = torch.device("cpu")
    model = patching.patch_model(ModelPatcher(holder, cpu, cpu), adapter)
    options = model.model_options["transformer_options"]

    latents, times = random(B, 4, 8, 8, seed=1), torch.tensor([981.0, 3.0])
    text = random(B, 77, WIDTH, seed=2)
    tokens = Tokens(random(B, 16, WIDTH, seed=3), random(B, 16, WIDTH, seed=4))
    adapter.inject(ours)
    try:
        with torch.no_grad():
            for context in (adapter.embed(text, *tokens, strength=1.3), adapter.embed(text, *adapter.idle(tokens)), text):
                expected = ours(latents, times, encoder_hidden_states=context).sample
                got = theirs(latents, times, context=context, transformer_options=dict(options))
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
            plain = theirs(latents, times, context=text)
            torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-4)
    finally:
        adapter.eject()


@pytest.mark.filterwarnings("default")
def test_comfyui_validates_and_runs_the_stylise_workflow(real, tmp_path, monkeypatch):
    import execution
    import folder_paths

    asyncio.run(real.load_custom_node(str(ROOT)))
    for kind in ("input", "output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    picture(1).save(tmp_path / "input" / "neon-camera.png")
    workflow = json.loads((ROOT / "example_workflows" / "stylise.json").read_text())
    for step in workflow.values():
        if step["class_type"] == "DEADiffLoad":
            step["inputs"]["model"] = str(tiny_model_folder(tmp_path / "model", "icons"))
        if step["class_type"] == "DEADiffStylise":
            step["inputs"] |= {"steps": 2, "pictures": 2}
    valid = asyncio.run(execution.validate_prompt("id", workflow, None))
    assert valid[0], valid[1:]

    server = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_, **__: None)
    executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0.0})
    executor.execute(workflow, "id", {}, valid[2])
    assert executor.success, executor.status_messages
    assert len(list((tmp_path / "output").glob("*.png"))) == 2
