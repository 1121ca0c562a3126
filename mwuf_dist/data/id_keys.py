"""Hashes of raw IDs: what a draw for an item or a user depends on, whatever index it has."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


def id_keys(ids: pa.Array) -> np.ndarray:
    """Returns 64-bit hashes of raw IDs [n], uint64: of a number the same whether it was read as one or as text."""
    if pa.types.is_integer(ids.type):
        return mixed(ids.cast(pa.int64()).to_numpy().view(np.uint64))
    text = ids.cast(pa.string())
    number = pc.match_substring_regex(text, _INTEGER).to_numpy(zero_copy_only=False)
    keys = np.empty(len(ids), dtype=np.uint64)
    keys[number] = mixed(text.filter(pa.array(number)).cast(pa.int64()).to_numpy().view(np.uint64))
    hashes = [
        hashlib.blake2b(one.encode(), digest_size=8).digest() for one in text.filter(pa.array(~number)).to_pylist()
    ]
    keys[~number] = np.frombuffer(b"".join(hashes), dtype="<u8")
    return keys


def mixed(values: np.ndarray) -> np.ndarray:
    """Hashes [n] of uint64 [n]: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16), a bijection."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
