"""Which entries of a map may differ from the identity. Knows the standard library only."""

from enum import StrEnum


class MapStructure(StrEnum):
    """`DIAGONAL` where a norm stands between the projection and the stream: no other map can pass it."""

    FULL = "full"
    DIAGONAL = "diagonal"
