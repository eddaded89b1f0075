"""Mixes several texts into one calibration file.

    python -m benchmarks.mix --out FILE.jsonl TEXT.txt 52 OTHER.txt 26

Draws the given number of pieces of 2,300 characters (about 512 tokens of English) from each text, at random and without
overlap, and shuffles them. If a text was wrapped at a fixed width, its lines are joined into paragraphs first.
"""

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

CHARACTERS = 2_300
WIDEST = 120
"""Characters. A text without a longer line was wrapped at a fixed width."""


def unwrap(text: str) -> str:
    r"""Join the lines of each paragraph if no line of the text is long; otherwise return the text as it is.

    >>> unwrap("Call me\nIshmael.\n\nSome years ago")
    'Call me Ishmael.\n\nSome years ago'
    """
    if max(map(len, text.splitlines()), default=0) > WIDEST:
        return text
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def mix(texts: Sequence[tuple[str, int]], *, seed: int = 0) -> list[str]:
    """Draw `count` pieces of each text and shuffle them. Raises `SystemExit` if a text is too short.

    >>> sorted(piece[:2] for piece in mix([("a" * 5 * CHARACTERS, 2), ("b" * CHARACTERS, 1)]))
    ['aa', 'aa', 'bb']
    >>> mix([("a" * 5 * CHARACTERS, 6)])
    Traceback (most recent call last):
    SystemExit: text 1 has 5 pieces of 2300 characters, 6 are needed
    """
    draw, found = random.Random(seed), list[str]()
    for number, (text, count) in enumerate(texts, start=1):
        starts = list(range(0, len(text) - CHARACTERS + 1, CHARACTERS))
        if len(starts) < count:
            raise SystemExit(f"text {number} has {len(starts)} pieces of {CHARACTERS} characters, {count} are needed")
        found += [text[start : start + CHARACTERS] for start in draw.sample(starts, count)]
    draw.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to write")
    parser.add_argument("texts", nargs="+", metavar="TEXT PIECES", help="a text file and its number of pieces")
    options = parser.parse_args()
    if len(options.texts) % 2:
        parser.error("each text must be followed by its number of pieces")
    files = [(Path(name), int(count)) for name, count in zip(options.texts[::2], options.texts[1::2], strict=True)]
    pieces = mix([(unwrap(file.read_text(encoding="utf-8-sig")), count) for file, count in files])
    options.out.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    print(f"{options.out}: {len(pieces)} pieces")


if __name__ == "__main__":
    main()
