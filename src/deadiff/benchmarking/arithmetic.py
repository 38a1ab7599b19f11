"""How much arithmetic a step takes, counted without running it: what the times should show, free of the machine's moods."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from deadiff.adapter import Tokens
from deadiff.benchmarking import variants as v
from deadiff.benchmarking.models import Size, build_adapter, build_unet


def count_operations(size: Size) -> dict[str, int]:
    """Variant -> floating-point operations of one step at batch 2 (a multiplication and an addition count as two).

    Shapes alone, on the "meta" device: seconds even at full size. Attention counts as its two matrix products.
    """
    meta, dtype = torch.device("meta"), torch.float32
    unet = build_unet(size, dtype, meta)
    inputs = v.make_inputs(size, dtype, meta)
    adapter = build_adapter(size, unet, dtype, meta)
    ip = v.IPAdapterPlus(size, unet, dtype, meta)
    token = inputs.text.new_empty(1, v.NUM_TOKENS, inputs.text.shape[-1])
    seen = (size.ip_vision["image_size"] // size.ip_vision["patch_size"]) ** 2 + 1  # patches and the class token
    image_embeds = inputs.text.new_empty(2, 1, seen, size.ip_vision["hidden_size"])
    variants = {
        v.PLAIN: v.plain_variant(unet, inputs),
        v.DEADIFF: v.deadiff_variant(unet, inputs, adapter, Tokens(token, token)),
        v.IP_ADAPTER: v.ip_adapter_variant(unet, inputs, ip, image_embeds),
    }
    operations = {}
    for name, enter in variants.items():
        with enter() as step, FlopCounterMode(display=False) as counter:
            step()
        operations[name] = counter.get_total_flops()
    return operations
