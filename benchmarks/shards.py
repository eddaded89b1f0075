"""Calibration in shards: time of two workers against one, size of a shard, and its effect on the weights.

    python -m benchmarks.shards [--model DIR] [--pairs 3] [--samples 64] [--shards 8] [--json FILE]

Workers are real (Celery with SQLite and the filesystem broker, a runner process each) and have one thread each. In each
pair, one worker alone runs a job, then two workers run the same job. Compared is the stage `calibrate`, from loading
the model to the sums. On a machine with other load, the processor time of the busiest runner in that stage is the
better figure: it is the time of the stage if each worker has its own processor. A job with a quarter of the tokens
shows whether the size of a shard depends on them, and a job without shards shows how the order of additions changes
sums and weights. The exit status is 1 if two workers are too slow or their weights differ from those of one.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from benchmarks.harness.site import MODEL, Site
from benchmarks.smollm2 import provide
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.process import RUNNER_COMMAND
from worker.workspace import shards_of

LENGTH, RATIO, MOST_SHARE = 512, 0.25, 1 / 1.6
ENVIRONMENT = {
    "REPLACEME_RUNNER_COMMAND": json.dumps(RUNNER_COMMAND),
    "REPLACEME_LEASE_SECONDS": "60",
    "REPLACEME_STATISTICS_CACHE_BYTES": "0",  # otherwise the job without shards would fill the cache for later jobs
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """`workers`: number of shards that each computed; `shard_bytes`: size of the largest file."""

    calibrate_seconds: float
    processor_seconds: float
    """Of the busiest runner, in the stage `calibrate`."""
    whole_seconds: float
    shard_bytes: int
    workers: dict[str, int]
    output: str


@dataclass(kw_only=True)
class Usage:
    """Processor seconds of runners by process id: at their first and last observation."""

    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)

    def look(self, site: Site) -> None:
        for process in site.runners():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # a helper's runner starts within the stage: its imports count
                helps = "--shards" in process.cmdline()
                self.first.setdefault(process.pid, 0.0 if helps else times.user + times.system)
                self.last[process.pid] = times.user + times.system

    @property
    def busiest(self) -> float:
        return max(self.last[pid] - self.first[pid] for pid in self.last)


@contextmanager
def embedded_site(model: Path) -> Iterator[Site]:
    """An installation on SQLite and the filesystem broker, with `model` in its directory hub."""
    with tempfile.TemporaryDirectory(prefix="replaceme-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'ledger.sqlite3'}"
        upgrade(url)
        site = Site(data=Path(folder) / "data", database_url=url, broker_url=None, extra=ENVIRONMENT)
        shutil.rmtree(site.hub_directory / MODEL)
        shutil.copytree(model, site.hub_directory / MODEL)
        try:
            yield site
        finally:
            site.close()


def carry_out(site: Site, options: argparse.Namespace, *, output: str, samples: int, shards: int) -> Run:
    """Run a job to its end. Raises `RuntimeError` if it does not succeed."""
    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": MODEL},
            "ratio": RATIO,
            "calibration": {
                "dataset": "builtin:pydoc-topics",
                "samples": samples,
                "max_length": LENGTH,
                "self_generated": 0.0,
            },
            # a fixed ridge: the stages after the sums do not matter here
            "method": {"name": "least_squares", "replays": 1, "ridge": 0.01},
            "evaluation": {"enabled": False},
            "output": {"repo_id": output},
            "compute": {"device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 2, "shards": shards},
        }
    )
    with site.database.session() as session:
        job_id = Jobs(session).add(spec=spec, owner="benchmark").id
    site.enqueue(job_id)
    began, largest = time.monotonic(), 0
    usage = Usage()
    while (job := site.job(job_id)).status not in TERMINAL:
        if job.stage is Stage.CALIBRATE:
            usage.look(site)
        place = shards_of(site.settings.workspace, job_id)
        for path in place.glob("*.[0-9][0-9][0-9].safetensors") if place.is_dir() else ():
            largest = max(largest, path.stat().st_size)
        time.sleep(0.2)
    if job.status is not JobStatus.SUCCEEDED:
        raise RuntimeError(f"job {job_id} {job.status}: {job.error}")
    with site.database.session(read_only=True) as session:
        metrics = Jobs(session).metrics(job_id)
        news = [event.data["shards"] for event in Jobs(session).events(job_id).items if "shards" in event.data]
    (seconds,) = (each.value for each in metrics if each.name == "seconds" and each.stage == "calibrate")
    last = news[-1] if news else {}
    assert isinstance(last, dict)
    return Run(
        calibrate_seconds=seconds,
        processor_seconds=usage.busiest,
        whole_seconds=time.monotonic() - began,
        shard_bytes=largest,
        workers=dict(last.get("workers", {})),
        output=output,
    )


def pair(site: Site, options: argparse.Namespace, number: int) -> tuple[Run, Run]:
    """Run the same job with one worker and with two; print one line."""
    common = {"samples": options.samples, "shards": options.shards}
    one = carry_out(site, options, output=f"acme/one-{number}", **common)
    second = site.start_worker(name="w2")
    try:
        two = carry_out(site, options, output=f"acme/two-{number}", **common)
    finally:
        second.stop()
    print(
        f"pair {number}: one worker {one.calibrate_seconds:.1f} s, two workers {two.calibrate_seconds:.1f} s (shards "
        f"{sorted(two.workers.values())}), ratio {two.calibrate_seconds / one.calibrate_seconds:.3f}; processor time "
        f"{one.processor_seconds:.1f} and {two.processor_seconds:.1f} s, ratio "
        f"{two.processor_seconds / one.processor_seconds:.3f}; load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return one, two


def difference(site: Site, one: str, other: str) -> tuple[float, int]:
    """The greatest difference of two results relative to its tensor's largest value, and how many tensors differ."""
    worst, differing = 0.0, 0
    paths = [site.hub_directory / name / "model.safetensors" for name in (one, other)]
    with safe_open(paths[0], framework="pt") as first, safe_open(paths[1], framework="pt") as second:
        for name in first.keys():  # noqa: SIM118 - not a mapping
            mine, theirs = first.get_tensor(name).double(), second.get_tensor(name).double()
            apart = float((mine - theirs).abs().max() / mine.abs().max())
            worst, differing = max(worst, apart), differing + (apart > 0)
    return worst, differing


