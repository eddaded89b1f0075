"""Digests of what stored values depend on: model, tokens, code, device. Cache keys are made of them."""

import hashlib
import json
import platform
from functools import lru_cache
from pathlib import Path

import torch

import replaceme_core
from replaceme_core.hub.files import sha256_of
from replaceme_core.hub.model_files import CONFIG, admit_file, weight_files


def model_digest(directory: Path) -> str:
    """SHA-256 of the content of config and weights: a name or a revision may be moved to other content.

    These are the files that are loaded, and no others: else one model's activations could serve another.
    """
    total = hashlib.sha256()
    for path in (admit_file(directory, CONFIG), *weight_files(directory)):
        total.update(bytes.fromhex(file_digest(path)))
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. It is read once, unless it changes in between: weights are large."""
    facts = path.stat()
    return _digest(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))


@lru_cache(maxsize=1024)
def _digest(path: Path, _facts: tuple[int, ...]) -> str:
    return sha256_of(path)


def code_files() -> list[Path]:
    """Every source file of the core, in every package: any of them may decide a number."""
    return sorted(Path(replaceme_core.__path__[0]).rglob("*.py"))


def code_digest() -> str:
    """SHA-256 of the names and the content of `code_files`: it differs between releases, and after any local change."""
    root, total = Path(replaceme_core.__path__[0]), hashlib.sha256()
    for path in code_files():
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def tensor_digest(values: torch.Tensor) -> str:
    """SHA-256 of shape, dtype and values of a tensor on the host."""
    shape = json.dumps([list(values.shape), str(values.dtype)]).encode()
    return hashlib.sha256(shape + values.contiguous().numpy().tobytes()).hexdigest()


def device_name(device: torch.device) -> str:
    """The model of the GPU, or the architecture and vector instructions of the CPU: both decide the rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
