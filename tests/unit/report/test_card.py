"""The model card of the same run shows the same values."""

import json
from pathlib import Path

from huggingface_hub import ModelCard

from tests.fixtures.reports.card import card_differences


def test_every_figure_of_the_card_is_the_one_in_the_report(result: Path) -> None:
    card, report = ModelCard.load(result / "README.md"), json.loads((result / "replaceme.json").read_text())
    assert card_differences(card, report) == []
    report["texts"][1]["agreement"] += 0.02
    report["after"]["parameters"] *= 2
    report["gate"]["criteria"][0]["value"] *= 1.1
    report["tasks"][0]["after"]["high"] += 0.01
    report["candidates"][0]["held_out_loss"] = 99.0
    assert len(card_differences(card, report)) >= 5, "a wrong value would be found"
