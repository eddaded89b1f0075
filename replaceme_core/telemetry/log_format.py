"""The two forms of a log. Imports the standard library only."""

from enum import StrEnum


class LogFormat(StrEnum):
    """`json`: an object a line, for programs; `text`: for people."""

    JSON = "json"
    TEXT = "text"
