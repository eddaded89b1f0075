"""One calibration file out of several texts.

    python -m benchmarks.mix --out FILE.jsonl TEXT.txt 52 OTHER.txt 26

Takes so many pieces of 2,300 characters (about 512 tokens of English) from each text, drawn at random without overlap,
and shuffles them. Lines of a text that was wrapped to a width are joined to paragraphs.
"""

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

CHARACTERS = 2_300
WIDEST = 120
"""Characters in a line; a text without a longer one was wrapped."""


def unwrap(text: str) -> str:
    r"""Paragraphs on one line each, where no line is long; else the text as it is.

    >>> unwrap("Call me\nIshmael.\n\nSome years ago")
    'Call me Ishmael.\n\nSome years ago'
    """
    if max(map(len, text.splitlines()), default=0) > WIDEST:
        return text
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def mix(texts: Sequence[tuple[str, int]], *, seed: int = 0) -> list[str]:
    """So many pieces of each text, shuffled. Raises `SystemExit` where a text is too short."""
    draw, found = random.Random(seed), list[str]()
    for number, (text, count) in enumerate(texts, start=1):
        starts = list(range(0, len(text) - CHARACTERS + 1, CHARACTERS))
        if len(starts) < count:
            raise SystemExit(f"text {number} has {len(starts)} pieces of {CHARACTERS} characters, {count} are wanted")
        found += [text[start : start + CHARACTERS] for start in draw.sample(starts, count)]
    draw.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("texts", nargs="+", metavar="TEXT PIECES")
    options = parser.parse_args()
    if len(options.texts) % 2:
        parser.error("each text is followed by the number of its pieces")
    files = [(Path(name), int(count)) for name, count in zip(options.texts[::2], options.texts[1::2], strict=True)]
    pieces = mix([(unwrap(file.read_text(encoding="utf-8-sig")), count) for file, count in files])
    options.out.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    print(f"{options.out}: {len(pieces)} pieces")


if __name__ == "__main__":
    main()
