"""The methods and the structures of maps that a family supports."""

from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import Layout
from replaceme_core.request.method_traits import TRAITS, MapStructure, Method
from replaceme_core.request.spec import CompressionSpec


def methods_of(row: Layout) -> tuple[Method, ...]:
    """The methods that work for a family."""
    return tuple(method for method in Method if not (TRAITS[method].needs_like_blocks and row.neighbours_differ))


def structures_of(row: Layout) -> tuple[MapStructure, ...]:
    """The structures of a map that can be folded into the family's blocks, the default first."""
    diagonal = any(fold.kind.diagonal for folds in row.folds for fold in folds)
    return (MapStructure.DIAGONAL,) if diagonal else (MapStructure.FULL, MapStructure.DIAGONAL)


def check_structure(spec: CompressionSpec, row: Layout) -> None:
    """Raise `InvalidInput` if a map of the requested structure cannot be folded into the family's blocks."""
    possible, asked = structures_of(row), spec.method.structure
    if asked is not None and asked not in possible:
        raise InvalidInput(
            f"{row.model_type} has a norm between its MLP and the stream, so only a diagonal map can be folded",
            field="method.structure",
            value=asked,
        )
