"""Weights that need no storage: each is a function of its key and shape alone, exactly representable in fp16.

PCG64's raw stream is guaranteed stable by numpy. The rules are those under which the recordings of this folder were made.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 20  # numbers at a time: small enough to stay in the cache


def uniform(key: str, n: int) -> np.ndarray:
    """n float32 in [-1, 1), multiples of 2**-23, from the stream that the key seeds."""
    stream = np.random.PCG64(zlib.crc32(key.encode()))
    out = np.empty(n, np.float32)
    for i in range(0, n, CHUNK):
        raw = stream.random_raw(min(CHUNK, n - i))
        np.right_shift(raw, np.uint64(40), out=raw)
        part = out[i : i + CHUNK]
        part[:] = raw  # 24 bits: exact
        part *= np.float32(2**-23)
        part -= np.float32(1)
    return out


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 weight of this key: norms near 1, small biases, embeddings in +-0.5, matrices of unit gain."""
    x = uniform(key, math.prod(shape))
    if len(shape) == 1 and key.endswith(".weight"):
        x *= np.float32(0.1)
        x += np.float32(1)
    elif key.endswith("bias"):
        x *= np.float32(0.05)
    elif "embedding" in key or key.endswith("query_tokens"):
        x *= np.float32(0.5)
    elif len(shape) >= 2:
        std = np.float32(1.0 / np.sqrt(np.prod(shape[1:])))
        x *= np.float32(math.sqrt(3.0)) * std
        if "attn" in key and any(name in key for name in (".to_q.", ".to_k.", ".i_to_k.")):
            x *= np.float32(1.5)
    return torch.from_numpy(x).half().float().reshape(shape)
