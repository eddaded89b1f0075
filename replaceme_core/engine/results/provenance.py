"""What a result was made from, with what and where, and whether a result that is made again has the same weights."""

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

import replaceme_core
from replaceme_core.engine.activations.cache import code_digest, device_name, entry_key, file_digest, tensor_digest
from replaceme_core.engine.model.device import hardware_name
from replaceme_core.engine.model.safetensors_io import StoredTensor, tensors_of
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE
from replaceme_core.engine.text.documents import builtin_documents
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.hub.data_files import local_data_files
from replaceme_core.hub.model_files import image_files, used_files, weight_files
from replaceme_core.request.calibration import MixedSource
from replaceme_core.request.resolve import ResolvedSpec

_CHECKOUT = Path(replaceme_core.__path__[0]).parent
MOST_LISTED = 1000
"""Differing tensors."""
PACKAGES = ("replaceme", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "pyarrow", "lm_eval")


def code_version() -> dict[str, str | None]:
    """`version`, `commit` (40 hex digits, or `None`) and `digest`, which differs after any local change."""
    found = distribution("replaceme")
    commit = _commit_of_checkout(_CHECKOUT) or _commit_of_url(found.read_text("direct_url.json"))
    return {"version": found.version, "commit": commit, "digest": code_digest()}


def _commit_of_checkout(root: Path) -> str | None:
    """What HEAD is in a checkout of ours. A repository that only has us in its virtual environment says nothing."""
    try:
        if 'name = "replaceme"' not in (root / "pyproject.toml").read_text(encoding="utf-8"):
            return None
        command = ("git", f"--git-dir={root / '.git'}", "rev-parse", "HEAD")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _commit_of_url(text: str | None) -> str | None:
    """The commit that pip has installed from a repository."""
    if text is None:
        return None
    commit = json.loads(text).get("vcs_info", {}).get("commit_id")
    return commit if isinstance(commit, str) else None


def provenance_of(
    spec: ResolvedSpec,
    tokens: TokenSet,
    *,
    original: Path,
    source: Path,
    paths: Sequence[Path | None],
    hub: str | None,
    stored: torch.dtype,
) -> dict[str, object]:
    """The fields of the report. The files of the model in `original` and of the texts in `paths` are read for them.

    `source` is what the run has read, another directory than `original` where weights are quantized.
    `hub` is the address of the Hub that the model came from, without a slash at its end; `None`: a directory. `model`
    and `calibration_texts` have the SHA-256 of each file that was read, `tokens` that of the token ids.
    `statistics_key` names what the dense model left on these tokens in the activation cache, if there was one.
    `stored` is the dtype of the model's weights.
    """
    compute, device = spec.compute, torch.device(spec.compute.device)
    accelerator = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    return {
        "hub": hub,
        # all that decides the result: config, weights and tokenizer
        "model": {path.name: file_digest(path) for path in sorted([*weight_files(original), *used_files(original)])},
        "calibration_texts": [_text(one, path) for one, path in zip(spec.texts, paths, strict=True)],
        "tokens": {
            name: tensor_digest(values)
            for name in ("fit", "held_out", "measure", "pixels")
            if (values := getattr(tokens, name)) is not None
        },
        "statistics_key": entry_key(source, tokens=tokens, compute=compute),
        "code": code_version(),
        "versions": _versions(),
        "device": {
            "type": device.type,
            "hardware": hardware_name(device),
            "instructions": device_name(device),
            "system": platform.system(),
            **{name: value for name, value in accelerator.items() if value is not None},
        },
        "numerics": {
            "computed_in": compute.dtype,
            "solved_in": str(SOLVE_DTYPE).removeprefix("torch."),
            "stored_in": str(stored).removeprefix("torch."),
            "threads": compute.threads,
            "batch_size": compute.batch_size,
            "loading": str(compute.loading),
            "quantization": compute.quantization,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def _versions() -> dict[str, str]:
    """Of Python and of those libraries that are installed: a run without data sets needs no `datasets`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _text(source: MixedSource, path: Path | None) -> dict[str, object]:
    if source.self_generated:
        return {"name": source.name, "revision": None, "files": {}}
    if path is None:
        raw = json.dumps(list(builtin_documents(source.name)))
        files = {source.name: hashlib.sha256(raw.encode()).hexdigest()}
    elif source.is_file and path.is_dir():
        files = {one.relative_to(path).as_posix(): file_digest(one) for one in image_files(path)}
    elif path.is_dir():
        chosen = local_data_files(path, config=source.config, split=source.split)
        files = {one.relative_to(path).as_posix(): file_digest(one) for one in chosen}
    else:
        files = {path.name: file_digest(path)}
    return {"name": source.name, "revision": source.revision, "files": files}


def compare_weights(recorded: Path, again: Path) -> dict[str, object]:
    """`same`, the number of `tensors`, and `differing`: the differences, the greatest first, at most `MOST_LISTED`.

    Each has the `name` of a tensor, its number of `values`, and `what` differs: "values", or "missing", "added",
    "shape" or "dtype", where values cannot be compared. Of values, `differing` are not the same, `largest` is their
    greatest difference, `relative` the norm of the difference over that of the recorded tensor.

    One tensor of each model is in memory at a time. Raises `BrokenModel` and `UnsafeModel` for files that are none.
    """
    before, after = ({one.name: one for one in tensors_of(weight_files(directory))} for directory in (recorded, again))
    found: list[tuple[float, dict[str, object]]] = []
    for name in sorted(before.keys() | after.keys()):
        what, sizes = _difference(before.get(name), after.get(name))
        if what is not None:
            relative, values = sizes["relative"], (before.get(name) or after[name]).numel
            row: dict[str, object] = {"name": name, "what": what, "values": values, **sizes}
            found.append((-math.inf if relative is None else -relative, row))
    found.sort(key=lambda one: one[0])
    return {
        "same": not found,
        "tensors": len(before),
        "differing_tensors": len(found),
        "differing": [row for _, row in found[:MOST_LISTED]],
    }


def _difference(before: StoredTensor | None, after: StoredTensor | None) -> tuple[str | None, dict[str, float | None]]:
    """What differs, `None` for nothing, and by how much."""
    unknown: dict[str, float | None] = dict.fromkeys(("differing", "largest", "relative"))
    if after is None or before is None:
        return "missing" if after is None else "added", unknown
    for what in ("shape", "dtype"):
        if getattr(before, what) != getattr(after, what):
            return what, unknown
    old, new = before.read(), after.read()
    if old.numel() == 0 or torch.equal(old.flatten().view(torch.uint8), new.flatten().view(torch.uint8)):
        return None, unknown
    wide, change = old.double(), new.double() - old.double()
    return "values", {
        "differing": int((old != new).sum()),
        "largest": float(change.abs().max()),
        "relative": float(change.norm() / wide.norm().clamp_min(torch.finfo(torch.float64).tiny)),
    }
