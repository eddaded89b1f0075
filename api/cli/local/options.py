"""Options that `compress` and `evaluate` share."""

from pathlib import Path
from typing import Annotated

import typer

from replaceme_core.spec import Dtype

ModelDirectory = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="Directory of a model, as save_pretrained writes it.")
]
Device = Annotated[str | None, typer.Option(help="Device such as cpu, cuda or cuda:1. Default: the fastest available.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Data type of the computation. Default: what is fast on the device.")
]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads.")]
