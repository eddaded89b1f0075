"""What is checked of a webhook before it is stored. It is checked again at each message, since names change."""

from replaceme_core.errors import HostUnknown, InvalidInput
from replaceme_core.settings import Settings
from replaceme_core.webhooks.target import addresses_of, parse_target

LOOK_UP_SECONDS = 2.0


def check_url(url: str, settings: Settings, *, field: str = "url") -> None:
    """Raises `InvalidInput` (`field`) for a URL to which no message would ever go.

    A name that has no address now may have one later, so that is no error.
    """
    rules = settings.webhook_rules()
    try:
        addresses_of(parse_target(url, rules), rules, seconds=LOOK_UP_SECONDS)
    except HostUnknown:
        return
    except InvalidInput as error:
        error.field = field
        raise
