"""Batch sizes that share a draft length."""

from __future__ import annotations


def batch_cell(batch_size: int) -> int:
    """Upper end of the cell of a batch size: exact up to 8, then four cells an octave.

    >>> [batch_cell(b) for b in (1, 8, 9, 17, 33, 100)]
    [1, 8, 10, 20, 40, 112]
    """
    if batch_size <= 8:
        return batch_size
    width = 1 << (batch_size - 1).bit_length() - 3
    return -(-batch_size // width) * width
