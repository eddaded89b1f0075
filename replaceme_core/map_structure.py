"""The structure of a linear map: which of its entries may differ from the identity. Standard library only."""

from enum import StrEnum


class MapStructure(StrEnum):
    """A norm between a projection and the residual stream admits a diagonal map only."""

    FULL = "full"
    DIAGONAL = "diagonal"
