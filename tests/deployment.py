"""What the compose file and the Dockerfiles say, read by a parser: there need not be an engine where tests run."""

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import yaml

import replaceme_core

ROOT = Path(replaceme_core.__file__).parent.parent
DOCKERFILES = tuple(sorted((ROOT / "docker").glob("*.Dockerfile")))


@cache
def compose() -> dict[str, Any]:
    """The compose file, with the default of every variable in its place."""
    text = (ROOT / "docker-compose.yml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in text, "every variable has a default"
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def ours() -> dict[str, dict[str, Any]]:
    """The services that run an image of this project."""
    return {name: service for name, service in services().items() if "build" in service}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """`arguments` is one line, whatever the file looks like."""

    keyword: str
    arguments: str

    def words(self) -> list[str]:
        """Of an instruction in JSON notation, after its options."""
        found: list[str] = json.loads(self.arguments[self.arguments.index("[") :])
        return found


@dataclass(frozen=True, kw_only=True)
class Image:
    """A Dockerfile."""

    instructions: tuple[Instruction, ...]

    @classmethod
    def read(cls, path: Path) -> "Image":
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        text = re.sub(r"\\\n\s*", "", "\n".join(lines))
        parts = (line.split(maxsplit=1) for line in text.splitlines())
        return cls(instructions=tuple(Instruction(keyword=keyword, arguments=rest) for keyword, rest in parts))

    @classmethod
    def of(cls, service: dict[str, Any]) -> "Image":
        return cls.read(ROOT / service["build"]["dockerfile"])

    def all(self, keyword: str) -> list[Instruction]:
        return [each for each in self.instructions if each.keyword == keyword]

    def one(self, keyword: str) -> Instruction:
        (found,) = self.all(keyword)
        return found

    def final_stage(self) -> "Image":
        last = max(number for number, each in enumerate(self.instructions) if each.keyword == "FROM")
        return Image(instructions=self.instructions[last:])

    def environment(self) -> dict[str, str]:
        pairs = (pair.partition("=") for each in self.all("ENV") for pair in each.arguments.split())
        return {name: value for name, _, value in pairs}

    def extras(self) -> set[str]:
        """What the wheel is installed with, unless a build says otherwise."""
        defaults = dict(each.arguments.split("=", 1) for each in self.all("ARG") if "=" in each.arguments)
        runs = Template("\n".join(each.arguments for each in self.all("RUN"))).safe_substitute(defaults)
        found = re.findall(r"replaceme-\*\.whl\)\[([\w,]+)\]", runs)
        return {extra for group in found for extra in group.split(",")}
