"""Options that `compress` and `evaluate` share."""

from pathlib import Path
from typing import Annotated

import typer

from replaceme_core.spec import Dtype

MODEL_HELP = "a directory as save_pretrained writes it, or org/name on the Hub, also org/name@revision"
Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL_HELP}.")]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Directory for what the dense model has computed, for later runs on the same model and text."
    ),
]
Device = Annotated[str | None, typer.Option(help="Device such as cpu, cuda or cuda:1. Default: the fastest available.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Data type of the computation. Default: what is fast on the device.")
]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads.")]
