"""Find the layout of a live model by running it, whatever its modules are called.

A block is run by itself, on the stream that the model gave it. What its modules return is compared with what the block
adds to the stream: the fewest modules whose outputs add up to that are its writes. A weight absorbs a map of a write if
multiplying the weight by a random matrix multiplies the write by the same matrix; a weight reads the stream if a random
matrix on its input is undone by the inverse matrix on the weight. So every finding has been seen to hold on this model.
Meant for tiny models with random weights in float32, where nothing holds by chance.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

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

    `given` are tokens (sequences, positions), or images (images, channels, height, width). The model's weights are as
    before afterwards. Raises `NotFound`.
    """
    inputs = Inputs.TEXT if given.dim() == 2 else Inputs.IMAGES
    if inputs is Inputs.TEXT:
        return _discover(model, config, given)
    with _gains_of_one(model, width=config.hidden_size) as gains:
        row = _discover(model, config, given, gains=gains)
        positions = _positions(model, row.blocks, given)
    return replace(row, inputs=inputs, beside_patches=positions - row.positions(config.to_dict()))


def _discover(
    model: PreTrainedModel, config: PreTrainedConfig, given: torch.Tensor, *, gains: Sequence[nn.Module] = ()
) -> Layout:
    reasons = ["it runs no list of blocks one after the other"]
    for path, calls, rest in _lists(model, given, count=config.num_hidden_layers):
        try:
            blocks = [_Block(call, width=config.hidden_size) for call in calls]
            if any(not torch.equal(one.after, other.before) for one, other in itertools.pairwise(blocks)):
                raise NotFound("it changes the stream between its blocks")
            found = {kind(block.module): block for block in reversed(blocks)}
            changes_stream = any(not _summands(block) for block in found.values())
            kinds = {
                shape: _with_gains(block, _writes(block, config, last=changes_stream), gains)
                for shape, block in found.items()
            }
            return Layout(
                model_type=config.model_type,
                blocks=path,
                kinds=merged_kinds(kinds.values()),
                final_norm=_final_norm(model, rest, blocks[-1]),
                changes_stream=changes_stream,
                added_in_place=any(block.adds_in_place for block in found.values()),
                block_returns=len(calls[0].output) if isinstance(calls[0].output, tuple) else 0,
                learned_positions=any(_looks_up_positions(call, given.shape[1]) for call in rest.values()),
            )
        except NotFound as error:
            reasons.append(str(error))
    raise NotFound(reasons[-1])


def _positions(model: PreTrainedModel, blocks: str, images: torch.Tensor) -> int:
    """How many positions of the stream an image takes."""
    first = f"{blocks}.0"
    with _recorded({first: model.get_submodule(first)}) as calls, torch.no_grad():
        embeddings(model, images)
    assert calls[0].value is not None
    return int(calls[0].value.shape[1])


@contextmanager
def _gains_of_one(model: PreTrainedModel, *, width: int) -> Iterator[list[nn.Module]]:
    """While the context is open, modules that multiply what they are given by their one weight (d,) have ones there."""
    given = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(4))
    found: dict[nn.Module, torch.Tensor] = {}
    for module in model.modules():
        weights = list(module.parameters())
        if len(weights) == 1 and weights[0].shape == (width,):
            with torch.no_grad():
                output = first_tensor(module(given))
            if output is not None and _close(output, given * weights[0].detach(), SAME):
                found[module], weights[0].data = weights[0].data, torch.ones(width)
    try:
        yield list(found)
    finally:
        for module, values in found.items():
            next(module.parameters()).data = values


def merged_kinds(kinds: Iterable[tuple[Write, ...]]) -> tuple[tuple[Write, ...], ...]:
    """Each kind once, those with more modules and weights first: a block is of the first one whose paths it has."""
    paths = {
        one: {
            path
            for write in one
            for path in (
                write.module,
                write.projection and write.projection.module,
                *(weight.path for weight in (*write.folds, *write.reads)),
            )
        }
        for one in kinds
    }
    return tuple(sorted(paths, key=lambda one: (-len(paths[one]), str(one))))


@dataclass(kw_only=True)
class _Call:
    """One call of a module: what it was given and what it returned, and when."""

    path: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    order: int = 0
    output: object = None
    value: torch.Tensor | None = None
    """A copy of the output's first tensor, as it was returned; later additions in place are not in it."""

    def inputs(self, width: int) -> list[torch.Tensor]:
        """The tensors among the arguments that are `width` wide, as (tokens, width)."""
        given = (*self.args, *self.kwargs.values())
        return [_flat(one) for one in given if _is_wide(one, width)]


