"""How large the job of a caller may be, checked before the job exists. Imports no torch."""

from dataclasses import dataclass

from replaceme_core.errors import LimitExceeded
from replaceme_core.hub.port import Snapshot
from replaceme_core.request.resolve import usual_size
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.request.worker_kind import WorkerKind, worker_kind_of

_WEIGHTS = (".safetensors",)


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """`model_bytes` of all weights in the repository, calibration `tokens`; `None`: no limit."""

    model_bytes: int | None = None
    tokens: int | None = None

    def check_model(self, snapshot: Snapshot) -> None:
        """Raises `LimitExceeded` (field `model`)."""
        size = sum(file.size for file in snapshot.files if file.path.endswith(_WEIGHTS) and "/" not in file.path)
        if self.model_bytes is not None and size > self.model_bytes:
            raise LimitExceeded(
                f"the weights of {snapshot.repo_id} are {size:,} bytes; this caller may use models of at most "
                f"{self.model_bytes:,}",
                field="model",
                value=snapshot.repo_id,
            )

    def check_tokens(self, spec: CompressionSpec) -> None:
        """Raises `LimitExceeded` (field `calibration.samples`). Where no device is named, that with more counts."""
        samples, length = usual_size(spec, on_cpu=worker_kind_of(spec.compute.device) is WorkerKind.CPU)
        tokens = samples * length
        if self.tokens is not None and tokens > self.tokens:
            raise LimitExceeded(
                f"{samples:,} samples are up to {tokens:,} tokens; this caller may use at most {self.tokens:,}: give "
                "fewer samples, or a smaller max_length",
                field="calibration.samples",
                value=spec.calibration.samples,
            )


NO_SIZE_LIMITS = SizeLimits()
