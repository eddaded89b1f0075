"""Find the layout of a live model by running it, whatever its modules are called.

A block is run by itself, on the stream that the model gave it. What its modules return is compared with what the block
adds to the stream: the fewest modules whose outputs add up to that are its writes. A weight absorbs a map of a write if
multiplying the weight by a random matrix multiplies the write by the same matrix; a weight reads the stream if a random
matrix on its input is undone by the inverse matrix on the weight. So every finding has been seen to hold on this model.
Meant for tiny models with random weights in float32, where nothing holds by chance.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeGuard

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from replaceme_core.engine.model.block_runner import Hook, record_values, replace_forward, replace_output, returning
from replaceme_core.families.layout import Inputs, Layout, Weight, Write
from replaceme_core.families.resolve import along, as_returned, embeddings, first_tensor, implied_bias, kind

TOLERANCE = 1e-3
"""Largest relative difference of two results that are equal but for rounding; random ones differ by about 1."""
SAME = 1e-6
"""The same for a value that is handed on."""
MOST_WRITES = 3
MOST_GUESSES = 64
"""How many choices of axes are tried where several of a parameter are as long as the stream is wide."""


class NotFound(Exception):
    """In half a sentence, why the methods cannot be used: "it ..."."""


def discover(model: PreTrainedModel, config: PreTrainedConfig, given: torch.Tensor) -> Layout:
    """The layout of `model`, without what the `config` of the compressed tower says of blocks.

    `given` are tokens (sequences, positions), or images (images, channels, height, width). The weights of a language
    model are as before afterwards; in a model of images, those that its blocks multiply their writes by are ones.
    Raises `NotFound`.
    """
    inputs = Inputs.TEXT if given.dim() == 2 else Inputs.IMAGES
    if inputs is Inputs.IMAGES:
        _fill_gains(model, width=config.hidden_size)
    reason = "it runs no list of blocks one after the other"
    for path, calls, rest in _lists(model, given, count=config.num_hidden_layers):
        try:
            blocks = [_Block(call, width=config.hidden_size) for call in calls]
            if any(not torch.equal(one.after, other.before) for one, other in itertools.pairwise(blocks)):
                raise NotFound("it changes the stream between its blocks")
            found = list({kind(block.module): block for block in reversed(blocks)}.values())
            changes_stream = any(not _summands(block) for block in found)
            row = Layout(
                model_type=config.model_type,
                inputs=inputs,
                blocks=path,
                kinds=merged_kinds([_writes(block, config, last=changes_stream) for block in found]),
                final_norm=_final_norm(rest, blocks[-1]),
                changes_stream=changes_stream,
                added_in_place=any(block.adds_in_place for block in found),
                block_returns=len(calls[0].output) if isinstance(calls[0].output, tuple) else 0,
                learned_positions=any(_looks_up_positions(call, given.shape[1]) for call in rest),
            )
            if inputs is Inputs.TEXT:
                return row
            return replace(row, beside_patches=blocks[0].shape[1] - row.positions(config.to_dict()))
        except NotFound as error:
            reason = str(error)
    raise NotFound(reason)


@torch.no_grad()
def _fill_gains(model: PreTrainedModel, *, width: int) -> None:
    """Of modules that multiply what they are given by their one weight (d,), and do nothing else, it becomes 1."""
    given = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(4))
    for module in model.modules():
        weights = list(module.parameters())
        fits = len(weights) == 1 and weights[0].shape == (width,)
        if fits and _close(first_tensor(module(given)), given * weights[0]):
            weights[0].fill_(1)


def merged_kinds(kinds: Iterable[tuple[Write, ...]]) -> tuple[tuple[Write, ...], ...]:
    """Each kind once, those with more modules and weights first: a block is of the first one whose paths it has.

    Among equals those first of which each write has its projection: a block with experts beside it has that, too.
    """
    return tuple(sorted({*kinds}, key=lambda one: (-len({*_paths(one)}), None in _paths(one), str(one))))


def _paths(writes: Iterable[Write]) -> Iterator[str | None]:
    for write in writes:
        yield from (write.module, write.projection and write.projection.module)
        yield from (weight.path for weight in (*write.folds, *write.reads))


@dataclass(eq=False)
class _Call:
    """One call of a module: what it was given, what it returned, and when."""

    path: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    order: int
    output: object
    value: torch.Tensor | None
    """A copy of the output's first tensor, as it was returned; later additions in place are not in it."""

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, nn.Linear | Conv1D)

    @property
    def owns(self) -> dict[str, nn.Parameter]:
        """The parameters of the module itself, by their paths in the block."""
        return {f"{self.path}.{name}": each for name, each in self.module.named_parameters(recurse=False)}

    def inputs(self, width: int) -> list[torch.Tensor]:
        """The tensors among the arguments that are `width` wide, as (tokens, width)."""
        given = (*self.args, *self.kwargs.values())
        return [_flat(one) for one in given if _is_wide(one, width)]


