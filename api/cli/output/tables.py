"""Tables of measurements, candidates and differences, for people."""

import math
import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from api.cli.output.models import NOT_TOLD_APART, interval_of, memory, rate
from api.cli.output.values import inside, number, shown

LOSS_WIDTH = 6
"""Characters of a loss with four digits. Names of sources are folded to it where a terminal has 80 columns."""


def before_after_table(
    before: Mapping[str, object], after: Mapping[str, object], speed_changes: object = None
) -> Table:
    """Measurements of the model before and after. A row without values is left out.

    `speed_changes` are those of `replaceme.json`; where they are given, reading and writing have rows of their own.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, label, digits in (
        ("blocks", "blocks", 0),
        ("parameters", "parameters", 0),
        ("bytes", "bytes on disk", 0),
        ("perplexity", "perplexity", 2),
        ("word_perplexity", "  per word", 2),
        ("byte_perplexity", "  per byte", 3),
        ("tokens_per_second", "tokens per second", 0),
    ):
        if key == "tokens_per_second" and speed_changes:
            continue
        old, new = number(before.get(key)), number(after.get(key))
        if old is not None or new is not None:
            table.add_row(label, shown(old, digits), shown(new, digits), _change(old, new, key))
    if isinstance(speed_changes, Mapping) and speed_changes:
        _add_speed(table, before.get("speed"), after.get("speed"), speed_changes)
    return table


def _add_speed(table: Table, before: object, after: object, changes: Mapping[str, object]) -> None:
    """Rows for speed and memory. A change that is within the spread of the runs is none."""
    for name, label in (("prefill", "read, tokens per second"), ("decode", "written, tokens per second")):
        ratio = number(inside(changes, name, "ratio"))
        apart = inside(changes, name, "told_apart") is True and ratio is not None
        table.add_row(label, rate(before, name), rate(after, name), f"x {ratio:.2f}" if apart else NOT_TOLD_APART)
    for name, label in (("cache_bytes_per_token", "KV cache, bytes per token"), ("peak_bytes", "peak memory, bytes")):
        old, new = number(inside(before, name)), number(inside(after, name))
        table.add_row(label, memory(before, name), memory(after, name), _change(old, new, name))


def texts_table(texts: Sequence[Mapping[str, object]]) -> Table:
    """Perplexities on each text, before and after, and how often both models find the same token most likely.

    Rows are those of `replaceme.json`.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("perplexity on")
    for name in ("before", "after", "times", "same first choice"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in texts:
        figures = [shown(number(row.get(name)), 2) for name in ("before", "after", "ratio")]
        figures[-1] += interval_of(row)
        agreement = number(row.get("agreement"))
        same = "-" if agreement is None else f"{agreement:.0%}"
        table.add_row(str(row.get("name")), *figures, same)
    return table


def differences_table(differences: Sequence[Mapping[str, object]]) -> Table:
    """Tensors that are not the same in two models, with how many values differ, and by how much."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ("differs in", "values", "at most by", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in differences:
        differing, values = number(row.get("differing")), number(row.get("values"))
        share = "all" if differing is None else f"{shown(differing, 0)} of {shown(values, 0)}"
        sizes = (number(row.get(name)) for name in ("largest", "relative"))
        table.add_row(
            str(row.get("name")),
            str(row.get("what")),
            share,
            *("-" if one is None else f"{one:.3g}" for one in sizes),
        )
    return table


def candidates_table(candidates: Sequence[Mapping[str, object]], *, most: int = 8) -> Table:
    """The best candidates, at most `most`, with the chosen one first and marked. Rows are those of `replaceme.json`.

    The cut is chosen by held-out loss among the few candidates with the least residual; the others have no loss. A loss
    with a tilde is an estimate: the candidate was evaluated on a part of the held-out text.
    Residuals are comparable only if they are measured on the same number of tokens: those on fewer tokens come last.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("")
    table.add_column("blocks", justify="right", no_wrap=True)
    measured = [
        name for name in ("distance", "residual") if any(number(row.get(name)) is not None for row in candidates)
    ]
    headings = {"distance": ("distance", "before fit"), "residual": ("residual", "after fit")}
    for heading in (*(headings[name] for name in measured), ("held-out", "loss")):
        table.add_column(Group(*heading), justify="right", no_wrap=True)
    sources = sources if len(sources := _sources_of(candidates)) > 1 else []
    for name in sources:
        table.add_column(Group("on", *_in_lines(name)), justify="right", overflow="fold", min_width=LOSS_WIDTH)
    for row in sorted(candidates, key=_rank)[:most]:
        first, last = row.get("start"), row.get("end")
        table.add_row(
            "->" if row.get("chosen") else "",
            str(first) if first == last else f"{first}-{last}",
            *(shown(number(row.get(name)), 4) for name in measured),
            ("~" if row.get("estimated") else "") + shown(number(row.get("held_out_loss")), 4),
            *(shown(number(inside(row, "source_losses", name)), 4) for name in sources),
            style="bold" if row.get("chosen") else "",
        )
    return table


def _in_lines(name: str) -> list[str]:
    """The name of a source in short lines, so that four sources fit into a terminal of 80 columns.

    >>> _in_lines("builtin:general")
    ['builtin:', 'general']
    """
    return re.split(r"(?<=[:-])(?=\S)| ", name)


def _sources_of(candidates: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of the sources that candidates were judged on."""
    found = next((losses for row in candidates if (losses := row.get("source_losses"))), None)
    return list(found) if isinstance(found, Mapping) else []


def _rank(row: Mapping[str, object]) -> tuple[bool, float, float, float]:
    loss, residual = (number(row.get(name)) for name in ("held_out_loss", "residual"))
    last, tokens = math.inf, number(row.get("tokens")) or 0
    return not row.get("chosen"), last if loss is None else loss, -tokens, last if residual is None else residual


def _change(old: float | None, new: float | None, key: str) -> str:
    if not old or new is None:
        return ""
    times = key.endswith("perplexity") or key == "tokens_per_second"
    return f"x {new / old:.2f}" if times else f"{new / old - 1:+.1%}"
