"""What belongs to an owner is not reached without naming the owner."""

import inspect
from types import ModuleType

import pytest

from replaceme_core.ledger import changes, reading, webhooks

WITHOUT = {
    changes: set[str](),
    # by pairs of id and owner; of jobs that were read before; of all owners, but nothing that tells of a job
    reading: {"get_snapshots", "timelines", "timeline_of", "to_event", "past_jobs"},
    # what sends messages and cleans up
    webhooks: {"has_due", "claim", "record", "delete_old", "message_id", "parse_message_id", "body_of"},
}


@pytest.mark.parametrize("module", WITHOUT, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_owner_is_a_required_argument(module: ModuleType) -> None:
    found = set()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            owner = inspect.signature(function).parameters.get("owner")
            if owner is None:
                found.add(name)
            else:
                assert owner.default is owner.empty and owner.annotation is str, name
    assert found == WITHOUT[module]
