"""Records of TensorBoard's event files (TFRecord): length, data, and a checksum of each.

TensorBoard's own writer takes the checksum byte by byte in Python, longer than all else together.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

POLYNOMIAL = 0x82F63B78
"""Of CRC-32C (Castagnoli), reflected."""
BLOCK = 1024
"""Bytes that are looked up at once."""


def record(data: bytes) -> bytes:
    """The data as one record."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    """The checksum as the format has it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32C: each byte adds, by its distance from the end, a number from a table."""
    crc = 0xFFFFFFFF
    for start in range(0, len(data), BLOCK):
        block = np.frombuffer(data[start : start + BLOCK], np.uint8).copy()
        size = len(block)
        block[:4] ^= np.frombuffer(struct.pack("<I", crc), np.uint8)[:size]
        numbers = _table()[BLOCK - size :][np.arange(size), block]
        crc = crc >> 8 * min(4, size) ^ int(np.bitwise_xor.reduce(numbers))
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    """The number of each byte at each place of a block. [BLOCK, 256] uint32."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ np.uint32(POLYNOMIAL), last >> 1).astype(np.uint32)
    table = np.empty((BLOCK, 256), np.uint32)
    table[-1] = last
    for place in range(BLOCK - 2, -1, -1):  # another byte follows
        behind = table[place + 1]
        table[place] = behind >> 8 ^ last[behind & 255]
    return table
