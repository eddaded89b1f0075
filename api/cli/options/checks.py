"""Checks of option values that several commands share."""

import math

import typer


def finite(value: float | None) -> float | None:
    """A callback for options: refuses NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value
