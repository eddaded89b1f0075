"""The layout of a live model is found by running it: on each tiny model of the tests, and on made-up blocks."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks import families
from benchmarks.harness.discover import NotFound, discover
from replaceme_core.families.layout import FAMILIES, Weight
from tests.fixtures.models.tiny import VARIANTS, Variant, tiny_model, token_ids

WIDTH, INNER, BLOCKS = 12, 20, 3


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_row_is_found_again(variant: Variant) -> None:
    model, row = tiny_model(variant), FAMILIES[variant.model_type]
    if "moe" in variant.name or variant.model_type == "mixtral":
        model.set_experts_implementation("eager")
    found = discover(model, model.config, token_ids(2, 24))
    assert (found.blocks, found.block_returns, found.learned_positions) == (
        row.blocks,
        row.block_returns,
        row.learned_positions,
    )
    scaled = {write.scale for kind in row.kinds for write in kind if write.scale}
    unscaled = all(getattr(model.config, name) == 1 for name in scaled)
    known = {tuple(replace(one, scale=None) if unscaled else one for one in kind) for kind in row.kinds}
    assert set(found.kinds) <= known
    assert found.final_norm in (None, row.final_norm)
    assert row.added_in_place or not found.added_in_place


@pytest.mark.parametrize("model_type", ["ernie4_5_moe", "llama4_text", "minimax"])
def test_the_program_writes_the_row(model_type: str) -> None:
    families.quiet()
    assert families.find(model_type).row == FAMILIES[model_type]


def test_the_program_writes_which_last_blocks_stay() -> None:
    assert {name for name, row in FAMILIES.items() if row.keeps_last} == set(families.LAST_STAYS)


@dataclass(frozen=True, kw_only=True)
class Design:
    """How the blocks of a made-up model are built."""

    parallel: bool
    mixer: bool
    experts: bool
    shared: bool
    norm_before: bool
    norm_after: bool
    scale: float | None
    names: tuple[str, str, str]


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH) * 0.2 + 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * values.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt() * self.weight


class Mixer(nn.Module):
    """Every position adds what those before it have left, as a state space does."""

    def __init__(self, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names = names
        setattr(self, names[0], nn.Linear(WIDTH, INNER))
        setattr(self, names[1], nn.Linear(INNER, WIDTH, bias=False))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        read, write = (getattr(self, name) for name in self.names[:2])
        output: torch.Tensor = write(torch.tanh(read(values)).cumsum(1) / 3)
        return output


class Experts(nn.Module):
    """Two experts in one parameter, and one that all tokens share."""

    def __init__(self, names: tuple[str, str, str], *, shared: bool) -> None:
        super().__init__()
        self.names, self.shared = names, shared
        self.router = nn.Linear(WIDTH, 2)
        setattr(self, names[0], nn.Parameter(torch.randn(2, INNER, WIDTH) * 0.3))
        setattr(self, names[1], nn.Parameter(torch.randn(2, WIDTH, INNER) * 0.3))
        if shared:
            setattr(self, names[2], Mixer(names))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        shares = self.router(values).softmax(-1)
        read, write = (getattr(self, name) for name in self.names[:2])
        inner = torch.tanh(torch.einsum("bpd,efd->bpef", values, read))
        output = torch.einsum("bpef,edf,bpe->bpd", inner, write, shares)
        return output + getattr(self, self.names[2])(values) if self.shared else output


class Block(nn.Module):
    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        for name, wanted in (("before", design.norm_before), ("between", design.norm_before)):
            setattr(self, name, Norm() if wanted else nn.Identity())
        self.after = Norm() if design.norm_after else nn.Identity()
        self.first = Mixer(design.names) if design.mixer else None
        self.second = Experts(design.names, shared=design.shared) if design.experts else Mixer(design.names)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        scale, between = self.design.scale or 1.0, stream
        if self.first is not None:
            between = stream + self.first(self.before(stream)) * scale
        read = stream if self.design.parallel else between
        output: torch.Tensor = between + self.after(self.second(self.between(read))) * scale
        return output


class Model(nn.Module):
    def __init__(self, blocks: list[nn.Module], **fields: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="made_up", hidden_size=WIDTH, num_hidden_layers=len(blocks), **fields)
        self.embedding, self.stack, self.norm = nn.Embedding(30, WIDTH), nn.ModuleList(blocks), Norm()

    def forward(self, input_ids: torch.Tensor, *, use_cache: bool) -> torch.Tensor:
        assert not use_cache
        stream = self.embedding(input_ids)
        for block in self.stack:
            stream = block(stream)
        output: torch.Tensor = self.norm(stream)
        return output


NAMES = st.permutations(["weights", "o", "down_proj", "gate", "attn", "x"]).map(lambda names: tuple(names[:3]))
DESIGNS = st.builds(
    Design,
    parallel=st.booleans(),
    mixer=st.booleans(),
    experts=st.booleans(),
    shared=st.booleans(),
    norm_before=st.booleans(),
    norm_after=st.booleans(),
    scale=st.sampled_from([None, 0.37, 2.5]),
    names=NAMES,
)
TOKENS = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(1))


def made_up(design: Design) -> Any:
    torch.manual_seed(2)
    fields = {} if design.scale is None else {"branch_factor": design.scale}
    return Model([Block(design) for _ in range(BLOCKS)], **fields).eval()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DESIGNS)
def test_made_up_blocks_are_found(design: Design) -> None:
    model = made_up(design)
    found = discover(model, model.config, TOKENS)
    (writes,) = found.kinds
    read, write, shared = design.names
    assert [one.scale for one in writes] == [None if design.scale is None else "branch_factor"] * (1 + design.mixer)
    if design.mixer:
        assert writes[0].module == f"first.{write}"
        assert writes[0].reads == (Weight(f"first.{read}.weight", 1),)
        assert writes[0].folds == (Weight(f"first.{write}.weight", 0),)
    last = writes[-1]
    matrices = [Weight(f"second.{write}", 1)] if design.experts else [Weight(f"second.{write}.weight", 0)]
    if design.experts and design.shared:
        matrices.append(Weight(f"second.{shared}.{write}.weight", 0))
    expected = [Weight("after.weight", 0, 0.0)] if design.norm_after else matrices
    assert set(last.folds) == set(expected)
    assert found.final_norm == Weight("norm.weight", 0, 0.0)
    assert found.blocks == "stack"


class Outside(Block):
    """Multiplies what it adds by a factor that no config says."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + 0.61 * self.second(stream)


