"""What a worker's application decides before it takes messages."""

import logging
from pathlib import Path

import pytest

import worker.app
from replaceme_core.admission.worker_kind import Route
from replaceme_core.errors import InvalidInput
from replaceme_core.settings import Settings
from tests.fixtures.hardware import torch_that_sees

BOTH = (Route.CPU, Route.GPU)
OURS = Settings(_env_file=None)


def test_requests_to_the_hub_are_not_logged() -> None:
    """Presigned upload addresses are secrets."""
    assert worker.app.app.main == "replaceme"
    assert not logging.getLogger("httpx2").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("named", "gpus", "served"),
    [
        (None, 0, (Route.CPU,)),
        (None, 1, BOTH),
        ((Route.GPU,), 1, (Route.GPU,)),
        ((Route.CPU,), 0, (Route.CPU,)),
        ((Route.CPU,), 1, (Route.CPU,)),
    ],
)
def test_jobs_for_a_gpu_are_served_where_there_is_one(
    named: tuple[Route, ...] | None, gpus: int, served: tuple[Route, ...], tmp_path: Path
) -> None:
    assert worker.app.routes_here(named, settings=OURS, environ=torch_that_sees(gpus, tmp_path)) == served


def test_who_is_told_to_serve_a_gpu_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="torch sees no GPU"):
        worker.app.routes_here((Route.GPU,), settings=OURS, environ=torch_that_sees(0, tmp_path))


def test_a_runner_of_the_operators_own_may_see_other_hardware(tmp_path: Path) -> None:
    sandboxed = Settings(_env_file=None, runner_command=("sandbox", "run"))
    for named, served in ((None, BOTH), ((Route.GPU,), (Route.GPU,))):
        assert worker.app.routes_here(named, settings=sandboxed, environ=torch_that_sees(0, tmp_path)) == served
