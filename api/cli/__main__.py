"""`python -m api.cli`: the same as `replaceme`."""

from api.cli.main import main

main()
