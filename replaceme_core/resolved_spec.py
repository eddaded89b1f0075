"""The resolved specification: what a runner carries out, with every default filled in.

A type of its own, so that code that computes need not check whether a field is still open.
"""

from typing import Self

from replaceme_core.spec import CalibrationSpec, CompressionSpec, ComputeSpec, Dtype


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length."""

    samples: int
    max_length: int


class ResolvedCompute(ComputeSpec):
    """With everything that decides the rounding."""

    device: str
    dtype: Dtype
    batch_size: int
    threads: int
    shards: int


class ResolvedSpec(CompressionSpec):
    """What is carried out: every default filled in, on the machine that does the work. Its JSON is that of its base."""

    calibration: ResolvedCalibration
    compute: ResolvedCompute

    @classmethod
    def of(cls, spec: CompressionSpec) -> Self:
        """A stored specification that was resolved before. Raises `ValueError` where something is still open."""
        return cls.model_validate(spec.model_dump())
