"""Turns WikiText into ordinary text, and splits it into a part for calibration and a part for evaluation.

    python -m benchmarks.wikitext FILE --fit OUT1 --measure OUT2

WikiText consists of word-level tokens; these are joined again. The raw text is split at the last line end within the
first 60 % of its characters.
"""

import argparse
import re
from pathlib import Path

FIT_SHARE = 0.6

_JOINERS = re.compile(r" @([-,.])@ ")
_HEADING = re.compile(r"^ ?((?:= )+)(.*?)((?: =)+) ?$")
_BEFORE = re.compile(r" ([,.;:!?%°′″\)\]]|\.\.\.|n?'(?:s|t|m|ve|re|ll|d)\b)(?=[ \"'()\[\],.;:!?—–]|$)")
_AFTER = re.compile(r"(^|[ \"'(\[])([(\[$£€]) ")
_BETWEEN = re.compile(r" ([–‑/]) ")
_DOUBLE_QUOTED = re.compile(r'(^|[ (\[—–])" ([^"]*?) "(?=[ ,.;:!?)\]—–]|$)')
_SINGLE_QUOTED = re.compile(r"(^|[ (\[—–])' ([^']*?) '(?=[ ,.;:!?)\]—–]|$)")
_OWNER = re.compile(r"((?:s|<unk>)) '(?= )")
_PLACE_OF_YEAR = re.compile(r" ' (?=\d0s\b)")


def detokenise(text: str) -> str:
    """Join word-level tokens: spaces around punctuation are removed as in ordinary text.

    `<unk>` stays: the word is lost, and the sentence without it would be a different one.

    >>> detokenise(' It weighs 0 @.@ 7 kg ( 1 @.@ 5 lb ) , and is a " hard @-@ shelled " one . ')
    'It weighs 0.7 kg (1.5 lb), and is a "hard-shelled" one.'
    >>> detokenise(" = = Life cycle = = ")
    '== Life cycle =='
    """
    return "\n".join(_line(line) for line in text.split("\n"))


def split(text: str) -> tuple[str, str]:
    r"""The part for calibration and the part for evaluation; concatenated they are `text`.

    >>> split("one\ntwo\nthree\nfour\n")
    ('one\ntwo\n', 'three\nfour\n')
    """
    cut = text.rfind("\n", 0, int(len(text) * FIT_SHARE)) + 1
    return text[:cut], text[cut:]


def _line(line: str) -> str:
    heading = _HEADING.match(line)
    if heading and heading[1].count("=") == heading[3].count("="):
        marks = "=" * heading[1].count("=")
        return f"{marks} {_line(heading[2])} {marks}"
    line = line.strip()
    line = _JOINERS.sub(r"\1", line)
    line = _PLACE_OF_YEAR.sub(" '", line)
    line = _DOUBLE_QUOTED.sub(r'\1"\2"', line)
    line = _SINGLE_QUOTED.sub(r"\1'\2'", line)
    line = _OWNER.sub(r"\1'", line)
    line = _AFTER.sub(r"\1\2", line)
    line = _BETWEEN.sub(r"\1", line)
    return _BEFORE.sub(r"\1", line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Split raw WikiText and write both parts as ordinary text.")
    parser.add_argument("file", type=Path, help="raw WikiText, with word-level tokens")
    parser.add_argument("--fit", type=Path, required=True, help="file for the first 60 %%, for calibration")
    parser.add_argument("--measure", type=Path, required=True, help="file for the rest, for evaluation")
    arguments = parser.parse_args()
    fit, measure = split(arguments.file.read_text(encoding="utf-8"))
    for target, part in ((arguments.fit, fit), (arguments.measure, measure)):
        plain = detokenise(part)
        target.write_text(plain, encoding="utf-8")
        print(f"{target}: {len(plain):,} characters")


if __name__ == "__main__":
    main()
