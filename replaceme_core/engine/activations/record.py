"""What the capture of activations cost, for the report."""

from dataclasses import asdict, dataclass

from replaceme_core.engine.numerics.moments import SOLVE_DTYPE

MATRICES = 4  # M'M and M'E, over fit and over held-out tokens


@dataclass(frozen=True, kw_only=True)
class CaptureRecord:
    """Work and memory of a job's streams and sums.

    `dense_block_runs` counts the runs of a block of the dense model on one batch; `cached` says whether the activations
    came from the cache. `stream_bytes` is the size of one stream of all tokens, `statistics_bytes` of the sums that
    were in memory at once, `kept_bytes` of all streams and sums that were stored, in memory or in files.
    `batch_halvings` counts how often memory ran out in a block and the batch was halved.
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
        """Name, value and unit of each metric."""
        sizes = [(name, float(getattr(self, name)), "bytes") for name in ("stream_bytes", "statistics_bytes")]
        halvings = [("batch_halvings", float(self.batch_halvings), "times")] if self.batch_halvings else []
        return [("dense_block_runs", float(self.dense_block_runs), "runs"), *sizes, *halvings]


def statistics_bytes(*, cuts: int, width: int) -> int:
    """Bytes of the sums of `cuts` cuts in a stream of `width` values."""
    return cuts * MATRICES * width * width * SOLVE_DTYPE.itemsize
