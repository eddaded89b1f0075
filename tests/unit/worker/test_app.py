import logging

import worker.app


def test_requests_to_the_hub_are_not_logged() -> None:
    """Presigned upload addresses are secrets."""
    assert worker.app.app.main == "replaceme"
    assert not logging.getLogger("httpx2").isEnabledFor(logging.INFO)
