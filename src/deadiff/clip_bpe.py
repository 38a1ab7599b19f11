"""CLIP's tokenizer from the one file it was published in, bpe_simple_vocab_16e6.txt.gz: no hub needed."""

import gzip
import zlib
from pathlib import Path

from transformers import CLIPTokenizer

from deadiff.errors import CheckpointError

MERGES = 49152 - 256 - 2  # of the file's 262,144 lines CLIP uses the first ones (openai/CLIP, simple_tokenizer.py)
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The 256 bytes as printable characters, in GPT-2's order: the printable ones as themselves, then the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def read_merges(path: Path) -> list[str]:
    """bpe_simple_vocab_16e6.txt.gz -> CLIP's merges, "a b" each, best first. Raises CheckpointError for another file."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read '{path}' as bpe_simple_vocab_16e6.txt.gz: {error}") from error
    merges = lines[1 : 1 + MERGES]  # the first line is a version note
    if len(merges) != MERGES or any(merge.count(" ") != 1 for merge in merges):
        raise CheckpointError(f"'{path}' holds {len(lines)} lines: expected CLIP's bpe_simple_vocab_16e6.txt.gz with 262,145")
    return merges


def tokenizer_from_merges(merges: list[str], length: int = 77) -> CLIPTokenizer:
    """Ids in CLIP's order: bytes, bytes that end a word, merges, start, end. Padding is the end token (49407), as in SD 1.x."""
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges), START, END]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)  # pyright: ignore[reportArgumentType]
