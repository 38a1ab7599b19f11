"""`deadiff bench`: what a step, a picture, the memory and the start cost, ours beside plain Stable Diffusion and IP-Adapter."""
