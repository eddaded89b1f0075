"""The Helm chart, rendered without a cluster: objects that Kubernetes takes, with nothing secret in them, and every
value used. What KEDA asks the database is asked of a real one.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from typing import Any

import helm_python
import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError
from sqlalchemy import text

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys, NewKey, Scope
from replaceme_core.settings import Settings
from replaceme_core.shapes import KeyLimits
from tests.fixtures.jobs.ledger import Ledger

PLACE = ROOT / "deploy" / "helm" / "replaceme"
VERSION = "1.34"
Values = Mapping[str, Any]
Thing = dict[str, Any]
"""A rendered object."""
EVERYTHING: Values = {
    "fullnameOverride": "pruner",
    "imagePullSecrets": [{"name": "registry"}],
    "api": {
        "hosts": ["replaceme.example.com"],
        "ingress": {"enabled": True, "className": "nginx", "annotations": {"a": "b"}, "tlsSecretName": "tls"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "api", "operator": "Exists"}],
    },
    "workers": {
        name: {
            "enabled": True,
            "gpus": 1,
            "kueueQueue": "team-a",
            "priorityClassName": "low",
            "nodeSelector": {"pool": name},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
        }
        for name in ("cpu", "gpu")
    },
    "cache": {"claimName": "cache"},
    "calibration": {"claimName": "texts"},
    "authorities": {"configMapName": "trusted"},
    "networkPolicies": {"apiFrom": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
    "monitoring": {"serviceMonitor": True, "alerts": True, "dashboard": True, "labels": {"release": "prometheus"}},
}
KINDS_OF_OTHERS: Mapping[str, Thing] = {
    # of KEDA and of the Prometheus operator: the fields that this chart sets, as their documentation has them
    "ScaledJob": {
        "pollingInterval": {"type": "integer"},
        "maxReplicaCount": {"type": "integer"},
        "successfulJobsHistoryLimit": {"type": "integer"},
        "failedJobsHistoryLimit": {"type": "integer"},
        "scalingStrategy": {"required": ["strategy"], "properties": {"strategy": {"enum": ["default", "accurate"]}}},
        "rollout": {"properties": {"strategy": {"enum": ["default", "gradual"]}}},
        "jobTargetRef": {"type": "object"},
        "triggers": {
            "items": {
                "required": ["type", "metadata"],
                "properties": {"metadata": {"additionalProperties": {"type": "string"}}},
            }
        },
    },
    "TriggerAuthentication": {
        "secretTargetRef": {
            "items": {"required": ["parameter", "name", "key"], "additionalProperties": {"type": "string"}}
        }
    },
    "ServiceMonitor": {
        "jobLabel": {"type": "string"},
        "selector": {"required": ["matchLabels"]},
        "endpoints": {"items": {"required": ["port", "path"]}},
    },
    "PrometheusRule": {
        "groups": {"items": {"required": ["name", "rules"], "properties": {"rules": {"type": "array"}}}},
    },
}


@cache
def chart() -> Chart:
    helm_python.disable_logging()
    return Chart.load(PLACE)


def rendered(values: Values | None = None, *, name: str = "demo") -> list[Thing]:
    found = chart().render(values=dict(values or {}), name=name, namespace="ml")
    return [one for text in found.values() for one in yaml.safe_load_all(text) if one]


def of_kind(kind: str, values: Values | None = None) -> list[Thing]:
    return [one for one in rendered(values) if one["kind"] == kind]


def pods(things: list[Thing]) -> Iterator[tuple[str, Thing]]:
    """Names of objects, and the specification of their pods."""
    for one in things:
        spec = one["spec"] if one["kind"] in ("Deployment", "Job", "ScaledJob") else {}
        spec = spec.get("jobTargetRef", spec)
        if "template" in spec:
            yield one["metadata"]["name"], spec["template"]["spec"]


VARIANTS: Mapping[str, Values] = {
    "default": {},
    "everything": EVERYTHING,
    "without keda": {**EVERYTHING, "keda": {"enabled": False}},
    "small": {"api": {"replicas": 1, "maxReplicas": 1}, "networkPolicies": {"enabled": False}},
    "no way out": {"networkPolicies": {"egress": []}},
}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_kubernetes_takes_every_object(values: Values) -> None:
    report = helm_python.lint(PLACE, values=dict(values), strict=True)
    assert [one for one in report["messages"] if one["severity"] > 1] == []
    names = set()
    for one in rendered(values):
        fields = KINDS_OF_OTHERS.get(one["kind"])
        if fields is None:
            kubernetes_validate.validate(one, VERSION, strict=True)
        else:
            jsonschema_rs.validate({"properties": fields, "additionalProperties": False}, one["spec"])
        if one["kind"] == "ScaledJob":
            as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": one["spec"]["jobTargetRef"]}
            kubernetes_validate.validate(as_job, VERSION, strict=True)
        name = one["kind"], one["metadata"]["name"]
        assert name not in names and len(name[1]) <= 63
        names.add(name)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_pods_are_confined_and_hold_no_secret(values: Values) -> None:
    things = rendered(values)
    assert not [one for one in things if one["kind"] == "Secret"]
    found = dict(pods(things))
    assert len(found) >= 3
    for name, pod in found.items():
        assert pod["automountServiceAccountToken"] is False
        own = pod["securityContext"]
        assert (own["runAsNonRoot"], own["runAsUser"], own["seccompProfile"]) == (
            True,
            10001,
            {"type": "RuntimeDefault"},
        )
        mounted = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            limits = container["securityContext"]
            assert limits["readOnlyRootFilesystem"] is True and limits["allowPrivilegeEscalation"] is False, name
            assert limits["capabilities"] == {"drop": ["ALL"]}
            assert {one["name"] for one in container["volumeMounts"]} == mounted
            assert {"requests", "limits"} == set(container["resources"])
            assert "memory" in container["resources"]["limits"]
            settings = {one["name"]: one.get("value", "") for one in container.get("env", ())}
            assert not [one for one in settings if one.endswith(("TOKEN", "URL", "_KEY"))]
        kept = [one for volume in pod["volumes"] for one in _keys(volume)]
        assert "replaceme_database_url" in kept and "keda_connection" not in kept
    for one in (one for one in things if one["kind"] == "ConfigMap" and "REPLACEME_ROUTES" in one["data"]):
        given = {name: value for name, value in one["data"].items() if name.startswith("REPLACEME_")}
        settings = {name.removeprefix("REPLACEME_").lower(): value for name, value in given.items()}
        routes = settings.pop("routes")
        assert Settings(_env_file=None, **settings).require_key  # type: ignore[arg-type]
        assert set(json.loads(routes)) <= set(WorkerKind)


def _keys(volume: Thing) -> Iterator[str]:
    sources = [volume["secret"]] if "secret" in volume else []
    sources += [one["secret"] for one in volume.get("projected", {}).get("sources", ())]
    for source in sources:
        yield from (item["key"] for item in source["items"])


@pytest.mark.parametrize(("values", "name"), [({"fullnameOverride": "my.name"}, "demo"), ({}, "my.name")])
def test_a_service_has_a_name_without_dots(values: Values, name: str) -> None:
    (service,) = (one for one in rendered(values, name=name) if one["kind"] == "Service")
    assert service["metadata"]["name"] == "my-name-api", "Kubernetes refuses others, in a release Helm does not"


def test_a_release_may_be_named_by_a_number() -> None:
    for one in rendered({**EVERYTHING, "keda": {"enabled": False}}, name="1234"):
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "1234"
        if one["kind"] not in KINDS_OF_OTHERS:
            kubernetes_validate.validate(one, VERSION, strict=True)


def test_secrets_cannot_be_values() -> None:
    for name in ("REPLACEME_HUB_READ_TOKEN", "REPLACEME_DATABASE_URL", "REPLACEME_ENCRYPTION_KEY", "PATH"):
        with pytest.raises(HelmError, match="invalid propertyName"):
            rendered({"settings": {name: "x"}})
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "REPLACEME_DATABASE_URL", "REPLACEME_HUB"):
        with pytest.raises(HelmError, match="invalid propertyName"):
            rendered({"env": {name: "x"}})
    with pytest.raises(HelmError, match="not allowed"):
        rendered({"drain": 10})
    with pytest.raises(HelmError, match=r"api\.hosts"):
        rendered({"api": {"ingress": {"enabled": True}}})


def test_the_api_is_asked_how_it_is() -> None:
    (deployment,) = [one for one in of_kind("Deployment") if one["metadata"]["name"] == "demo-api"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    hosts = next(one["value"] for one in container["env"] if one["name"] == "REPLACEME_ALLOWED_HOSTS").split(",")
    for probe, path in (("startupProbe", "/health"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
        asked = container[probe]["httpGet"]
        assert asked["path"] == path and asked["httpHeaders"][0]["value"] in hosts
    (service,) = of_kind("Service")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert "replicas" not in deployment["spec"], "the autoscaler decides"
    assert hosts == ["demo-api", "demo-api.ml", "demo-api.ml.svc", "demo-api.ml.svc.cluster.local"]


def test_the_job_of_prometheus_is_that_of_the_alerts() -> None:
    (monitor,) = of_kind("ServiceMonitor", EVERYTHING)
    (service,) = of_kind("Service", EVERYTHING)
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    alerts = (ROOT / "docker/monitoring/alerts.yml").read_text()
    assert f'up{{job="{job}"}}' in alerts
    (rule,) = of_kind("PrometheusRule", EVERYTHING)
    assert rule["spec"] == yaml.safe_load(alerts)
    assert {one["metadata"]["labels"]["release"] for one in (monitor, rule)} == {"prometheus"}


def test_authorities_are_where_the_environment_says() -> None:
    (file,) = (
        one["data"]["SSL_CERT_FILE"] for one in of_kind("ConfigMap", EVERYTHING) if "SSL_CERT_FILE" in one["data"]
    )
    for _, pod in pods(of_kind("Deployment", EVERYTHING) + of_kind("ScaledJob", EVERYTHING)):
        (volume,) = (one["configMap"] for one in pod["volumes"] if one["name"] == "authorities")
        (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "authorities")
        assert volume["name"] == "trusted"
        assert [f"{mount['mountPath']}/{item['path']}" for item in volume["items"]] == [file]


def test_a_worker_ends_after_its_drain_and_nothing_reaches_it() -> None:
    values = {**EVERYTHING, "drainSeconds": 70}
    for name, pod in pods(of_kind("ScaledJob", values)):
        (container,) = pod["containers"]
        kind = name.rpartition("-")[2]
        assert container["command"] == ["python", "-m", "worker.once", "--queues", kind]
        assert pod["terminationGracePeriodSeconds"] == 90 and pod["restartPolicy"] == "Never"
        assert {"name": "REPLACEME_DRAIN_SECONDS", "value": "70"} in container["env"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    jobs = of_kind("ScaledJob", values)
    assert [one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for one in jobs] == ["team-a", "team-a"]
    assert [one["spec"]["jobTargetRef"]["backoffLimit"] for one in jobs] == [0, 0], "the service counts attempts"
    rollouts = [one["spec"]["rollout"] for one in jobs]
    assert rollouts == [{"strategy": "gradual"}] * 2, "by default KEDA ends running jobs when their ScaledJob changes"
    workers = next(one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "demo-workers")
    assert workers["spec"]["ingress"] == [] and "Ingress" in workers["spec"]["policyTypes"]
    labels = jobs[0]["spec"]["jobTargetRef"]["template"]["metadata"]["labels"]
    assert workers["spec"]["podSelector"]["matchLabels"].keys() <= labels.keys()
    ports = {one["port"] for rule in workers["spec"]["egress"] for one in rule["ports"]}
    assert ports == {53, 443, 5432, 6379}


def test_workers_without_keda_are_those_of_the_compose_file() -> None:
    deployments = of_kind("Deployment", {"keda": {"enabled": False}})
    (worker,) = [one for one in deployments if one["metadata"]["name"] == "demo-worker-cpu"]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker-cpu"]["command"]
    command = container["command"]
    at = command.index("--hostname")
    assert [*command[:at], *command[at + 2 :]] == compose
    assert "livenessProbe" not in container, "a broker that is away would end workers in the middle of a job"
    assert not of_kind("TriggerAuthentication", {"keda": {"enabled": False}})


CACHES = ("REPLACEME_HUB_CACHE_BYTES", "REPLACEME_STATISTICS_CACHE_BYTES")


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ({}, {CACHES[0]: 50 * 2**30, CACHES[1]: 10 * 2**30}),
        ({"workers": {"cpu": {"disk": "1.5T"}}}, {CACHES[0]: 750 * 10**9, CACHES[1]: 150 * 10**9}),
        ({"settings": {CACHES[0]: "7"}}, {CACHES[1]: 10 * 2**30}),
        ({"cache": {"claimName": "cache"}}, {}),
        ({"keda": {"enabled": True}}, {}),
    ],
)
def test_caches_leave_space_on_the_disk_of_a_pod_that_stays(values: Values, limits: Mapping[str, int]) -> None:
    things = rendered({"keda": {"enabled": False}, **values})
    pod = next(pod for name, pod in pods(things) if name == "demo-worker-cpu")
    found = {one["name"]: int(one["value"]) for one in pod["containers"][0]["env"] if one["name"] in CACHES}
    assert found == limits


def test_the_query_counts_the_jobs_that_need_a_worker(postgres_url: str) -> None:
    database = Database(postgres_url)
    queries = {
        one["metadata"]["name"].rpartition("-")[2]: one["spec"]["triggers"][0]["metadata"]["query"]
        for one in of_kind("ScaledJob", EVERYTHING)
    }

    def counted() -> dict[str, int]:
        with database.session(read_only=True) as session:
            return {kind: session.scalar(text(query)) for kind, query in queries.items()}

    ledger = Ledger(database)
    assert counted() == {"cpu": 0, "gpu": 0}
    anywhere = ledger.add()
    assert counted() == {"cpu": 1, "gpu": 0}, "one of them is started for it"
    claim = ledger.claim(anywhere)
    assert counted() == {"cpu": 0, "gpu": 0}
    with database.session() as session:
        session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 second'"))
    assert counted() == {"cpu": 1, "gpu": 0}, "a lost worker has left it"
    with database.session() as session:
        session.execute(text("UPDATE jobs SET route = 'gpu', lease_expires_at = now() + interval '1 hour'"))
    assert counted() == {"cpu": 0, "gpu": 0}
    ledger.release(claim)
    assert counted() == {"cpu": 0, "gpu": 1}
    with database.session() as session:
        session.execute(text("UPDATE jobs SET not_before = now() + interval '1 hour'"))
    assert counted() == {"cpu": 0, "gpu": 0}, "it may not start yet"
    for limit, waiting in ((1, 0), (2, 1), (0, 1), (None, 1)):
        running, _ = add_two(database, running_jobs=limit)
        assert counted() == {"cpu": 2, "gpu": 0}
        claim = ledger.claim(running)
        assert counted() == {"cpu": waiting, "gpu": 0}, "a key with as many running as it may have starts no more"
        ledger.succeed(claim)
        assert counted() == {"cpu": 1, "gpu": 0}
        with database.session() as session:
            session.execute(text("DELETE FROM jobs WHERE key_id IS NOT NULL"))
    database.close()


def add_two(database: Database, *, running_jobs: int | None) -> tuple[str, str]:
    """Two jobs of a new key with this limit."""
    limits = KeyLimits(running_jobs=running_jobs)
    new = NewKey(owner="someone", name="k", scopes=frozenset({Scope.JOBS_WRITE}), limits=limits)
    with database.session() as session:
        key_id = Keys(session).create(new).id
        first, second = (changes.add(session, spec=a_spec(), owner="someone", key_id=key_id).id for _ in range(2))
    return first, second


def test_changed_settings_replace_the_pods_that_stay() -> None:
    def templates(**settings: str) -> dict[str, Thing]:
        found = of_kind("Deployment", {"keda": {"enabled": False}, "settings": settings})
        return {one["metadata"]["name"]: one["spec"]["template"] for one in found}

    before, after = templates(), templates(REPLACEME_MAX_ATTEMPTS="2")
    assert before.keys() == {"demo-api", "demo-worker-cpu"}
    assert [name for name in before if before[name] == after[name]] == []


def test_another_entry_is_as_that_of_its_kind() -> None:
    large = {"enabled": True, "kind": "gpu", "image": "other:1", "gpus": 4, "replicas": 9}
    values = {"workers": {"gpu": {"memory": "77Gi", "kueueQueue": "team-a"}, "gpu-large": large}}
    found = {one["metadata"]["name"]: one for one in of_kind("ScaledJob", values)}
    assert found.keys() == {"demo-worker-cpu", "demo-worker-gpu-large"}
    worker = found["demo-worker-gpu-large"]
    assert worker["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    (container,) = worker["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "77Gi", "nvidia.com/gpu": 4}
    assert (container["image"], worker["spec"]["maxReplicaCount"]) == ("other:1", 9)
    del large["image"]
    with pytest.raises(HelmError, match="image"):
        rendered(values)


def test_without_workers_the_api_knows_no_kinds() -> None:
    (settings,) = of_kind("ConfigMap", {"workers": {"cpu": {"enabled": False}}})
    assert "REPLACEME_ROUTES" not in settings["data"], "an empty list is refused"


def test_settings_of_the_operator_are_kept() -> None:
    own = {"REPLACEME_ROUTES": '["gpu"]', "REPLACEME_CALIBRATION_ROOT": "/texts"}
    values = {**EVERYTHING, "settings": own}
    settings = next(one["data"] for one in of_kind("ConfigMap", values) if "REPLACEME_HUB" in one["data"])
    assert own.items() <= settings.items()
    files = "".join(chart().render(values=values, name="demo", namespace="ml").values())
    assert [files.count(f"{name}:") for name in own] == [1, 1], "of two with one name, the last would count"


def test_other_environment_reaches_every_pod() -> None:
    env = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "postgres.db", "HF_HUB_DISABLE_XET": "1"}
    (found,) = of_kind("ConfigMap", {"env": env})
    assert {**env, "REPLACEME_HUB": "https://huggingface.co"}.items() <= found["data"].items()


def test_workers_of_one_kind_also_take_jobs_for_any() -> None:
    (worker,) = of_kind("ScaledJob", {"workers": {"cpu": {"enabled": False}, "gpu": {"enabled": True}}})
    assert "route = 'gpu' OR route IS NULL" in worker["spec"]["triggers"][0]["metadata"]["query"]


def leaves(values: Values, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in values.items():
        if (
            isinstance(value, Mapping)
            and value
            and name not in ("settings", "env", "requests", "limits", "dashboardLabels")
        ):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def another(name: str, value: object) -> object:
    """A value of the same kind that means something else."""
    special = {"kind": "gpu" if value == "cpu" else "cpu", "pullPolicy": "Always", "hosts": ["other.example.com"]}
    if name in special:
        return special[name]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return f"7{value[1:]}" if value[:1].isdigit() else "changed"
        case list():
            return [{"ports": [{"port": 99}]}] if name == "egress" else [{"name": "other", "key": "other"}][:1]
        case Mapping():
            return (
                {**value, "memory": "3Gi"}
                if name in ("requests", "limits")
                else {**value, f"{'REPLACEME' if name == 'settings' else 'MY'}_EXTRA": "1"}
            )
    raise AssertionError(name)


@pytest.mark.parametrize("keda", [True, False])
def test_every_value_is_used(keda: bool) -> None:
    base = chart().merge_values({**EVERYTHING, "keda": {"enabled": keda}})
    without_keda = {("keda", "pollingIntervalSeconds"), ("keda", "kept"), ("workers", "takesAny")}
    without_keda.add(("workers", "kueueQueue"))
    before, unused = rendered(base), []
    for path, value in leaves(chart().values):
        changed = deepcopy(base)
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = another(path[-1], inner.get(path[-1], value))
        if path[-1] == "imagePullSecrets":
            inner[path[-1]] = [{"name": "other"}]
        if rendered(changed) == before:
            unused.append((path[0], path[-1]))
    assert set(unused) == (set() if keda else without_keda)


def test_the_version_is_that_of_the_package() -> None:
    assert {chart().version, str(chart().metadata["appVersion"])} == {version("replaceme")}
