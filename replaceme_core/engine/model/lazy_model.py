"""A lazily loaded model: each block is read from the files when it is called, and two are in memory at a time.

Embeddings, final norm and head are in memory. The weights of a block are on the meta device; its forward puts them in
place first, and they are dropped when another block is called. A thread reads the next block meanwhile. So any code
that runs a model can run this one, with memory for two blocks. It is slow where all blocks run for each batch; where
one block runs for all batches before the next one, the disk costs nothing that computing does not hide.

Names and layouts in files may differ from those of the live model (experts are stored one by one, and stacked when they
are loaded): transformers' own conversion is used wherever more than a name changes.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig

from replaceme_core.engine.model.known_keys import GENERATION_CONFIG
from replaceme_core.engine.model.load import (
    auto_class,
    does_not_fit,
    keep_separate,
    load_config,
    load_model,
    load_quantized,
    private_view,
)
from replaceme_core.engine.model.safetensors_io import StoredTensor, tensors_of
from replaceme_core.errors import BrokenModel
from replaceme_core.families.layout import FAMILIES
from replaceme_core.families.resolve import ResolvedModel, absorb_gains
from replaceme_core.hub.model_files import weight_files
from replaceme_core.library_errors import library_errors
from replaceme_core.request.resolve import ResolvedCompute
from replaceme_core.request.spec import Loading

_FILES = "_files"
"""The attribute of a block that holds its files and its index. A global table would keep every model alive."""


def load_block(block: nn.Module) -> nn.Module:
    """`block`, with its weights in memory until another block is called or loaded."""
    if (found := files_of(block)) is not None:
        files, index = found
        files.load(index, block)
    return block


def files_of(block: nn.Module) -> "tuple[ModelFiles, int] | None":
    """Where a lazily loaded block is read from, and its index there; `None` for one that was loaded with its model."""
    found: tuple[ModelFiles, int] | None = vars(block).get(_FILES)
    return found


def open_model(directory: Path, *, dtype: torch.dtype, device: str, loading: Loading) -> PreTrainedModel:
    """The model in eval mode, loaded whole or lazily as `loading` says. Raises `BrokenModel`."""
    load = load_lazily if loading is Loading.BLOCKWISE else load_model
    return load(directory, dtype=dtype, device=device)


def open_for_capture(directory: Path, *, dtype: torch.dtype, compute: ResolvedCompute) -> PreTrainedModel:
    """The model that activations are captured from, as `compute` says. Raises as `load_quantized`."""
    if compute.quantization is not None:
        return load_quantized(directory, dtype=dtype, compute=compute)
    return open_model(directory, dtype=dtype, device=compute.device, loading=compute.loading)


def load_lazily(directory: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """As `load_model`, with the blocks left in their files until they are called. Raises `BrokenModel`."""
    config = load_config(directory)
    row = FAMILIES[config.model_type]  # unsupported types are refused before
    with (
        library_errors("config.json does not describe a model that can be built"),
        _parameters_on_meta(),
        no_init_weights(),
    ):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    model.initialize_weights()  # only now: made in 16 bits, tables of positions would have the wrong angles
    in_float32 = [re.compile(pattern.replace("*", ".*")) for pattern in model._get_dtype_plan(dtype)]
    for name, values in model.state_dict(keep_vars=True).items():
        if any(pattern.search(name) for pattern in in_float32):
            values.data = values.float()  # as `from_pretrained` keeps them, whatever `dtype` is
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            module._buffers[leaf] = None if buffer is None else buffer.to(device)
    with private_view(directory, weights=False) as view:
        if (view / GENERATION_CONFIG).exists():
            with library_errors(f"{GENERATION_CONFIG} cannot be used"):
                model.generation_config = GenerationConfig.from_pretrained(view, local_files_only=True)
    files = tensors_of(weight_files(directory))
    blocks = model.get_submodule(row.blocks)
    assert isinstance(blocks, nn.ModuleList)
    source = ModelFiles(model=model, files=files, device=device, blocks=row.blocks)
    source.load_rest()
    for index, block in enumerate(blocks):
        vars(block)[_FILES] = source, index
        vars(block)["forward"] = partial(_load_and_compute, block)
    model.eval()
    return model


def _load_and_compute(block: nn.Module, *args: object, **kwargs: object) -> object:
    return type(block).forward(load_block(block), *args, **kwargs)


@dataclass(kw_only=True)
class ModelFiles:
    """The files of a model, and which of its blocks is in memory."""

    model: PreTrainedModel
    files: list[StoredTensor]
    device: str
    blocks: str
    resident: int | None = None
    changes: dict[int, list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]] = field(default_factory=dict)
    """By block: the changes to its parameters whenever it is read, in this order."""
    conversions: list[WeightTransform] = field(default_factory=list)
    direct: dict[int | None, dict[str, StoredTensor]] = field(default_factory=dict)
    """By block (`None`: outside of all blocks) and live name: tensors that are used as they are stored."""
    missing: set[str] = field(default_factory=set)
    """Live names that the files do not have."""
    converted: dict[int | None, list[StoredTensor]] = field(default_factory=dict)
    """By block: tensors that transformers has to convert."""
    meta: dict[str, nn.Parameter] = field(default_factory=dict)
    following: dict[int, int] = field(default_factory=dict)
    """By block: the one that was called after it the last time; the next one, where there was none."""
    ahead: tuple[int, Future[dict[str, torch.Tensor]]] | None = None
    """The block that is being read while another one is in use."""
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="read-ahead"))
    resolved: ResolvedModel = field(init=False)
    owners: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    """By live name: the module that has the value, and its attribute there. Names change when blocks are removed."""

    def __post_init__(self) -> None:
        self.resolved = ResolvedModel(model=self.model, layout=FAMILIES[self.model.config.model_type])
        self.conversions = get_model_conversion_mapping(self.model)
        renamings = [one for one in self.conversions if isinstance(one, WeightRenaming)]
        converters = [one for one in self.conversions if isinstance(one, WeightConverter)]
        expected = self.model.state_dict()
        self.meta = dict(self.model.named_parameters(remove_duplicate=False))
        for name in expected:
            parent, _, leaf = name.rpartition(".")
            self.owners[name] = (self.model.get_submodule(parent), leaf)
        covered = set()
        for stored in self.files:
            prefix = self.model.base_model_prefix
            name, pattern = rename_source_key(stored.name, renamings, converters, prefix, expected)
            if name not in expected and stored.name in expected:
                name, pattern = stored.name, None
            if name not in expected:
                continue  # a tensor that the model does not use, ignored as `from_pretrained` does
            covered.add(name)
            block = self._block_of(name)
            if pattern is not None:
                self.converted.setdefault(block, []).append(stored)
            elif stored.shape != tuple(expected[name].shape):
                raise does_not_fit("mismatched", [name])
            else:
                self.direct.setdefault(block, {})[name] = stored
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        self.missing = set(expected) - covered
        if not self.converted and (missing := sorted(self.missing - tied)):
            raise does_not_fit("missing", missing)
        # Saving undoes the transforms of loading; from_pretrained records them here, too.
        used: list[WeightTransform] = [one for one in self.conversions if one.was_used()]
        vars(self.model)["_weight_conversions"] = used

    @property
    def pinned(self) -> bool:
        return torch.device(self.device).type != "cpu"

    def load_rest(self) -> None:
        self._load(None)
        self.model.tie_weights(missing_keys=self.missing, recompute_mapping=False)
        keep_separate(self.model)
        inside = f"{self.blocks}."
        lost = [name for name, each in self.model.named_parameters() if each.is_meta and not name.startswith(inside)]
        if lost:
            raise does_not_fit("missing", lost)

    def load(self, block: int, into: nn.Module) -> None:
        if block == self.resident:
            return
        if self.resident is not None:
            self.following[self.resident] = block
            self.forget(self.resident)
        ahead, self.ahead = self.ahead, None
        self._load(block, ahead[1].result() if ahead is not None and ahead[0] == block else None)
        absorb_gains(self.resolved, into)
        for parameter, change in self.changes.get(block, ()):
            module, leaf = self.owners[f"{self.blocks}.{block}.{parameter}"]
            weight = module.get_parameter(leaf)
            weight.data = change(weight.data)
        self.resident = block
        following = self.following.get(block, block + 1)
        if following in self.direct or following in self.converted:
            self.ahead = following, self.reader.submit(self._read, following)

    def change(self, block: int, parameter: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply `change` to a parameter of the block whenever it is read, until `restore`."""
        self.changes.setdefault(block, []).append((parameter, change))
        self.forget(block)

    def restore(self, block: int) -> None:
        """Read the block as it is stored again."""
        self.changes.pop(block, None)
        self.forget(block)

    def forget(self, block: int) -> None:
        """Drop the weights of the block, if they are in memory."""
        if block != self.resident:
            return
        inside = f"{self.blocks}.{block}."
        for name, parameter in self.meta.items():
            if name.startswith(inside):
                setattr(*self.owners[name], parameter)
        self.resident = None

    def _read(self, block: int) -> dict[str, torch.Tensor]:
        """The tensors of a block on the host, by their names in the files."""
        several = [*self.direct.get(block, {}).values(), *self.converted.get(block, ())]
        return {stored.name: stored.read(pinned=self.pinned) for stored in several}

    def _load(self, block: int | None, ahead: dict[str, torch.Tensor] | None = None) -> None:
        """Put the tensors of a block into its modules: from the files, or those that were read `ahead`."""
        for name, stored in self.direct.get(block, {}).items():
            module, leaf = self.owners[name]
            values = stored.read() if ahead is None else ahead.pop(stored.name)
            values = values.to(device=self.device, dtype=getattr(module, leaf).dtype, non_blocking=self.pinned)
            setattr(module, leaf, nn.Parameter(values, requires_grad=False) if name in self.meta else values)
        several = self.converted.get(block, [])
        if several:
            found, _ = convert_and_load_state_dict_in_model(
                self.model,
                {stored.name: stored if ahead is None else ahead.pop(stored.name) for stored in several},
                LoadStateDictConfig(
                    # of a model with a part on disk the library reads nothing ahead, as is right here
                    device_map={"": self.device, "no such module": "disk"},
                    dtype=self.model.dtype,
                    weight_mapping=self.conversions,  # type: ignore[arg-type]  # typed too narrowly
                ),
            )
            if found.mismatched_keys:
                raise does_not_fit("mismatched", sorted(str(one[0]) for one in found.mismatched_keys))
            if found.conversion_errors:
                raise BrokenModel(
                    f"the weights cannot be converted to those of the model: {', '.join(found.conversion_errors)}"
                ).because(found.conversion_errors)
        inside = f"{self.blocks}.{block}."
        if lost := [name for name in self.meta if name.startswith(inside) and getattr(*self.owners[name]).is_meta]:
            raise does_not_fit("missing", lost)

    def _block_of(self, name: str) -> int | None:
        inside = f"{self.blocks}."
        return int(name.removeprefix(inside).partition(".")[0]) if name.startswith(inside) else None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made in this context have parameters without memory. Their buffers are real: no file holds those."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
