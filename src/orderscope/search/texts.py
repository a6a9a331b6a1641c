"""Numbers computed from a sample's text alone. All functions are pure and take one sample."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

LEAST = 4  # shorter rows of integers are taken for labels or sizes, not for token ids
Text = str | np.ndarray


def text_of(sample: Any) -> Text | None:
    """The text of a sample: a string, or a row of token ids, int64 [tokens]; None if there is none.

    The sample itself is checked first, then its items in sequence; in a mapping the keys `input_ids` and `text` come
    first. If a mapping has an `attention_mask`, masked tokens are left out.

    Args:
        sample: a sample of a data set: text, bytes, tensor, array, sequence or mapping.
    """
    if isinstance(sample, bytes):
        return sample.decode("utf-8", errors="replace")
    if isinstance(sample, str):
        return sample
    if isinstance(sample, torch.Tensor | np.ndarray):
        row = np.asarray(sample)
        return row.astype(np.int64) if row.ndim == 1 and row.dtype.kind in "iu" and len(row) >= LEAST else None
    if isinstance(sample, Mapping):
        first = [sample[key] for key in ("input_ids", "text") if key in sample]
        text = next((t for t in map(text_of, [*first, *sample.values()]) if t is not None), None)
        if isinstance(text, np.ndarray) and "attention_mask" in sample:
            mask = np.asarray(sample["attention_mask"]).astype(bool)
            return text[mask] if mask.shape == text.shape else text
        return text
    if isinstance(sample, Sequence):
        whole = len(sample) >= LEAST and all(isinstance(item, int) for item in sample)
        if whole:
            return np.asarray(sample, dtype=np.int64)
        return next((t for t in map(text_of, sample) if t is not None), None)
    return None


def length(text: Text) -> float:
    """Number of tokens, or of characters of a string."""
    return float(len(text))


def compression_ratio(text: Text) -> float:
    """Bytes after zlib compression at level 9 over bytes before: low for repetitive text.

    Source: Yin et al., "Entropy law: the story behind data compression and LLM performance", arXiv 2407.06645 (there
    the inverse).
    """
    raw = text.encode() if isinstance(text, str) else _bytes(text)
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


def lexical_diversity(text: Text) -> float:
    """Distinct tokens over tokens (words of a string): the type-token ratio.

    Example:
        >>> lexical_diversity("a rose is a rose")
        0.6
    """
    tokens = text.lower().split() if isinstance(text, str) else text.tolist()
    return len(set(tokens)) / len(tokens) if tokens else 1.0


def readability(text: Text) -> float | None:
    """The automated readability index, 4.71 characters/words + 0.5 words/sentences - 21.43; None for token ids.

    Source: Smith and Senter, "Automated readability index", AMRL-TR-66-220, 1967.
    """
    if not isinstance(text, str):
        return None
    words = re.findall(r"\w+", text)
    if not words:
        return 0.0
    sentences = max(1, len(re.findall(r"[.!?]+", text)))
    return 4.71 * sum(map(len, words)) / len(words) + 0.5 * len(words) / sentences - 21.43


def _bytes(tokens: np.ndarray) -> bytes:
    """The tokens as bytes, with the smallest integer type that holds them all."""
    top = int(tokens.max(initial=0))
    return tokens.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int64).tobytes()
