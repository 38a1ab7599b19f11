"""Run by torchrun in two processes: three steps whole, then three with every weight sharded by FSDP; prints both as JSON."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers.models.attention import BasicTransformerBlock
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerLayer

import scale_training as scale
from deadiff.training.accelerated import start_adapter
from deadiff.training.adapter_step import AdapterStep
from deadiff.training.average import Average, put, whole
from deadiff.training.bases import load_base
from deadiff.training.features import Features
from deadiff.training.initialise import select_trained
from deadiff.training.objectives import Live, Objective


def three_steps(model: Path, sharded: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and weights, average and optimiser state as they go into a checkpoint."""
    recipe = scale.recipe(model)
    base = load_base(recipe.base, torch.float32)
    base.unet.enable_gradient_checkpointing()
    adapter = start_adapter(recipe, base).eval()
    sample = Features(base, adapter, scale.FakePairs()).sample(Objective.STRE, 0, 2)
    step = AdapterStep(adapter, base, base.read_text([""]))
    select_trained(adapter)
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in list(step.modules()):
            if isinstance(module, BasicTransformerBlock | InstructBlipQFormerLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(step, mesh=mesh)
    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    optimizer, average = torch.optim.AdamW(trained.values(), lr=1e-3), Average(trained)
    losses = []
    for number in range(3):
        loss = step(sample, Live(*torch.ones(3, 2, dtype=torch.bool)), torch.Generator().manual_seed(number))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(0.5)
        losses.append(float(loss.detach()))
        for p, value in zip(trained.values(), [whole(p) for p in trained.values()], strict=True):
            put(p, value)  # as a resume would
    state = {name: whole(p) for name, p in trained.items()}
    state |= {f"average {name}": whole(value) for name, value in average.values.items()}
    return losses, state | {f"moment {name}": whole(optimizer.state[p]["exp_avg"]) for name, p in trained.items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    (losses, state), (sharded_losses, sharded_state) = (three_steps(Path(sys.argv[1]), sharded) for sharded in (False, True))
    difference = max(float((state[name] - sharded_state[name]).abs().max()) for name in state)
    if dist.get_rank() == 0:
        print(json.dumps({"whole": losses, "sharded": sharded_losses, "difference": difference}))  # noqa: T201
    dist.destroy_process_group()
