"""The Kubernetes resources: what their schemas and kustomize say, and what they promise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.deploy_files import (
    EXAMPLE,
    KUBERNETES,
    OURS,
    RULES,
    documents,
    faults_of_custom_resources,
    image,
    is_custom,
    manifests,
    planted,
    python_tool,
    resources,
    run,
    system_tool,
)

BASE = KUBERNETES / "base"
OPERATOR = KUBERNETES / "components" / "prometheus-operator"
KEDA = KUBERNETES / "components" / "keda"
WORKER = BASE / "deployment-worker.yaml"

OLDEST, NEWEST = "1.27.0", "1.37.0"


# the schemas


def name(path: Path) -> str:
    return str(path.relative_to(KUBERNETES))


def by_the_schema(path: Path, version: str) -> Any:
    return run(python_tool("kubernetes-validate"), "--strict", "-k", version, path)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "path", [path for path in manifests() if not any(map(is_custom, documents(path)))], ids=name
)
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
    judged = by_the_schema(path, version)

    assert judged.returncode == 0, judged.stdout + judged.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("readinessProbe:", "readinesProbe:"),
        ("replicas: 2", 'replicas: "2"'),
        ("        - name: tmp\n", "        - nam: tmp\n"),
    ],
    ids=["a misspelt field", "a text for a number", "a volume without a name"],
)
def test_its_schemas_refuse(right: str, wrong: str, tmp_path: Path) -> None:
    assert by_the_schema(planted(WORKER, right, wrong, tmp_path), NEWEST).returncode == 1


@pytest.mark.parametrize(
    "path", [path for path in manifests() if any(map(is_custom, documents(path)))], ids=name
)
def test_the_operators_know_every_field(path: Path) -> None:
    assert faults_of_custom_resources(documents(path)) == []


@pytest.mark.parametrize(
    ("path", "right", "wrong", "fault"),
    [
        (KEDA / "scaledobject.yaml", "minReplicaCount", "minReplicasCount", "no such field"),
        (KEDA / "scaledobject.yaml", 'threshold: "5"', "threshold: 5", "must be string"),
        (OPERATOR / "podmonitor.yaml", "- port: metrics", "- prt: metrics", "no such field"),
        (OPERATOR / "podmonitor.yaml", "interval: 15s", "interval: 15 s", "must match pattern"),
        (OPERATOR / "podmonitor.yaml", "kind: PodMonitor", "kind: PodMonitr", "no schema for"),
        (OPERATOR / "prometheusrule.yaml", " expr: ", " exp: ", "must have required property expr"),
    ],
    ids=["name", "number", "port", "duration", "kind", "rule"],
)
def test_their_schemas_refuse(
    path: Path, right: str, wrong: str, fault: str, tmp_path: Path
) -> None:
    found = faults_of_custom_resources(documents(planted(path, right, wrong, tmp_path)))

    assert any(fault in line for line in found), found


# kustomize


def kustomized(folder: Path) -> Any:
    if shutil.which("kubectl"):
        return run("kubectl", "kustomize", folder)
    return run(system_tool("kustomize"), "build", folder)


def built(folder: Path) -> list[Any]:
    made = kustomized(folder)
    assert made.returncode == 0, made.stderr
    return [resource for resource in yaml.safe_load_all(made.stdout) if resource]


def one(found: list[Any], kind: str, name: str = "") -> Any:
    (resource,) = [
        each for each in found if each["kind"] == kind and each["metadata"]["name"].endswith(name)
    ]
    return resource


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=name)
def test_what_kustomize_builds_is_what_the_schemas_know(folder: Path, tmp_path: Path) -> None:
    found = built(folder)

    native = tmp_path / "native.yaml"
    native.write_text(yaml.safe_dump_all([each for each in found if not is_custom(each)]))
    judged = by_the_schema(native, NEWEST)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert faults_of_custom_resources([each for each in found if is_custom(each)]) == []


def test_kustomize_refuses_a_base_with_a_file_missing(tmp_path: Path) -> None:
    copy = shutil.copytree(BASE, tmp_path / "base")
    (copy / "pdb.yaml").unlink()

    assert kustomized(copy).returncode != 0


def test_every_file_of_the_kubernetes_folder_is_part_of_something() -> None:
    listed = {
        (path.parent / entry).resolve()
        for path in KUBERNETES.rglob("kustomization.yaml")
        for entry in documents(path)[0]["resources"]
    }

    assert [name(path) for path in manifests() if path not in listed] == []


def test_the_base_needs_no_operator() -> None:
    assert not any(map(is_custom, built(BASE)))


def test_the_base_holds_no_secret() -> None:
    assert "Secret" not in {each["kind"] for each in built(BASE)}


def test_a_new_address_rolls_out_by_itself() -> None:
    found = built(EXAMPLE)

    secrets = {each["metadata"]["name"] for each in found if each["kind"] == "Secret"}
    named = set()
    for kind, component in (("Deployment", "worker"), ("Deployment", "exporter"), ("Job", "init")):
        pod = one(found, kind, f"-{component}")["spec"]["template"]["spec"]
        (secret,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
        assert secret["secretName"].startswith(f"streamqueue-mongodb-{component}-")
        named.add(secret["secretName"])
    assert named == secrets


def test_an_apply_does_not_undo_what_keda_decided() -> None:
    assert "replicas" not in one(built(EXAMPLE), "Deployment", "-worker")["spec"]


# the rules


def generate(*arguments: str | Path) -> Any:
    return run(sys.executable, OPERATOR / "generate.py", *arguments)


def test_the_prometheus_rule_is_the_one_that_the_rules_make() -> None:
    checked = generate("--check")

    assert checked.returncode == 0, checked.stderr


def test_a_rule_that_changed_in_one_place_only_is_noticed(tmp_path: Path) -> None:
    changed = planted(RULES, "groups:", "# a word more\ngroups:", tmp_path)

    checked = generate("--check", "--rules", changed)

    assert checked.returncode == 1
    assert "generate.py" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_the_prometheus_rule_says_neither_more_nor_less_than_the_rules() -> None:
    (rules,) = documents(RULES)
    (resource,) = documents(OPERATOR / "prometheusrule.yaml")

    assert resource["spec"] == rules


RULE_FILE = """\
---
# Two groups, and every way to write an expression.
groups:
  - name: plain
    interval: 5s
    rules:
      - record: a:b:c
        expr: sum by (queue) (up)

  - name: blocks
    rules:
      - alert: Literal
        expr: |
          up == 0
            and on (queue) ready > 0

          # a comment of PromQL
        annotations:
          summary: >-
            folded
            here
