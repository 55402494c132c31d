"""The Helm chart: what it makes is valid for Kubernetes, safe by default, and fits the command line and its variables.

Helm renders it (``UNSKEW_TEST_HELM``, else ``helm`` on the path), and ``kubernetes-validate`` holds the result against
the schemas of a version of Kubernetes.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from unskew.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "unskew"
HELM = os.environ.get("UNSKEW_TEST_HELM") or shutil.which("helm")  # noqa: TID251 - it is not a setting of the package
KUBERNETES = "1.31"
USER = 10001
LEAST: Mapping[str, Any] = {
    "kafka": {"bootstrapServers": "kafka:9092"},
    "redis": {"url": "redis://valkey:6379/0"},
    "tables": {"log": "s3://bucket/log", "archive": "s3://bucket/archive"},
    "definitions": {"existingConfigMap": "features"},
}
MOST: Mapping[str, Any] = {
    "image": {"repository": "registry.example/unskew", "tag": "1.2.3", "pullSecrets": ["pull"]},
    "kafka": {"bootstrapServers": "kafka:9093", "configSecret": "kafka-client"},
    "redis": {"existingSecret": "redis", "secretKey": "address"},
    "tables": {
        "log": "/data/log",
        "archive": "/data/archive",
        "deadLetters": "/data/letters",
        "registry": "/data/registry",
        "existingClaim": "features",
        "credentialsSecret": "store",
    },
    "definitions": {"files": {"a.py": 'print("{{ not a template }}")\n', "b.yaml": "views: []\n"}},
    "pipeline": {
        "partitionGroups": ["0,1", "2,3", "4"],
        "extraArgs": ["--epoch", "2s"],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "features", "operator": "Exists"}],
        "state": {"size": "5Gi", "storageClassName": "fast"},
    },
    "serve": {"tokenSecret": "token", "extraArgs": ["--max-lag", "1m"], "autoscaling": {"enabled": False}},
    "jobs": {
        "retain": {"enabled": True, "schedule": "@daily", "args": ["--keep-log", "400d"]},
        "materialize": {"enabled": True, "schedule": "7 * * * *", "stateClaim": "batch"},
    },
    "prometheus": {"serviceMonitor": True, "rules": True},
}

pytestmark = pytest.mark.skipif(HELM is None, reason="there is no helm: name it in UNSKEW_TEST_HELM")


def helm(tmp_path: Path, values: Mapping[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    given = tmp_path / "values.yaml"
    given.write_text(yaml.safe_dump(dict(values)))
    command = [HELM, *arguments, str(CHART), "--values", str(given), "--kube-version", f"{KUBERNETES}.0"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(tmp_path: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = helm(tmp_path, values, "template", "shop")
    assert made.returncode == 0, made.stderr
    return [one for one in yaml.safe_load_all(made.stdout) if one is not None]


@pytest.fixture(params=["least", "most"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, Any]]:
    return rendered(tmp_path, LEAST if request.param == "least" else MOST)


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods that objects make, each with what it is for."""
    for one in objects:
        spec = one.get("spec", {})
        if "jobTemplate" in spec:
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            template = spec["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template["spec"]


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])
def test_the_chart_passes_helms_own_check(tmp_path, values):
    checked = helm(tmp_path, values, "lint", "--strict")

    assert checked.returncode == 0, checked.stdout


def test_everything_is_valid_for_kubernetes(objects):
    for one in objects:
        # The schemas of Prometheus' operator are not Kubernetes' own.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_what_is_made_is_what_was_asked_for(tmp_path):
    least, most = (
        sorted((one["kind"], one["metadata"]["name"]) for one in rendered(tmp_path, values)) for values in (LEAST, MOST)
    )

    assert least == [
        ("CronJob", "shop-compact"),
        ("CronJob", "shop-monitor"),
        ("Deployment", "shop-serve"),
        ("HorizontalPodAutoscaler", "shop-serve"),
        ("PodDisruptionBudget", "shop-serve"),
        ("Service", "shop-pipeline"),
        ("Service", "shop-serve"),
        ("ServiceAccount", "shop"),
        ("StatefulSet", "shop-pipeline"),
    ]
    assert {one for one in most if one not in least} == {
        ("ConfigMap", "shop-definitions"),
        ("CronJob", "shop-materialize"),
        ("CronJob", "shop-retain"),
        ("PrometheusRule", "shop"),
        ("ServiceMonitor", "shop-pipeline"),
    }


def test_pods_run_as_nobody_special_and_may_write_only_where_they_must(objects):
    found = list(pods(objects))

    assert found
    for _, pod in found:
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, USER)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {
            *(volume["name"] for volume in pod["volumes"]),
            "state",
        }
    assert f"--uid {USER}" in (ROOT / "Dockerfile").read_text()


