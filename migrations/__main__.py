"""`python -m migrations`: upgrade the database in the settings to the newest version.

Works without a checkout, and leaves a database of a later release as it is, which `alembic upgrade head` refuses.
"""

import sys

from replaceme_core.errors import ReplaceMeError
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import read_settings

if __name__ == "__main__":
    try:
        upgrade(read_settings().resolved_database_url)
    except ReplaceMeError as error:
        sys.exit(f"error: {error.explained}")