@contextmanager
def _recorded(root: nn.Module) -> Iterator[list[_Call]]:
    """Yields the calls of `root` and all its modules in the order in which they returned, while the context is open."""
    paths, calls = {module: path for path, module in root.named_modules()}, list[_Call]()

    def record(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        if module in paths:
            args, kwargs, value = tree_map_only(torch.Tensor, torch.clone, (args, kwargs, first_tensor(output)))
            calls.append(_Call(paths[module], module, args, kwargs, len(calls), output, value))

    with register_module_forward_hook(record, with_kwargs=True):
        yield calls


def _lists(
    model: PreTrainedModel, given: torch.Tensor, *, count: int
) -> Iterator[tuple[str, list[_Call], list[_Call]]]:
    """Lists of `count` modules that are called once each, in order: path, calls, and calls of what is in no block."""
    with _recorded(model) as calls, torch.no_grad():
        model(input_ids=given, use_cache=False) if given.dim() == 2 else embeddings(model, given)
    for path, blocks in model.named_modules():
        inside = [f"{path}.{index}" for index in range(count)]
        called = [call for call in calls if call.path in inside]
        if isinstance(blocks, nn.ModuleList) and len(blocks) == count and [call.path for call in called] == inside:
            yield path, called, [call for call in calls if call.path and not call.path.startswith(f"{path}.")]


class _Block:
    """One block with what the model gave it, to be run by itself."""

    def __init__(self, call: _Call, *, width: int) -> None:
        self.module, self.width, self._call = call.module, width, call
        given = call.inputs(width)
        if not given or call.value is None or given[0].numel() != call.value.numel():
            raise NotFound("its blocks do not take and return one stream of the width of the model")
        self.before, self.after, self.shape = given[0], _flat(call.value), call.value.shape
        self.change = self.after - self.before
        self.parameters = dict(self.module.named_parameters())
        self.adds_in_place = False
        with _recorded(self.module) as calls:
            self.run()
        paths = [path for path, _ in self.module.named_modules() if path]
        once = {path: [call for call in calls if call.path == path] for path in paths}
        self.calls = {path: found[0] for path, found in once.items() if len(found) == 1}
        wide = [call for call in self.calls.values() if _is_wide(call.value, width)]
        self.values = {call.path: _flat(call.value) for call in wide if call.value.numel() == self.before.numel()}

    def run(self, changes: Mapping[str, torch.Tensor] | None = None, *, path: str = "") -> torch.Tensor:
        """What the module at `path` returns (tokens, d), by default the block, while parameters have other values."""
        args, kwargs = tree_map_only(torch.Tensor, torch.clone, (self._call.args, dict(self._call.kwargs)))
        with torch.no_grad(), record_values(Hook(module=self.module.get_submodule(path), copy=True)) as values:
            functional_call(self.module, dict(changes or {}), args, kwargs)
        return _flat(values[0])


def _writes(block: _Block, config: object, *, last: bool) -> tuple[Write, ...]:
    """The writes of a block in the order of their computation, or the `last` one alone. Raises `NotFound`."""
    found, since = list[Write](), -1
    for path, factor in [_last_addition(block)] if last else _summands(block):
        value, call = block.values[path], block.calls[path]
        folds = next((some for offset in (None, 0.0, 1.0) if (some := _folds(block, path, value, offset=offset))), ())
        block.adds_in_place |= not _close(first_tensor(call.output), call.value, 0)
        projection = path if call.is_linear else _before_norm(block, call, folds)
        unit, returns = _unit(block, projection or path, path)
        found.append(
            Write(
                module=path,
                scale=_field(config, factor),
                projection=None if projection is None else _weight_of(block.calls[projection]),
                folds=folds,
                reads=_reads(block, since=since, until=call.order, writes={weight.path for weight in folds}),
                gain=_gain(block, value),
                unit=unit,
                returns=returns,
            )
        )
        since = call.order
    if not found[-1].folds:
        raise NotFound("it has blocks without weights that could absorb a map of what they add last")
    return tuple(found)


def _summands(block: _Block) -> list[tuple[str, float]]:
    """The fewest modules whose outputs, each times a factor, add up to the change of the stream, in order.

    None if there are no such modules.
    """
    paths, wanted = list[str](), block.change.flatten().double()
    # of modules that return the same, one with parameters of its own, else the innermost
    for path in sorted(block.values, key=lambda path: (bool(block.calls[path].owns), path.count(".")), reverse=True):
        value = block.values[path]
        handed_on = _close(value, block.after) and not _close(value, block.change)
        known = (block.before, *(block.values[other] for other in paths))
        if not (handed_on or not float(value.norm()) or any(_close(value, other) for other in known)):
            paths.append(path)
    for number in range(1, MOST_WRITES + 1):
        fitting = []
        for some in itertools.combinations(paths, number):
            chosen = torch.stack([block.values[path].flatten() for path in some]).double()
            factors = torch.linalg.lstsq(chosen.T, wanted.unsqueeze(1)).solution.flatten()
            if bool((factors > 0).all()) and _close(factors @ chosen, wanted, TOLERANCE):
                plain = sum(block.calls[path].is_linear for path in some)
                unscaled = int(((factors - 1).abs() < TOLERANCE).sum())
                fitting.append((plain, unscaled, list(zip(some, factors.tolist(), strict=True))))
        if fitting:
            best = max(fitting, key=lambda one: one[:2])[2]
            return sorted(best, key=lambda one: block.calls[one[0]].order)
    return []


def _last_addition(block: _Block) -> tuple[str, float]:
    """The last module whose output, times a factor, the block adds to whatever it makes of the stream.

    Another output in its place changes the stream after the block by the difference. Raises `NotFound`.
    """
    turn = _random(block.width, seed=3)
    for path in sorted(block.values, key=lambda path: block.calls[path].order, reverse=True):
        call, value = block.calls[path], block.values[path]
        if not isinstance(call.output, torch.Tensor) or not call.owns:
            continue
        with replace_output(call.module, value @ turn):
            change, wanted = block.run() - block.after, value @ turn - value
        factor = float((change * wanted).sum() / wanted.square().sum())
        if factor > 0 and _close(change, wanted * factor, TOLERANCE):
            return path, factor
    raise NotFound("what its blocks add to the stream last is not what one of their modules returns")


def _folds(block: _Block, path: str, value: torch.Tensor, *, offset: float | None) -> tuple[Weight, ...]:
    """The weights that together absorb a map of the output `value` of the module at `path`; none if there are none.

    With an `offset` a diagonal map, and norms count from there.
    """
    turn = _random(block.width, seed=1)
    turn = turn if offset is None else turn.diagonal().diag()
    total, found = torch.zeros_like(value), dict[Weight, torch.Tensor]()
    for name, parameter in block.parameters.items():
        since = offset if parameter.dim() == 1 and not name.endswith("bias") else None
        own, shift = parameter.data, since or 0.0
        for axis in _axes_of(parameter, block.width):
            part = value - block.run({name: torch.full_like(own, -shift)}, path=path)
            turned = along(own + shift, turn, axis=axis) - shift
            moved = block.run({name: turned}, path=path) - value
            if not _close(value - part, value) and _close(moved, part @ turn - part, TOLERANCE):
                found[Weight(name, axis, since)] = turned
                total += part
                break
    changes = {weight.path: turned for weight, turned in found.items()}
    if not _close(total, value, TOLERANCE) or not _close(block.run(changes, path=path), value @ turn, TOLERANCE):
        return ()
    biases = {implied_bias(one.path) for one in found}
    return tuple(one for one in found if one.path not in biases)


def _weight_of(call: _Call, *, reads: bool = False) -> Weight:
    """The weight of a linear module, with the axis of its output, or of what it `reads`."""
    return Weight(f"{call.path}.weight", int(isinstance(call.module, Conv1D) != reads))


def _axes_of(parameter: nn.Parameter, width: int) -> list[int]:
    """Every axis that is as long as the stream is wide."""
    return [axis for axis, size in enumerate(parameter.shape) if size == width]


def _before_norm(block: _Block, call: _Call, folds: tuple[Weight, ...]) -> str | None:
    """The linear module whose output the norm of `call` normalises; `None` if it is no such norm, or has a bias."""
    if len(folds) != 1 or folds[0].offset is None or implied_bias(folds[0].path) in block.parameters:
        return None
    given = next(iter(call.inputs(block.width)), None)
    found = (path for path, value in block.values.items() if block.calls[path].is_linear and _close(value, given))
    return next(found, None)


def _unit(block: _Block, path: str, write: str) -> tuple[str | None, int]:
    """The child of the block with the module at `path`, and what it returns, if it can be left out.

    The block is run with what the child and the module at `write` returned in place of their computation.
    """
    child = path.partition(".")[0]
    call = block.calls.get(child)
    if call is None or child == path:
        return None, 0
    returns = len(call.output) if isinstance(call.output, tuple) else 0
    known = block.values[write].reshape(block.shape)
    forward, last = returning(as_returned(known, returns)), block.module.get_submodule(write)
    try:
        with replace_forward(call.module, forward), replace_output(last, known):
            return (child, returns) if _close(block.run(), block.after) else (None, 0)
    except (TypeError, AttributeError, RuntimeError):  # the block needs what was left out
        return None, 0


def _reads(block: _Block, *, since: int, until: int, writes: set[str]) -> tuple[Weight, ...]:
    """The weights that multiply the first value of the stream's width that is read between two writes.

    Proven by a random map of that value, wherever modules return it or are given it, which the inverse map undoes in
    the weights.
    """
    turn = torch.eye(block.width) + 0.3 * _random(block.width, seed=2)
    back = torch.linalg.inv(turn).T
    readers = {call: axes for call in block.calls.values() if (axes := _axes(block, call, writes))}
    inside = sorted((call for call in readers if since < call.order <= until), key=lambda call: call.order)
    for value in itertools.chain.from_iterable(call.inputs(block.width) for call in inside):
        if value.shape != block.before.shape:
            continue
        sure = [call for call in readers if any(_close(one, value) for one in call.inputs(block.width))]
        # of others, such as experts that get some of the tokens, each may read it or not
        calls = [*sure, *(call for call in inside if call not in sure)]
        choices = itertools.chain.from_iterable(readers[call] for call in calls)
        for guess in itertools.islice(itertools.product(*choices), MOST_GUESSES):
            weights = [weight for weight in guess if weight is not None]
            own = tuple(one for one in weights if any(one.module == call.path for call in inside))
            changes = {one.path: along(block.parameters[one.path].data, back, axis=one.axis) for one in weights}
            with _turned(block, value, turn):
                if own and _close(block.run(changes), block.after, TOLERANCE):
                    return own
    return ()


def _axes(block: _Block, call: _Call, writes: set[str]) -> list[list[Weight | None]]:
    """For each parameter of a module, the axes at which it may read the stream, and last: at none."""
    matrices = {path: each for path, each in call.owns.items() if each.dim() > 1 and path not in writes}
    found = [[Weight(path, axis) for axis in _axes_of(each, block.width)] for path, each in matrices.items()]
    if call.is_linear:
        found = [[one for one in axes if one == _weight_of(call, reads=True)] for axes in found]
    return [[*axes, None] for axes in found if axes]


@contextmanager
def _turned(block: _Block, value: torch.Tensor, turn: torch.Tensor) -> Iterator[None]:
    """Wherever modules of the block return or read `value` (tokens, d), it is `value @ turn`."""

    def turned(one: torch.Tensor) -> torch.Tensor:
        same = _is_wide(one, block.width) and one.numel() == value.numel() and _close(_flat(one), value)
        return one @ turn if same else one

    everywhere = partial(tree_map_only, torch.Tensor, turned)
    with ExitStack() as stack:
        for call in block.calls.values():  # once one was given the turned value, those inside are not given the other
            hook, module = stack.enter_context, call.module
            hook(module.register_forward_pre_hook(lambda _, *given: everywhere(given), with_kwargs=True))
            hook(module.register_forward_hook(lambda _module, _given, output: everywhere(output)))
        yield


def _final_norm(rest: Iterable[_Call], last: _Block) -> Weight | None:
    """The norm that reads the stream after the last block; `None` where it has no weight, or is not found."""
    for call in rest:
        given = next(iter(call.inputs(last.width)), None)
        if _close(given, last.after) and call.value is not None and call.value.shape == last.shape:
            norm = _Block(call, width=last.width)
            for offset in (0.0, 1.0):
                for weight in _folds(norm, "", norm.after, offset=offset):
                    return weight._replace(path=f"{call.path}.{weight.path}")
    return None


def _looks_up_positions(call: _Call, length: int) -> bool:
    """Whether it is a table of positions."""
    given = (one for one in (*call.args, *call.kwargs.values()) if isinstance(one, torch.Tensor))
    return isinstance(call.module, nn.Embedding) and any(
        one.shape[-1:] == (length,) and bool((one.diff() == 1).all()) for one in given
    )


def _gain(block: _Block, value: torch.Tensor) -> str | None:
    """The weight of ones that `value` is multiplied by last."""
    for call in block.calls.values():
        if _close(next(iter(call.inputs(block.width)), None), value) and _close(block.values.get(call.path), value):
            for name, weight in call.owns.items():
                if bool((weight == 1).all()):
                    return name
    return None


def _field(config: object, factor: float) -> str | None:
    """The config's field with this factor; `None` for 1. Raises `NotFound` if there is none."""
    if abs(factor - 1) < TOLERANCE:
        return None
    for name, value in vars(config).items():
        if isinstance(value, float) and abs(value - factor) < TOLERANCE * factor:
            return name
    raise NotFound(f"it multiplies what its blocks add by {factor:.3g}, which no field of its config says")


def _random(width: int, *, seed: int) -> torch.Tensor:
    """A matrix (d, d) that changes no length by much."""
    return torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.detach().reshape(-1, values.shape[-1])


def _is_wide(value: object, width: int) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[-1:] == (width,)


def _close(one: torch.Tensor | None, other: torch.Tensor | None, tolerance: float = SAME) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return float((one - other).norm()) <= tolerance * float(other.norm())