class Mixed(Block):
    """The last addition is not linear in what its modules return."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + torch.tanh(self.second(stream))


class Turned(Block):
    """Normalises the sum, so that nothing is added last."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(stream + self.second(stream), (WIDTH,))


PLAIN = Design(
    parallel=False,
    mixer=False,
    experts=False,
    shared=False,
    norm_before=True,
    norm_after=False,
    scale=None,
    names=("a", "b", "c"),
)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Outside, "multiplies what its blocks add by 0.61, which no field"),
        (Mixed, "add to the stream last is not what one of their modules returns"),
        (Turned, "add to the stream last is not what one of their modules returns"),
    ],
)
def test_what_cannot_be_found_is_refused(block: type[Block], reason: str) -> None:
    model: Any = Model([block(PLAIN) for _ in range(BLOCKS)]).eval()
    with pytest.raises(NotFound, match=reason):
        discover(model, model.config, TOKENS)


def test_a_model_that_changes_the_stream_between_its_blocks() -> None:
    model: Any = made_up(PLAIN)

    def forward(input_ids: torch.Tensor, *, use_cache: bool) -> torch.Tensor:
        stream = model.embedding(input_ids)
        for block in model.stack:
            stream = block(stream) * 1.1
        return stream

    model.forward = forward
    with pytest.raises(NotFound, match="changes the stream between its blocks"):
        discover(model, model.config, TOKENS)


def test_the_weights_are_as_before() -> None:
    model: Any = made_up(PLAIN)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    discover(model, model.config, TOKENS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
