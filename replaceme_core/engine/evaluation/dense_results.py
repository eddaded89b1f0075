"""What an evaluation has found of a dense model, kept for later runs on the same model in the activation cache, and for
later trials of the same run.

A key covers all that a result depends on: the content of weights, config and tokenizer, the settings that decide the
rounding, the code and its libraries, and what was asked. A damaged file is not used, and its result is made again
(docs/decisions/0012-activation-cache.md).
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.cache import ActivationCache, code_digest, device_name, file_digest, model_digest
from replaceme_core.engine.activations.verified_file import Contents, content_digest, read_contents, write_verified
from replaceme_core.engine.text.self_generated import generate_sequences
from replaceme_core.hub.model_files import used_files
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.resolve import ResolvedCompute

_FILE = "result.safetensors"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class DenseResults:
    """The results of one model: each is in one of `caches`, the first that has room. Without any all are made anew.

    `facts` are what all its results depend on. `reused` names those that an earlier run has left.
    """

    caches: Sequence[ActivationCache] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    _made: set[str] = field(default_factory=set)
    """Keys of the results of this run."""

    @classmethod
    def of(cls, directory: Path, cache: ActivationCache | None, compute: ResolvedCompute) -> Self:
        """Those of the model in `directory`, computed as `compute` says; none are kept without a `cache`."""
        if cache is None:
            return cls()
        facts = {
            "model": model_digest(directory),
            "beside": {path.name: file_digest(path) for path in used_files(directory)},
            "compute": [compute.dtype, compute.threads, str(compute.loading)],
            "device": device_name(torch.device(compute.device)),
            "versions": [str(torch.__version__), transformers.__version__],
            "code": code_digest(),
        }
        return cls(caches=[cache], facts=facts)

    @contextmanager
    def for_several(self, *, beside: Path) -> Iterator["DenseResults"]:
        """The same for several trials of one run: what fits into no other cache is in a directory until the end.

        It is `beside` the output, and deleted.
        """
        with TemporaryDirectory(prefix=f".{beside.name}.dense-results-", dir=beside.parent) as place:
            scratch = ActivationCache(Path(place), limit=sys.maxsize)
            yield replace(self, caches=[*self.caches, scratch])

    def find(self, name: str, asked: Mapping[str, object]) -> Contents | None:
        """The stored result `name` for the same question (`asked`); `None` if there is none that can be read."""
        key = self._key(name, asked)
        contents = next((found for cache in self.caches if (found := _read(cache, key, name)) is not None), None)
        if contents is not None and key not in self._made and name not in self.reused:
            self.reused.append(name)
        return contents

    def keep(self, name: str, asked: Mapping[str, object], contents: Contents) -> None:
        """Keep a result for later. Where it cannot be written, it is not kept."""
        key = self._key(name, asked)
        self._made.add(key)
        for cache in self.caches:
            if _write(cache, key, name, contents):
                return

    def find_or_make(self, name: str, asked: Mapping[str, object], make: Callable[[], Contents]) -> Contents:
        """The result that is kept, else what `make` returns, which is kept then."""
        contents = self.find(name, asked)
        if contents is None:
            contents = make()
            self.keep(name, asked, contents)
        return contents

    def own_text(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        count: int,
        *,
        length: int,
        seed: int,
        advance: Callable[[float], None] = lambda _: None,
    ) -> torch.Tensor:
        """`count` sequences that `model` generates, as `generate_sequences` does; int64 (count, length) on the host."""

        def generate() -> Contents:
            found = generate_sequences(model, tokenizer, count=count, length=length, seed=seed, advance=advance)
            return Contents(record={}, tensors={"sequences": found})

        # of a quantized model others than of the same one in full, which is evaluated in the same run
        dtypes = sorted({str(values.dtype) for values in model.parameters()})
        asked = {"count": count, "length": length, "seed": seed, "dtypes": dtypes}
        return self.find_or_make(SELF_GENERATED, asked, generate).tensors["sequences"]

    def has_room(self, size: int) -> bool:
        """Whether a result of `size` bytes can be kept."""
        return any(cache.has_room(size) for cache in self.caches)

    def _key(self, name: str, asked: Mapping[str, object]) -> str:
        facts = {**self.facts, "result": name, "asked": asked}
        return content_digest(facts)


def _read(cache: ActivationCache, key: str, name: str) -> Contents | None:
    """The result under `key`; `None`, and it is removed, if it is damaged."""
    try:
        entry = cache.find(key)
        if entry is None:
            return None
        with closing(entry):
            contents = read_contents(entry.directory / _FILE)
            if contents is None:
                cache.discard(entry)
            return contents
    except OSError as error:
        logger.warning("the result %s that was kept cannot be read: %s", name, error)
        return None


def _write(cache: ActivationCache, key: str, name: str, contents: Contents) -> bool:
    """Whether the result is in `cache` under `key` now."""
    try:
        with cache.draft() as draft:
            read = write_verified(draft / _FILE, contents.tensors, contents.record, read=read_contents)
            entry = None if read is None else cache.publish(draft, key, {"name": name})
            if entry is not None:
                entry.close()
            return entry is not None
    except OSError as error:
        logger.warning("the result %s cannot be kept: %s", name, error)
        return False
