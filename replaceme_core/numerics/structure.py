"""Which entries of a map may differ from the identity. Knows the standard library only."""

from enum import StrEnum


class MapStructure(StrEnum):
    """`DIAGONAL` where a norm between the projection and the stream has to absorb the map."""

    FULL = "full"
    DIAGONAL = "diagonal"
