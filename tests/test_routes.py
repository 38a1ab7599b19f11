"""Every cross-attention layer of every base is routed exactly once."""

import pytest

import small_models
from deadiff.errors import ConfigError
from deadiff.routes import ROUTES, Role, cross_attention_layers, match_routes, resolve_routes


@pytest.mark.parametrize(("base", "layers", "content"), [("sd15", 16, 5), ("icons", 16, 5), ("sdxl", 70, 40)])
def test_every_cross_attention_layer_is_routed_exactly_once(base, layers, content):
    matched = match_routes(small_models.unet(base), ROUTES[base])
    assert len(matched) == len({id(layer) for layer in matched.values()}) == layers
    assert sum(role is Role.CONTENT for role in ROUTES[base].values()) == content


@pytest.mark.parametrize("base", ["sd15", "icons"])
def test_content_enters_the_fifth_to_the_ninth_layer_executed(base):
    net, executed = small_models.unet(base), []
    for path, layer in cross_attention_layers(net).items():
        layer.register_forward_hook(lambda *_, path=path: executed.append(path))
    net(small_models.noise(1, 4, 8, 8), 10, small_models.noise(1, 20, small_models.WIDTH))
    assert executed == list(ROUTES[base]), "the table is written in execution order"
    assert [i for i, path in enumerate(executed) if ROUTES[base][path] is Role.CONTENT] == [4, 5, 6, 7, 8]


def test_sdxl_gives_its_coarse_level_to_content_but_for_the_layers_known_for_style():
    roles = {path.split(".transformer_blocks")[0]: role for path, role in ROUTES["sdxl"].items()}
    assert {path for path, role in roles.items() if role is Role.CONTENT} == {
        "down_blocks.2.attentions.0",
        "down_blocks.2.attentions.1",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
    }
    assert roles["up_blocks.0.attentions.1"] is Role.STYLE


def test_self_attention_and_other_attentions_are_not_layers():
    assert all("attn1" not in path for path in cross_attention_layers(small_models.unet("sdxl")))


def test_a_table_for_another_base_is_refused_with_both_sides_of_the_misfit():
    with pytest.raises(
        ConfigError, match=r"3 of its 16 .* have no role .*up_blocks.0.* 3 routed paths do not exist .*up_blocks.3"
    ):
        match_routes(small_models.unet("icons"), ROUTES["sd15"])


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ("sd3", "no route table is called 'sd3': expected sd15, icons, sdxl"),
        ({"mid_block.attentions.0": "texture"}, "role 'texture': expected one of style, content, both"),
        ({}, "empty"),
    ],
)
def test_tables_that_cannot_be_used_say_why(routes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_routes(routes)


def test_a_resolved_table_is_plain_data():
    assert set(map(type, resolve_routes("sd15").values())) == {str}
    assert resolve_routes({"mid_block.attentions.0": Role.STYLE}) == {"mid_block.attentions.0": "style"}
