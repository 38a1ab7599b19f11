"""A U-Net that is shown its sketch: what the text tower's sketch tokens say of each patch is laid out beside the noisy latents.

A small base that has to find the sketch through its cross-attention needs hundreds of thousands of pictures to learn which
token belongs where. Laid out as a picture it is there from the first step, and the attention is free for words and references.
The content reference speaks the same language (deadiff.training.alignment): what its tokens say of a patch is added to the
canvas.

B batch, Z latent channels, h = w latents a side, T text tokens, G sketch tokens and as many content tokens, C token width.
"""

import inspect
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, cat, nn
from torch.nn import functional as F

from deadiff.sketch import PATCH, latents_of


class CanvasUNet(UNet2DConditionModel):
    """diffusers' U-Net whose first convolution reads 2 Z channels: [noisy latents | canvas].

    text_length: T, of which the last G = (sample_size / PATCH)^2 are the sketch. `encoder_hidden_states` are (B, T, C), or longer
    with the tokens of references behind: G of style, G of content (deadiff.attention.TokenLayout).
    """

    def __init__(self, *, text_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_to_config(text_length=text_length)
        first = self.conv_in
        self.conv_in = nn.Conv2d(2 * first.in_channels, first.out_channels, first.kernel_size, padding=first.padding)  # pyright: ignore

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """As UNet2DConditionModel.forward, sample (B, Z, h, w); the canvas is stretched to other sizes than the U-Net's own."""
        canvas = self.canvas(encoder_hidden_states).to(sample)
        if canvas.shape[-2:] != sample.shape[-2:]:
            canvas = F.interpolate(canvas, sample.shape[-2:], mode="bilinear")
        return super().forward(cat([sample, canvas], 1), timestep, encoder_hidden_states, *args, **kwargs)

    def canvas(self, tokens: Tensor) -> Tensor:
        """(B, T or more, C) -> (B, Z, h, w): the text's sketch, and the content reference's added to it where there is one."""
        side, channels, text = self.config.sample_size, self.config.in_channels, self.config.text_length  # pyright: ignore
        count, values = (side // PATCH) ** 2, channels * PATCH * PATCH
        patches = tokens[:, text - count : text, :values]
        references = tokens[:, text:]
        if references.shape[1] // 2 == count:  # [style | content]; anything else is no content reference of this base's
            patches = patches + references[:, count : 2 * count, :values]
        return latents_of(patches, side)


def _signature() -> inspect.Signature:
    """diffusers reads from it which values of a saved config belong to the class."""
    sizes = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    return inspect.Signature([*sizes, inspect.Parameter("text_length", inspect.Parameter.KEYWORD_ONLY)])


CanvasUNet.__init__.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]


def unet_class(config: dict[str, Any]) -> type[UNet2DConditionModel]:
    """The class that a saved config asks for."""
    return CanvasUNet if "text_length" in config else UNet2DConditionModel


def load_unet(folder: Any) -> UNet2DConditionModel:
    """A U-Net saved by save_pretrained, with its canvas if it has one."""
    return unet_class(UNet2DConditionModel.load_config(folder)).from_pretrained(folder)  # pyright: ignore
