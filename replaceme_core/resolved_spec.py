"""The resolved specification: what a runner carries out, with every default filled in.

A type of its own, so that code that computes need not check whether a field is still open.
"""

from typing import Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.calibration_spec import CalibrationSpec
from replaceme_core.method_spec import MethodSpec
from replaceme_core.method_traits import Method
from replaceme_core.spec import CompressionSpec, ComputeSpec, Dtype


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length; of one `dataset` also with `self_generated`."""

    samples: int
    max_length: int

    @model_validator(mode="after")
    def _share_is_known(self) -> Self:
        if self.dataset is not None and self.self_generated is None:
            raise PydanticCustomError("still_open", "self_generated is still open", {"field": "self_generated"})
        return self


class ResolvedMethod(MethodSpec):
    """With its name."""

    name: Method


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
    method: ResolvedMethod
    compute: ResolvedCompute

    @classmethod
    def of(cls, spec: CompressionSpec) -> Self:
        """A stored specification that was resolved before. Raises `ValueError` where something is still open."""
        return cls.model_validate(spec.model_dump())
