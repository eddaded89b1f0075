"""Which entries of a map may differ from the identity. Knows the standard library only."""

from enum import StrEnum


class MapStructure(StrEnum):
    """`DIAGONAL` where a norm stands between the projection and the stream: no other map can pass it.

    `BIAS` is a full map and a constant, where the projection has a bias to take that up.
    """

    FULL = "full"
    DIAGONAL = "diagonal"
    BIAS = "bias"
