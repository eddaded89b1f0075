"""Find words that may not come back, and say what to write instead: `python docs/check_words.py`.

Scans code, documents, images and the compose file. Prints file, line, word and replacement; exits with 1 on any hit.
Words are whole words in any case, and parts of a snake_case name count as words. A space in a pattern also matches an
underscore or a line break. Why there is such a list: docs/decisions/0025-vocabulary.md.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("api", "benchmarks", "docker", "docs", "migrations", "replaceme_core", "tests", "worker")
FILES = ("*.py", "*.md", "*.toml", "*Dockerfile", "docker-compose.yml")

# pattern, what to write instead
WORDS = (
    ("doorbells?", "wake-up message"),
    ("rung|ringing|rings? for", "enqueued, notified; sends a wake-up message"),
    (
        "(?:take|takes|taken|took) (?:up again|up (?:a|the) job|(?:it|them|a job|the job|jobs) up)",
        "resume, retry, claim",
    ),
    ("(?:take|takes|taken|took) (?:(?:it|them|a job|the job|jobs) )?back", "requeue"),
    # quoted, it is a value in the history of a job: {"news": "given back"}
    ("(?<![\"'`])(?:give|gives|given|gave) (?:(?:it|them|a job|the job|its job) )?back", "release, return"),
    ("(?:lend|lends|lending) a hand", "help"),
    ("(?:fall|falls|fell|went) silent", "missed its heartbeat"),
    ("(?:its|a|any other) last words?|last_words", "final message"),
    ("whose turn|(?:is|was) the turn of", "the next job, scheduling"),
    ("keepers?", "anchor block"),
    ("(?:earn|earns|earned) (?:its|their) place", "is accepted if it beats plain removal"),
    ("(?:wanted|needed) beforehand", "requirements"),
    ("want of (?:memory|room|space)", "because memory ran out; not enough disk space"),
    ("disk without room|without room", "not enough disk space"),
    ("stand[-_]ins?|(?:stand|stands|stood|standing) in(?! front)", "stub; replace, take the place of; be in"),
    ("patience|patiently|impatient", "retry, waiting time"),
    ("spared", "not counted as an attempt"),
    ("skeletons?", "lazily loaded model"),
    # quoted, after a dot or a hyphen it is the value of `loading`
    ("(?<![\"'`.-])(?<!loading )blockwise(?! = )", "block by block"),
    ("mend|mends|mended|mending", "fix"),
    ("(?:is|are|was|were|be|been) told|told of", "receive; is reported"),
    ("hears?|heard", "receive, consume"),
    ("dear|dearer|dearest", "expensive"),
    ("pace", "rate, latency"),
    ("taps?|tapped", "hook"),
    ("whoever|whomever", "name who it is: the worker, the caller"),
    ("round in circles", "repeat itself"),
    ("for ever", "forever, without limit"),
    ("so many", 'the number, or "one per ...", "a quarter as many"'),
    ("as many as there are", "the number"),
    ("without doubt", "significantly; by more than 4 standard errors"),
    ("told apart", "significantly different"),
    ("what is left without", 'the value "after removing" the blocks'),
    ("nobody uses", "say what it is for"),
)

STORED = ("last_rung_at", "hub_patience_seconds", "told_apart")
"""A column and a setting that are older than the list."""

# place, the word there, why
ALLOWED = (
    ("docs/check_words.py", "*", "the list itself"),
    ("tests/unit/test_vocabulary.py", "*", "tests of the list"),
    ("docs/decisions/0025-vocabulary.md", "*", "names the old words"),
    ("migrations/versions/*.py", "spared", "a column, as it was created"),
    ("replaceme_core/ledger/tables.py", "spared", "the column, mapped to its name in the code"),
    ("tests/integration/ledger/test_backup.py", "spared", "the SQL of the how-to"),
    ("docs/how-to/back-up-and-restore.md", "spared", "SQL on the column"),
    ("docs/decisions/0008-scheduling-keys-and-limits.md", "spared", "explains the column"),
    ("docs/decisions/0016-expand-then-contract.md", "spared", "lists stored names"),
)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A word that may not be there; `line` counts from 1."""

    line: int
    word: str
    instead: str


def _compiled(pattern: str) -> re.Pattern[str]:
    gap = r"(?:_|\\s+(?:#\\s*)?)"
    return re.compile(rf"(?<![A-Za-z0-9])(?:{re.sub(' (?![=)])', gap, pattern)})(?![A-Za-z0-9])", re.IGNORECASE)


_PATTERNS = tuple((_compiled(pattern), instead) for pattern, instead in WORDS)
_STORED = re.compile("|".join(STORED), re.IGNORECASE)


def find_words(text: str) -> list[Hit]:
    """All words of the list in `text`, in order.

    >>> [(hit.line, hit.word) for hit in find_words("the message is\\na doorbell")]
    [(2, 'doorbell')]
    """
    text = _STORED.sub(lambda name: " " * len(name[0]), text)
    hits = [
        Hit(line=text.count("\n", 0, match.start()) + 1, word=" ".join(match[0].split()), instead=instead)
        for pattern, instead in _PATTERNS
        for match in pattern.finditer(text)
    ]
    return sorted(hits, key=lambda hit: hit.line)


def is_allowed(path: str, word: str) -> bool:
    """Whether `word` may stand at `path`, which is relative to the root and has forward slashes."""
    return any(fnmatch(path, place) and allowed in ("*", word.lower()) for place, allowed, _ in ALLOWED)


def scanned_files(root: Path) -> Iterator[Path]:
    """The files to look at: those of `FOLDERS` and those beside them."""
    places = [root.iterdir(), *(folder.rglob("*") for name in FOLDERS if (folder := root / name).is_dir())]
    for place in places:
        for path in sorted(place):
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in FILES):
                yield path


def main(root: Path = ROOT) -> int:
    """Print all hits; returns the exit status."""
    found = False
    for path in scanned_files(root):
        name = path.relative_to(root).as_posix()
        for hit in find_words(path.read_text(encoding="utf-8")):
            if not is_allowed(name, hit.word):
                found = True
                sys.stdout.write(f'{name}:{hit.line}: "{hit.word}": write: {hit.instead}\n')
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