def sums_apart(model: Path, *, shards: int, samples: int) -> tuple[float, float]:
    """The greatest difference of M'M and M'E with and without shards, relative to the largest element; and its bound.

    The bound is 2 (b - 1) u for b batches, relative to the sum of absolute values.
    """
    from replaceme_core.engine.activations.window_sums import capture_windows
    from replaceme_core.engine.model.block_runner import BlockRunner
    from replaceme_core.engine.model.cut import windows
    from replaceme_core.engine.model.load import load_model, load_tokenizer
    from replaceme_core.engine.sharding.sharded_pass import ShardedPass
    from replaceme_core.engine.text.tokens import calibration_tokens
    from replaceme_core.families.resolve import resolve

    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": MODEL},
            "ratio": RATIO,
            "calibration": {
                "dataset": "builtin:pydoc-topics",
                "samples": samples,
                "max_length": LENGTH,
                "self_generated": 0.0,
            },
            "evaluation": {"enabled": False},
            "compute": {"batch_size": 1, "shards": shards},
        }
    )
    loaded = load_model(model, dtype=torch.float32, device="cpu")
    vocabulary = loaded.config.vocab_size
    tokens = calibration_tokens(spec, load_tokenizer(model), paths=[None], vocabulary=vocabulary)
    block_runner = BlockRunner(resolved=resolve(loaded))
    cuts = windows(len(block_runner.blocks), int(RATIO * len(block_runner.blocks) + 0.5))
    given = {"fit": tokens.fit, "held_out": tokens.held_out, "batch_size": 1}
    with torch.inference_mode():
        whole, _ = capture_windows(block_runner, cuts, **given, advance=lambda _: None)
        parts, _ = ShardedPass(spec=spec)(block_runner, cuts, **given, advance=lambda _: None)
    worst = 0.0
    for mine, theirs in zip(whole, parts, strict=True):
        for first, second in ((mine.fit.gram, theirs.fit.gram), (mine.fit.cross, theirs.fit.cross)):
            worst = max(worst, float((first - second).abs().max() / first.abs().max()))
    return worst, 2 * (len(tokens.fit) - 1) * 2.0**-53


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    parser.add_argument("--pairs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=64, help=f"sequences of {LENGTH} tokens (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args()
    model = (options.model or provide(Path("data/smollm2"))).resolve()
    with embedded_site(model) as site:
        site.start_worker()
        pairs = [pair(site, options, number) for number in range(1, options.pairs + 1)]
        fewer = carry_out(site, options, output="acme/fewer", samples=options.samples // 4, shards=options.shards)
        carry_out(site, options, output="acme/whole", samples=options.samples, shards=1)
        one, two = pairs[0]
        same, _ = difference(site, one.output, two.output)
        apart, tensors = difference(site, one.output, "acme/whole")
    ratio = statistics.median(two.calibrate_seconds / one.calibrate_seconds for one, two in pairs)
    busy = statistics.median(two.processor_seconds / one.processor_seconds for one, two in pairs)
    print(f"median ratio {ratio:.3f} (limit {MOST_SHARE}), of processor time {busy:.3f}")
    for run, samples in ((fewer, options.samples // 4), (one, options.samples)):
        print(f"{samples * LENGTH:,} tokens: {run.shard_bytes:,} bytes per shard")
    print(f"weights from one worker and from two: greatest relative difference {same}")
    print(f"weights with and without shards: greatest relative difference {apart:.1e}, in {tensors} tensors")
    sums, bound = sums_apart(model, shards=options.shards, samples=options.samples // 4)
    print(f"sums with and without shards: greatest relative difference {sums:.1e}, bound {bound:.1e}")
    if options.json:
        result = {
            "ratio": ratio,
            "processor_ratio": busy,
            "pairs": [[asdict(run) for run in each] for each in pairs],
            "fewer": asdict(fewer),
        }
        result |= {"weights": apart, "workers": same, "sums": sums, "bound": bound}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if ratio <= MOST_SHARE and same == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
