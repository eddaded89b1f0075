"""`make gpu-check`: does everything work on the accelerator of this machine, how fast, and with how much memory?

    python -m benchmarks.gpu_check [--json gpu-check.json] [--device DEVICE] [--model DIR]

What `replaceme doctor` finds; the tests marked `gpu`; then SmolLM2 without a quarter of its blocks, by `least_squares`
and by default, each in bfloat16 and against two dense passes, with its peak memory beside that of the plan. Prints a
table and writes a JSON file, which can be attached to an issue: there is nothing secret in it. The exit status is 1
where something fails, and where there is no accelerator; with `--device cpu` the jobs run there, to try this program.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from api.cli.doctor import print_findings
from benchmarks.harness.checkout import ROOT
from benchmarks.smollm2 import provide

OK, FAILED = "ok", "failed"
Row = tuple[str, str, str]
"""What was checked, `OK` or another state, and what was found."""


def default_device() -> str:
    """The accelerator if there is one, else the CPU. In a process that ends: torch stays out of what is measured."""
    program = "from replaceme_core.engine.model.device import default_device; print(default_device())"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def look() -> list[Row]:
    """What `replaceme doctor` finds."""
    command = [Path(sys.executable).with_name("replaceme"), "doctor", "--json"]
    found = subprocess.run(command, check=False, capture_output=True).stdout
    if not found:
        return [("doctor", FAILED, "it ended without a result; run `replaceme doctor`")]
    return [(one["name"], one["state"], one["text"]) for one in json.loads(found)["findings"]]


def run_tests(scratch: Path) -> list[Row]:
    """The tests marked `gpu`."""
    results = scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-o", "addopts=", f"--junitxml={results}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if not results.exists():
        return [("tests", FAILED, done.stdout[-2000:] or done.stderr[-2000:])]
    cases = [*ElementTree.parse(results).iter("testcase")]
    failed = [
        str(case.get("name")) for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    text = f"{len(cases) - len(failed)} of {len(cases)} passed" + "".join(f"; {name} failed" for name in failed)
    return [("tests", FAILED if failed or not cases else OK, text)]


def measure(scratch: Path, model: Path, *, device: str) -> list[Row]:
    """`least_squares` and the default, each against two dense passes."""
    found = scratch / "speed.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--parts", "pairs", "default", "--pairs", "1"]
    command += ["--model", str(model), "--device", device, "--dtype", "bfloat16", "--dense-dtype", "bfloat16"]
    done = subprocess.run([*command, "--json", found], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        return [("jobs", FAILED, done.stderr[-2000:])]
    rows = []
    for part, name in (("pairs", "least_squares"), ("default", "default")):
        (pair,) = json.loads(found.read_text())[part]["pairs"]
        run = pair["compress"]
        expected, actual = run["expected_bytes"], run["actual_bytes"]
        text = (
            f"{run['process_seconds']:.1f} s, stages {run['stage_seconds']:.1f} s; two dense passes "
            f"{pair['dense_seconds']:.1f} s; peak {actual / 1e9:.2f} GB, planned {expected / 1e9:.2f} GB"
        )
        rows.append((name, OK if actual <= 1.25 * expected else "above its plan", text))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="default: %(default)s")
    parser.add_argument("--device", help="default: the accelerator")
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    options = parser.parse_args()
    device = options.device or default_device()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rows = look()
        if options.device is None and device == "cpu":
            rows.append(("accelerator", FAILED, "torch finds none on this machine: see the line of torch above"))
        else:
            rows += run_tests(scratch) if device != "cpu" else []
            model = options.model or provide(Path("data/smollm2"))
            rows += measure(scratch, model.resolve(), device=device)
    print_findings(rows)
    is_well = not any(state in (FAILED, "problem", "above its plan") for _, state, _ in rows)
    fields = ("name", "state", "text")
    body = {"ok": is_well, "device": device, "findings": [dict(zip(fields, row, strict=True)) for row in rows]}
    options.json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
