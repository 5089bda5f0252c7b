"""In which order shapes are made ready, where time or memory may end before all are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from vllm_nfp.probe.shapes import ShapeKey


def spread(keys: Collection[ShapeKey]) -> list[ShapeKey]:
    """An order of which every beginning lies well spread over batch sizes and positions.

    The surface infers step times between shapes that were measured. So the next shape is always the
    one that is farthest from all before it, in octaves of both. A pair needs one position as well:
    it comes ahead of the first other shape of its batch size. The first pair is that of the
    smallest batch size and its most positions. Equal on all ranks.

    Args:
        keys: (batch size, positions); those of a batch size without one position are left out.
    """
    ones = {batch_size for batch_size, positions in keys if positions == 1}
    # Of shapes equally far the first is taken: few sequences, then many positions.
    left = sorted((key for key in keys if key[0] in ones), key=lambda key: (key[0], -key[1]))
    octaves = np.log2(np.array(left, dtype=float).reshape(-1, 2))
    distance = np.full(len(left), np.inf)
    index = {key: place for place, key in enumerate(left)}
    order: list[ShapeKey] = []
    while len(order) < len(left):
        farthest = left[int(distance.argmax())]
        for key in dict.fromkeys(((farthest[0], 1), farthest)):
            place = index[key]
            if distance[place] >= 0.0:
                order.append(key)
                apart = np.hypot(*(octaves - octaves[place]).T)
                distance = np.where(distance < 0.0, distance, np.minimum(distance, apart))
                distance[place] = -1.0
    return order


def kinds_first(keys: Sequence[ShapeKey]) -> list[ShapeKey]:
    """The same order, but each number of positions comes first once, with the fewest sequences.

    Triton compiles kernels of recurrent states for each number of positions, and those of experts
    for numbers of rows that 16 does not divide, which few sequences have. What is compiled at the
    start delays nobody.
    """
    fewest: dict[int, ShapeKey] = {}
    for key in keys:
        fewest[key[1]] = min(key, fewest.get(key[1], key))
    return list(dict.fromkeys((*fewest.values(), *keys)))