def test_secrets_are_referred_to_and_never_written(tmp_path):
    text = yaml.safe_dump_all(rendered(tmp_path, MOST))

    assert "kind: Secret" not in text
    assert "secretKeyRef" in text
    refused = helm(tmp_path, {**LEAST, "redis": {"url": "redis://:hunter2@valkey:6379/0"}}, "template", "shop")
    assert refused.returncode != 0
    assert "redis.url" in refused.stderr


def test_commands_take_the_options_and_variables_that_they_are_given(objects):
    # Jobs are given all places of tables, of which each needs some; the first two are read by the pod's own script.
    variables = {"APPLY", "PARTITION_GROUPS"}
    for name in COMMANDS:
        variables |= {str(option.envvar) for option in command_of(name).params if isinstance(option, click.Option)}
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        words = container["args"] if "command" not in container else [*container["command"], *container["args"]]
        name = {"pipeline": "run"}.get(component, component)
        command = command_of(name)
        known = {text for option in command.params for text in option.opts}

        assert {word for word in words if word.startswith("--")} <= known | {"--"}
        assert {one["name"] for one in container["env"]} <= variables, component


def test_each_pod_of_the_pipeline_reads_its_own_partitions_and_the_first_alone_applies(tmp_path):
    """The script that chooses them is run by a shell, in place of which ``unskew`` is ``echo``."""
    (pipeline,) = (one for one in rendered(tmp_path, MOST) if one["kind"] == "StatefulSet")
    (container,) = pipeline["spec"]["template"]["spec"]["containers"]
    shell, flag, script, zeroth = container["command"]
    variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}

    def started(number: int, groups: str) -> list[str]:
        ran = subprocess.run(
            [shell, flag, script.replace("exec unskew", "echo"), zeroth, *container["args"]],
            env={
                **variables,
                "PATH": "/usr/bin:/bin",
                "HOSTNAME": f"shop-pipeline-{number}",
                "PARTITION_GROUPS": groups,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout.split()

    rest = ["--idle", "wall", "--shards", "1", "--progress", "none", "--epoch", "2s"]
    assert pipeline["spec"]["replicas"] == 3
    assert started(0, variables["PARTITION_GROUPS"]) == ["run", "--partitions", "0,1", "--apply", *rest]
    assert started(1, variables["PARTITION_GROUPS"]) == ["run", "--partitions", "2,3", *rest]
    assert started(2, variables["PARTITION_GROUPS"]) == ["run", "--partitions", "4", *rest]
    assert started(0, "") == ["run", "--apply", *rest]


def test_probes_ask_for_paths_that_are_answered(objects):
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
        ports = {one["name"]: one["containerPort"] for one in container.get("ports", [])}

        assert bool(probes) is (component in {"pipeline", "serve"})
        for name, probe in probes.items():
            assert probe["httpGet"]["path"] == ("/ready" if name == "readinessProbe" else "/health")
            assert probe["httpGet"]["port"] in ports


def test_alerts_are_those_of_the_repository(tmp_path):
    (rules,) = (one for one in rendered(tmp_path, MOST) if one["kind"] == "PrometheusRule")

    assert rules["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())


def test_text_of_definitions_is_not_taken_for_a_template(tmp_path):
    (files,) = (one for one in rendered(tmp_path, MOST) if one["kind"] == "ConfigMap")

    assert files["data"] == MOST["definitions"]["files"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kafka": {}}, "kafka.bootstrapServers"),
        ({"redis": {}}, "give redis.url, or redis.existingSecret"),
        ({"tables": {"log": "log", "archive": "s3://bucket/archive"}}, "tables.log"),
        ({"tables": {"log": "/data/log", "archive": "s3://bucket/archive"}}, "give tables.existingClaim"),
        ({"definitions": {}}, "give one of definitions.existingConfigMap"),
        ({"definitions": {"path": "/features", "existingConfigMap": "features"}}, "give one of"),
        ({"pipeline": {"partitionGroups": ["0-3"]}}, "pipeline.partitionGroups"),
        ({"pipeline": {"shards": 0}}, "pipeline.shards"),
        ({"pipelines": {}}, "pipelines"),
        ({"image": {"tag": "latest"}}, "image.tag"),
        ({"serve": {"port": 80}}, "serve.port"),
        ({"serve": {"autoscaling": {"minReplicas": 5, "maxReplicas": 2}}}, "minReplicas is more than maxReplicas"),
        ({"jobs": {"retain": {"enabled": True, "schedule": "@daily"}}}, "say in args what to keep"),
        ({"jobs": {"materialize": {"enabled": True, "schedule": "@daily"}}}, "give stateClaim"),
        ({"jobs": {"compact": {"enabled": True, "schedule": "often"}}}, "jobs.compact.schedule"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(tmp_path, changed, named):
    made = helm(tmp_path, {**LEAST, **changed}, "template", "shop")

    assert made.returncode != 0
    assert named in made.stderr.replace("/", ".")