"""


def test_any_rule_file_comes_through_as_it_is(tmp_path: Path) -> None:
    rules, target = tmp_path / "rules.yml", tmp_path / "made.yaml"
    rules.write_text(RULE_FILE)

    generate("--rules", rules, "--target", target)

    assert documents(target)[0]["spec"] == documents(rules)[0]
    assert generate("--check", "--rules", rules, "--target", target).returncode == 0


def test_rules_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    asked = generate("--rules", tmp_path / "none.yml")

    assert asked.returncode == 1
    assert asked.stderr.startswith("cannot read the rules")


# what the resources promise


def pods() -> list[Any]:
    return [
        resource["spec"]["template"]
        for kind in ("Deployment", "Job")
        for resource in resources(kind)
    ]


def serving() -> list[Any]:
    """The pods that stay."""
    return [deployment["spec"]["template"] for deployment in resources("Deployment")]


def containers_of(pod: Any) -> list[Any]:
    found: list[Any] = pod["spec"]["containers"]
    return found


def deployment(component: str) -> Any:
    return one(resources("Deployment"), "Deployment", component)


def test_every_pod_may_run_where_only_restricted_ones_may() -> None:
    user, group = map(int, image()["USER"].split(":"))
    for pod in pods():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert (security["runAsUser"], security["runAsGroup"]) == (user, group)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_can_ask_the_api_server() -> None:
    (account,) = resources("ServiceAccount")

    assert account["automountServiceAccountToken"] is False
    for pod in pods():
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_no_service_of_the_namespace_can_set_our_variables() -> None:
    assert [pod["spec"]["enableServiceLinks"] for pod in pods()] == [False, False, False]


def test_memory_is_reserved_in_full_and_the_processor_is_not_throttled() -> None:
    for pod in pods():
        for container in containers_of(pod):
            asked = container["resources"]
            assert asked["limits"] == {"memory": asked["requests"]["memory"]}
            assert "cpu" in asked["requests"]


def test_the_probes_ask_what_each_is_for_on_a_port_that_is_there() -> None:
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for pod in serving():
        for container in containers_of(pod):
            assert [port["name"] for port in container["ports"]] == ["metrics"]
            for probe, path in paths.items():
                assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}


def test_the_address_comes_from_a_file_that_only_this_user_reads() -> None:
    for pod in pods():
        (container,) = containers_of(pod)
        variables = {each["name"]: each["value"] for each in container["env"]}
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "mongodb"]
        (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "mongodb"]

        assert variables["STREAMQUEUE_URI_FILE"] == f"{mount['mountPath']}/uri"
        assert "STREAMQUEUE_URI" not in variables
        assert mount["readOnly"]
        assert volume["secret"]["defaultMode"] == 0o440


def test_each_kind_of_process_has_a_user_of_its_own() -> None:
    named = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: volume["secret"]["secretName"]
        for pod in pods()
        for volume in pod["spec"]["volumes"]
        if "secret" in volume
    }

    assert named == {kind: f"streamqueue-mongodb-{kind}" for kind in ("worker", "exporter", "init")}


def test_the_indexes_are_made_by_a_job_that_the_next_apply_may_make_anew() -> None:
    (job,) = resources("Job")
    (container,) = containers_of(job["spec"]["template"])

    assert container["args"] == ["init"]
    assert job["spec"]["ttlSecondsAfterFinished"] <= 600


def test_there_is_never_a_second_exporter() -> None:
    spec = deployment("-exporter")["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_a_roll_out_never_has_fewer_workers_than_before() -> None:
    assert deployment("-worker")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_workers_are_spread_over_nodes_and_zones() -> None:
    spread = deployment("-worker")["spec"]["template"]["spec"]["topologySpreadConstraints"]

    assert {each["topologyKey"] for each in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }


def labels(component: str) -> Any:
    return deployment(component)["spec"]["template"]["metadata"]["labels"]


def chosen(selector: Any) -> set[str]:
    """The components whose pods a selector fits."""
    wanted = selector["matchLabels"].items()
    return {name for name in ("-worker", "-exporter") if wanted <= labels(name).items()}


def test_every_selector_fits_the_pods_it_is_for() -> None:
    (budget,) = resources("PodDisruptionBudget")
    (policy,) = resources("NetworkPolicy")
    (monitor,) = resources("PodMonitor")

    assert chosen(budget["spec"]["selector"]) == {"-worker"}
    assert chosen(policy["spec"]["podSelector"]) == {"-worker", "-exporter"}
    assert chosen(monitor["spec"]["selector"]) == {"-worker", "-exporter"}
    for component in ("-worker", "-exporter"):
        assert chosen(deployment(component)["spec"]["selector"]) == {component}


def test_one_worker_at_a_time_is_taken_away_unless_it_is_useless_anyway() -> None:
    (budget,) = resources("PodDisruptionBudget")

    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_nobody_but_prometheus_reaches_a_pod_and_a_pod_reaches_little() -> None:
    (policy,) = resources("NetworkPolicy")
    spec = policy["spec"]

    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    assert all(rule["from"] and rule["ports"] for rule in spec["ingress"])
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 27017}


def test_keda_scales_the_worker_and_never_to_nobody() -> None:
    (scaled,) = resources("ScaledObject")

    assert scaled["spec"]["scaleTargetRef"] == {
        "kind": "Deployment",
        "name": deployment("-worker")["metadata"]["name"],
    }
    assert scaled["spec"]["minReplicaCount"] == 1


def trigger(found: list[Any]) -> Any:
    """What KEDA asks, among these resources."""
    (asked,) = one(found, "ScaledObject")["spec"]["triggers"]
    return asked["metadata"]


AGE, LIVE = "streamqueue_queue_oldest_ready_age_seconds", "streamqueue_queue_consumers"


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("series", "answer"),
    [
        pytest.param({AGE + '{queue="a"}': 9, LIVE + '{queue="a"}': 2}, 9, id="served"),
        pytest.param(
            {
                AGE + '{queue="a"}': 9,
                LIVE + '{queue="a"}': 2,
                AGE + '{queue="typo"}': 9999,
                LIVE + '{queue="typo"}': 0,
            },
            9,
            id="one that nobody serves",
        ),
        pytest.param({AGE + '{queue="a"}': 0, LIVE + '{queue="a"}': 1}, 0, id="nothing waits"),
        pytest.param({AGE + '{queue="a"}': 9, LIVE + '{queue="a"}': 0}, None, id="nobody lives"),
        pytest.param({LIVE + '{queue="a"}': 2}, None, id="no count"),
    ],
)
def test_keda_goes_by_the_queues_that_somebody_serves(
    series: dict[str, int], answer: int | None, tmp_path: Path
) -> None:
    in_shop = {name.replace("{", '{namespace="shop", ', 1): x for name, x in series.items()}
    for query in (trigger(resources("ScaledObject"))["query"], trigger(built(EXAMPLE))["query"]):
        asked = {"expr": query, "eval_time": "1m"}
        if answer is not None:
            asked["exp_samples"] = [{"labels": "{}", "value": answer}]
        case = {
            "interval": "1m",
            "input_series": [{"series": name, "values": f"{x}x9"} for name, x in in_shop.items()],
            "promql_expr_test": [asked],
        }
        (tmp_path / "asked.yml").write_text(yaml.safe_dump({"tests": [case]}))

        judged = run(system_tool("promtool"), "test", "rules", tmp_path / "asked.yml")

        assert judged.returncode == 0, judged.stdout + judged.stderr


def test_without_an_exporter_keda_leaves_the_workers_alone() -> None:
    assert trigger(resources("ScaledObject"))["ignoreNullValues"] == "false"


def test_all_run_the_same_image() -> None:
    images = {container["image"] for pod in pods() for container in containers_of(pod)}

    assert images == {"streamqueue-worker:latest"}
    assert images.pop().startswith(OURS)
