"""Labels of jobs on the command line."""

import typer


def parse_labels(texts: list[str]) -> dict[str, str]:
    """
    >>> parse_labels(["team=nlp"])
    {'team': 'nlp'}
    """
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--label")
        labels[name] = value
    return labels
