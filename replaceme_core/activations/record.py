"""What a capture pass took, for the report."""

from dataclasses import asdict, dataclass

from replaceme_core.numerics.moments import SOLVE_DTYPE

MATRICES = 4  # M'M and M'E, over fit and over held-out tokens


@dataclass(frozen=True, kw_only=True)
class CaptureRecord:
    """What a job's captured streams and sums took.

    `dense_block_runs` counts the runs of a block of the dense model on one batch; `cached` tells that an earlier job
    had left what was needed. `stream_bytes` are those of one stream of all tokens, `statistics_bytes` those of the sums
    that were in memory at once, `kept_bytes` those of all streams and sums that were kept, in memory or in files.
    `batch_halvings` tells how often memory ran out in a block and the batch was halved.
    """

    dense_block_runs: int
    cached: bool
    stream_bytes: int
    statistics_bytes: int
    kept_bytes: int
    batch_halvings: int

    def as_dict(self) -> dict[str, int | bool]:
        return asdict(self)

    def metrics(self) -> list[tuple[str, float, str]]:
        """Name, value, unit."""
        sizes = [(name, float(getattr(self, name)), "bytes") for name in ("stream_bytes", "statistics_bytes")]
        halvings = [("batch_halvings", float(self.batch_halvings), "times")] if self.batch_halvings else []
        return [("dense_block_runs", float(self.dense_block_runs), "runs"), *sizes, *halvings]


def statistics_bytes(*, cuts: int, width: int) -> int:
    """Bytes of the sums of so many cuts."""
    return cuts * MATRICES * width * width * SOLVE_DTYPE.itemsize