@contextmanager
def _recorded(modules: Mapping[str, nn.Module]) -> Iterator[list[_Call]]:
    """Yields the calls of `modules` in the order in which they returned, while the context is open."""
    calls: list[_Call] = []
    started: dict[str, list[_Call]] = {}

    def start(path: str, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        copies = tuple(_copy(one) for one in args)
        named = {name: _copy(one) for name, one in kwargs.items()}
        started.setdefault(path, []).append(_Call(path=path, module=module, args=copies, kwargs=named))

    def end(path: str, output: object) -> None:
        call, first = started[path].pop(), first_tensor(output)
        call.output, call.order, call.value = output, len(calls), None if first is None else first.clone()
        calls.append(call)

    with ExitStack() as stack:
        for path, module in modules.items():
            before = module.register_forward_pre_hook(
                lambda module, args, kwargs, path=path: start(path, module, args, kwargs), with_kwargs=True
            )
            stack.enter_context(before)
            stack.enter_context(module.register_forward_hook(lambda _m, _i, output, path=path: end(path, output)))
        yield calls


def _lists(
    model: PreTrainedModel, given: torch.Tensor, *, count: int
) -> Iterator[tuple[str, list[_Call], dict[str, _Call]]]:
    """Lists of `count` modules that are called once each, in order: path, calls, and calls of what is in no block."""
    for path, blocks in list(model.named_modules()):
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != count:
            continue
        inside = {f"{path}.{index}": block for index, block in enumerate(blocks)}
        rest = {name: each for name, each in model.named_modules() if name and not f"{name}.".startswith(f"{path}.")}
        with _recorded({**rest, **inside}) as calls, torch.no_grad():
            model(input_ids=given, use_cache=False) if given.dim() == 2 else embeddings(model, given)
        called = [call for call in calls if call.path in inside]
        if [call.path for call in called] == list(inside):
            yield path, called, {call.path: call for call in calls if call.path in rest}


class _Block:
    """One block with what the model gave it, to be run by itself."""

    def __init__(self, call: _Call, *, width: int) -> None:
        self.module, self.width, self._call = call.module, width, call
        given = [call.args[0]] if call.args else [one for one in call.kwargs.values() if _is_wide(one, width)]
        stream, after = given[0] if given else None, call.value
        if not isinstance(stream, torch.Tensor) or after is None or stream.shape != after.shape:
            raise NotFound("its blocks do not take and return one stream of the width of the model")
        self.before, self.after, self.shape = _flat(stream), _flat(after), stream.shape
        self.change = self.after - self.before
        self.parameters = dict(self.module.named_parameters())
        self.adds_in_place = False
        modules = {path: module for path, module in self.module.named_modules() if path}
        with _recorded(modules) as calls:
            self.run()
        once = {path: [call for call in calls if call.path == path] for path in modules}
        self.calls = {path: found[0] for path, found in once.items() if len(found) == 1}

    def run(self) -> torch.Tensor:
        """The stream after it (tokens, d)."""
        with torch.no_grad():
            kwargs = {name: _copy(one) for name, one in self._call.kwargs.items()}
            output = first_tensor(self.module(*(_copy(one) for one in self._call.args), **kwargs))
        assert output is not None
        return _flat(output)

    def value(self, path: str) -> torch.Tensor | None:
        """What the module at `path` returned (tokens, d); `None` for another shape."""
        found = self.calls[path].value if path in self.calls else None
        fits = found is not None and _is_wide(found, self.width) and found.numel() == self.before.numel()
        return _flat(found) if fits and found is not None else None

    def value_with(self, path: str, changes: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same while some parameters have other values."""
        with self.changed(changes), _recorded({path: self.module.get_submodule(path)}) as calls:
            self.run()
        found = calls[0].value
        assert found is not None
        return _flat(found)

    @contextmanager
    def changed(self, changes: Mapping[str, torch.Tensor]) -> Iterator[None]:
        own = {path: self.parameters[path].data for path in changes}
        for path, values in changes.items():
            self.parameters[path].data = values
        try:
            yield
        finally:
            for path, values in own.items():
                self.parameters[path].data = values


def _with_gains(block: _Block, writes: tuple[Write, ...], gains: Sequence[nn.Module]) -> tuple[Write, ...]:
    """The writes, each with the weight of one of the modules `gains` that multiplies its output."""
    found = {
        f"{path}.{name}": block.value(path)
        for path, call in block.calls.items()
        if call.module in gains
        for name, _ in call.module.named_parameters()
    }
    outputs = [block.value(write.module) for write in writes]
    return tuple(
        replace(
            write,
            gain=next((path for path, value in found.items() if output is not None and _same(value, output)), None),
        )
        for write, output in zip(writes, outputs, strict=True)
    )


def _writes(block: _Block, config: object, *, last: bool) -> tuple[Write, ...]:
    """The writes of a block in the order of their computation, or the `last` one alone. Raises `NotFound`."""
    found, since = list[Write](), -1
    for path, factor in [_last_addition(block)] if last else _summands(block):
        module, value = block.module.get_submodule(path), block.value(path)
        assert value is not None
        folds = next((some for offset in (None, 0.0, 1.0) if (some := _folds(block, path, value, offset=offset))), ())
        call = block.calls[path]
        output = first_tensor(call.output)
        if output is not None and call.value is not None:
            block.adds_in_place |= not torch.equal(output, call.value)
        projection = path if isinstance(module, nn.Linear | Conv1D) else _before_norm(block, call, folds)
        unit, returns = _unit(block, projection or path, path)
        reads = _reads(block, since=since, until=call.order, writes={weight.path for weight in folds})
        found.append(
            Write(
                module=path,
                scale=_field(config, factor),
                projection=None if projection is None else _weight_of(block, projection),
                folds=folds,
                reads=reads,
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
    groups: list[tuple[torch.Tensor, list[str]]] = []
    for path in block.calls:
        value = block.value(path)
        if value is None or not float(value.norm()) or _close(value, block.before, SAME):
            continue
        if _close(value, block.after, SAME) and not _close(value, block.change, SAME):
            continue
        same = next((paths for other, paths in groups if _close(value, other, SAME)), None)
        if same is None:
            groups.append((value, [path]))
        else:
            same.append(path)
    paths = [max(paths, key=lambda path: (_owns(block, path), path.count("."))) for _, paths in groups]
    values = torch.stack([value.flatten() for value, _ in groups]).double() if groups else torch.zeros(0, 1)
    wanted = block.change.flatten().double()
    for number in range(1, MOST_WRITES + 1):
        fitting = []
        for some in itertools.combinations(range(len(groups)), number):
            chosen = values[list(some)]
            factors = torch.linalg.lstsq(chosen.T, wanted.unsqueeze(1)).solution.flatten()
            if bool((factors > 0).all()) and _close(factors @ chosen, wanted, TOLERANCE):
                plain = sum(isinstance(block.module.get_submodule(paths[one]), nn.Linear | Conv1D) for one in some)
                unscaled = int(((factors - 1).abs() < TOLERANCE).sum())
                chosen_paths = [paths[one] for one in some]
                fitting.append((plain, unscaled, list(zip(chosen_paths, factors.tolist(), strict=True))))
        if fitting:
            best = max(fitting, key=lambda one: one[:2])[2]
            return sorted(best, key=lambda one: block.calls[one[0]].order)
    return []


def _last_addition(block: _Block) -> tuple[str, float]:
    """The last module whose output, times a factor, the block adds to whatever it makes of the stream.

    Another output in its place changes the stream after the block by the difference. Raises `NotFound`.
    """
    turn = _random(block.width, seed=3)
    for call in sorted(block.calls.values(), key=lambda call: call.order, reverse=True):
        value = block.value(call.path)
        if value is None or not isinstance(call.output, torch.Tensor) or not _owns(block, call.path):
            continue
        turned = (value @ turn).reshape(block.shape)
        with call.module.register_forward_hook(lambda _m, _i, output, turned=turned: turned.reshape(output.shape)):
            change, wanted = block.run() - block.after, value @ turn - value
        factor = float((change * wanted).sum() / wanted.square().sum())
        if factor > 0 and _close(change, wanted * factor, TOLERANCE):
            return call.path, factor
    raise NotFound("what its blocks add to the stream last is not what one of their modules returns")


def _folds(block: _Block, path: str, value: torch.Tensor, *, offset: float | None) -> tuple[Weight, ...]:
    """The weights that together absorb a map of the output `value` of the module at `path`; none if there are none.

    With an `offset` a diagonal map, and norms count from there.
    """
    turn = _random(block.width, seed=1)
    turn = turn if offset is None else turn.diagonal().diag()
    total, found = torch.zeros_like(value), dict[Weight, torch.Tensor]()
    for weight in _along_stream(block.parameters, block.width, offset=offset):
        if any(one.path == weight.path for one in found):
            continue
        own, shift = block.parameters[weight.path].data, weight.offset or 0.0
        part = value - block.value_with(path, {weight.path: torch.full_like(own, -shift)})
        if _close(value - part, value, SAME):
            continue
        turned = along(own + shift, turn, axis=weight.axis) - shift
        if _close(block.value_with(path, {weight.path: turned}) - value, part @ turn - part, TOLERANCE):
            found[weight] = turned
            total += part
    changes = {weight.path: turned for weight, turned in found.items()}
    if not _close(total, value, TOLERANCE) or not _close(block.value_with(path, changes), value @ turn, TOLERANCE):
        return ()
    biases = {implied_bias(one.path) for one in found}
    return tuple(one for one in found if one.path not in biases)


def _weight_of(block: _Block, path: str, *, reads: bool = False) -> Weight:
    """The weight of a linear module, with the axis of its output, or of what it `reads`."""
    return Weight(f"{path}.weight", int(isinstance(block.module.get_submodule(path), Conv1D) != reads))


def _along_stream(
    parameters: Mapping[str, nn.Parameter], width: int, *, offset: float | None = None
) -> Iterator[Weight]:
    """Every axis that is as long as the stream is wide; those of vectors with the `offset`."""
    for path, parameter in parameters.items():
        for axis, size in enumerate(parameter.shape):
            if size == width:
                yield Weight(path, axis, offset if parameter.dim() == 1 else None)


def _before_norm(block: _Block, call: _Call, folds: tuple[Weight, ...]) -> str | None:
    """The linear module whose output the norm of `call` normalises; `None` if it is no such norm, or has a bias."""
    if len(folds) != 1 or folds[0].offset is None or implied_bias(folds[0].path) in block.parameters:
        return None
    given = call.inputs(block.width)
    for path, other in block.calls.items():
        value = block.value(path)
        if (
            isinstance(other.module, nn.Linear | Conv1D)
            and value is not None
            and given
            and _close(value, given[0], SAME)
        ):
            return str(path)
    return None


def _unit(block: _Block, path: str, write: str) -> tuple[str | None, int]:
    """The child of the block with the module at `path`, and what it returns, if it can be left out.

    The block is run with what the child and the module at `write` returned in place of their computation.
    """
    child = path.partition(".")[0]
    call, written = block.calls.get(child), block.value(write)
    if call is None or child == path or written is None:
        return None, 0
    returns = len(call.output) if isinstance(call.output, tuple) else 0
    value = written.reshape(block.shape)
    module, own = block.module.get_submodule(child), vars(block.module.get_submodule(child)).get("forward")
    vars(module)["forward"] = lambda *_args, **_kwargs: as_returned(value, returns)
    last = block.module.get_submodule(write)
    try:
        with last.register_forward_hook(lambda _m, _i, output: value.reshape(output.shape)):
            same = _close(block.run(), block.after, SAME)
    except (TypeError, AttributeError, RuntimeError):  # the block needs what was left out
        same = False
    finally:
        vars(module).pop("forward")
        if own is not None:
            vars(module)["forward"] = own
    return (child, returns) if same else (None, 0)


def _reads(block: _Block, *, since: int, until: int, writes: set[str]) -> tuple[Weight, ...]:
    """The weights that multiply the first value of the stream's width that is read between two writes.

    Proven by a random map of that value, at the module that returns it or else where it is given to modules, which the
    inverse map undoes in the weights.
    """
    turn = torch.eye(block.width) + 0.3 * _random(block.width, seed=2)
    back = torch.linalg.inv(turn).T
    readers = {
        path: call.inputs(block.width)
        for path, call in block.calls.items()
        if any(each.dim() > 1 for each in call.module.parameters(recurse=False))
    }
    inside = [path for path in readers if since < block.calls[path].order <= until]
    inside.sort(key=lambda path: block.calls[path].order)
    values: list[torch.Tensor] = []
    for value in itertools.chain.from_iterable(readers[path] for path in inside):
        if value.shape == block.before.shape and not any(_close(value, other, SAME) for other in values):
            values.append(value)
    for value in values:
        sure = [path for path, given in readers.items() if any(_close(one, value, SAME) for one in given)]
        beside = [path for path in inside if path not in sure]
        for paths in (sure, [*sure, *beside]):
            choices = [_axes(block, path, writes) for path in paths]
            for guess in itertools.islice(itertools.product(*itertools.chain.from_iterable(choices)), MOST_GUESSES):
                weights = [weight for weight in guess if weight is not None]
                own = tuple(one for one in weights if one.path.rpartition(".")[0] in inside)
                with (
                    _turned(block, value, turn),
                    block.changed(
                        {one.path: along(block.parameters[one.path].data, back, axis=one.axis) for one in weights}
                    ),
                ):
                    if own and _close(block.run(), block.after, TOLERANCE):
                        return own
    return ()


def _axes(block: _Block, path: str, writes: set[str]) -> list[list[Weight | None]]:
    """For each parameter of the module at `path`, the axes at which it may read the stream, and last: at none."""
    module = block.module.get_submodule(path)
    if isinstance(module, nn.Linear | Conv1D):
        weight = _weight_of(block, path, reads=True)
        reads = weight.path not in writes and module.weight.shape[weight.axis] == block.width
        return [[weight, None]] if reads else []
    own = {f"{path}.{name}": each for name, each in module.named_parameters(recurse=False)}
    matrices = {name: each for name, each in own.items() if each.dim() > 1 and name not in writes}
    return [
        [*_along_stream({name: each}, block.width), None]
        for name, each in matrices.items()
        if block.width in each.shape
    ]


@contextmanager
def _turned(block: _Block, value: torch.Tensor, turn: torch.Tensor) -> Iterator[None]:
    """Wherever modules of the block read `value` (tokens, d), they read `value @ turn`."""

    def turned(one: object) -> object:
        if _is_wide(one, block.width) and one.numel() == value.numel() and _close(_flat(one), value, SAME):
            return one @ turn
        return one

    def given(
        _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return tuple(turned(one) for one in args), {name: turned(one) for name, one in kwargs.items()}

    source = next((path for path in block.calls if _same(block.value(path), value)), None)
    with ExitStack() as stack:
        if source is not None:
            module = block.module.get_submodule(source)
            stack.enter_context(module.register_forward_hook(lambda _m, _i, output: turned(output)))
        else:  # once a module was given the turned value, those inside are not given the other one
            for call in block.calls.values():
                stack.enter_context(call.module.register_forward_pre_hook(given, with_kwargs=True))
        yield


def _final_norm(model: PreTrainedModel, rest: Mapping[str, _Call], last: _Block) -> Weight | None:
    """The norm that reads the stream after the last block; `None` where it has no weight, or is not found."""
    for path, call in rest.items():
        given = call.inputs(last.width)
        own = {name: each.detach() for name, each in call.module.named_parameters(recurse=False)}
        weight = own.get("weight")
        if not given or not _same(given[0], last.after) or weight is None or weight.shape != (last.width,):
            continue
        assert call.value is not None
        for offset in (0.0, 1.0):
            shift = own.get("bias", 0.0)
            with torch.no_grad():
                values = weight.clone()
                weight.fill_(-offset)
                empty = first_tensor(call.module(*call.args, **call.kwargs))
                weight.copy_(values)
            if empty is not None and float((empty - shift).norm()) <= SAME * float(call.value.norm()):
                return Weight(f"{path}.weight", 0, offset)
    return None


def _looks_up_positions(call: _Call, length: int) -> bool:
    """Whether it is a table of positions."""
    if not isinstance(call.module, nn.Embedding) and "position" not in type(call.module).__name__.lower():
        return False
    for one in (*call.args, *call.kwargs.values()):
        if isinstance(one, torch.Tensor) and not one.is_floating_point() and one.shape[-1:] == (length,):
            steps = one.reshape(-1, length).diff(dim=-1)
            if bool((steps == 1).all()) and any(True for _ in call.module.parameters()):
                return True
    return False


def _field(config: object, factor: float) -> str | None:
    """The config's field with this factor; `None` for 1. Raises `NotFound` if there is none."""
    if abs(factor - 1) < TOLERANCE:
        return None
    values = {name: value for name, value in vars(config).items() if isinstance(value, float)}
    names = [name for name, value in values.items() if abs(value - factor) < TOLERANCE * factor]
    if not names:
        raise NotFound(f"it multiplies what its blocks add by {factor:.3g}, which no field of its config says")
    return names[0]


def _owns(block: _Block, path: str) -> bool:
    return any(True for _ in block.module.get_submodule(path).parameters(recurse=False))


def _random(width: int, *, seed: int) -> torch.Tensor:
    """A matrix (d, d) that changes no length by much."""
    return torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.detach().reshape(-1, values.shape[-1])


def _is_wide(value: object, width: int) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[-1:] == (width,)


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return one.shape == other.shape and float((one - other).norm()) <= tolerance * float(other.norm())


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and _close(one, other, SAME)
