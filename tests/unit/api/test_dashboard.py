"""Every metric, label and value in the dashboard and the alert rules exists: a scrape of a live service has it."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from api.routes.deps import Services
from benchmarks.harness.checkout import ROOT
from replaceme_core.hardware import WorkerKind
from replaceme_core.runner.messages import Stage
from tests.fixtures.api.service import METRICS_KEY, Service
from tests.fixtures.jobs.ledger import Ledger

FOLDER = ROOT / "docker" / "monitoring"
TARGET = {"job", "instance"}
"""Labels that Prometheus adds to every series."""
Known = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def samples(service: Service) -> list[Sample]:
    """Those of a service that has seen everything once."""
    service.reset()
    ledger = Ledger(service.database)
    memory = {"total_bytes": 100, "used_bytes": 40, "gpu_total_bytes": 80, "gpu_used_bytes": 9}
    ledger.report_worker("h:1", *WorkerKind, **memory)
    ledger.add()
    ledger.fail(ledger.add(), code="internal_error")
    done = ledger.claim(ledger.add())
    ledger.progress(done, Stage.SOLVE)
    ledger.succeed(done)
    ledger.claim(ledger.add(), lease_seconds=-1)
    ledger.requeue_expired()
    services: Services = service.client.app.state.services()  # type: ignore[attr-defined]
    services.monitoring.record_try(error="timeout", is_last=False)
    assert service.client.get("/ready").status_code == 200
    text = service.client.get("/metrics", headers={"authorization": f"Bearer {METRICS_KEY}"}).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


@pytest.fixture(scope="module")
def scraped(samples: list[Sample]) -> Known:
    """Names of samples, and the values of each of their labels."""
    known: Known = defaultdict(lambda: defaultdict(set))
    for sample in samples:
        values = known[sample.name]
        for label, value in sample.labels.items():
            values[label].add(value)
    return dict(known)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, with the place where it is."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


def unknown_in(expression: str, known: Known) -> list[str]:
    """What an expression of PromQL names, metrics, labels and values, that no scrape has."""
    names = re.findall(r"\b(?:replaceme|process)_\w+", expression)
    labels = {label for name in names for label in known.get(name, ())} | TARGET
    grouped = re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression)
    found = [name for name in names if name not in known]
    found += [label for group in grouped for label in re.findall(r"\w+", group) if label not in labels]
    for name, matchers in re.findall(r"\b(\w+){([^}]*)}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            values = known.get(name, {}).get(label, {value} if label in TARGET else set())
            if label not in labels or (operator in ("=", "!=") and value not in values):
                found.append(f"{label}={value}")
    return found


def test_every_expression_names_what_exists(scraped: Known) -> None:
    found = list(expressions())
    assert len(found) > 35
    assert {place: unknown for place, one in found if (unknown := unknown_in(one, scraped))} == {}
    wrong = 'max by (route) (replaceme_jobs{state="queued", status="waiting"} + replaceme_job)'
    assert unknown_in(wrong, scraped) == ["replaceme_job", "route", "state=queued", "status=waiting"]
    text = (ROOT / "docs" / "reference" / "http.md").read_text()
    section = text.partition("## Metrics of the service")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    documented = {
        name: set(re.findall("`([a-z]+)`", row[2])) for row in rows for name in re.findall("`([a-z_]+)`", row[1])
    }
    there = {
        re.sub("_(bucket|sum|count)$", "", name): set(labels) - {"le"}
        for name, labels in scraped.items()
        if not name.startswith("process_")
    }
    assert documented == there


def test_every_expression_counts_events_of_each_code(samples: list[Sample]) -> None:
    """The highest of the API's processes, which show the same, is taken for each series and not among several."""
    events = [one for one in samples if one.name == "replaceme_job_events_total"]
    counted = {one.labels["type"] for one in events if one.value}
    assert counted == {"created", "claimed", "failed", "succeeded", "lease_lapsed"}
    pattern = r"max(?: by \(([^)]*)\))? ?\(increase\(replaceme_job_events_total(?:{([^}]*)})?\["
    for place, expression in expressions():
        found = re.findall(pattern, expression)
        assert len(found) == expression.count("replaceme_job_events"), place
        for group, matchers in found:
            named = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
            chosen = [one for one in events if named.items() <= one.labels.items()]
            types = {one.labels["type"] for one in chosen if one.value}
            assert types == ({named["type"]} if "type" in named else counted), place
            kept = {tuple(one.labels[label] for label in re.findall(r"\w+", group)) for one in chosen}
            assert len(kept) == len(chosen), place


def test_each_alert_has_a_name_of_its_own_and_advice() -> None:
    advice = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
    assert set(re.findall("`(ReplaceMe[A-Za-z]+)`", advice)) == set(names)
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert (config["rule_files"], scrape.get("metrics_path", "/metrics")) == (["alerts.yml"], "/metrics")
    jobs = {job for _, expression in expressions() for job in re.findall(r'job="([^"]*)"', expression)}
    assert jobs == {scrape["job_name"]}
