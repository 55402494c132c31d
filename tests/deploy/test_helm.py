"""The Helm chart: what it makes is valid for Kubernetes, safe by default, and fits the command line and its variables.

Helm renders it (``UNSKEW_TEST_HELM``, else ``helm`` on the path), and ``kubernetes-validate`` holds the result against
the schemas of a version of Kubernetes.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.commands import command_of, options_of, variables_of
from unskew.cli import COMMANDS
from unskew.demo.journey import HOME
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError
from unskew.pipelines.state.folder import refuse_strangers

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "unskew"
HELM = os.environ.get("UNSKEW_TEST_HELM") or shutil.which("helm")  # noqa: TID251 - it is not a setting of the package
KUBERNETES = "1.31"
VERSIONS = ("1.27", KUBERNETES, "1.37")
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
        "monitor": {"enabled": True, "schedule": "@hourly", "args": [], "baselinesConfigMap": "baselines"},
    },
    "prometheus": {"serviceMonitor": True, "rules": True},
}

pytestmark = pytest.mark.skipif(HELM is None, reason="there is no helm: name it in UNSKEW_TEST_HELM")


def helm(
    tmp_path: Path, values: Mapping[str, Any], *arguments: str, version: str = KUBERNETES
) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    given = tmp_path / "values.yaml"
    given.write_text(yaml.safe_dump(dict(values)))
    command = [HELM, *arguments, str(CHART), "--values", str(given), "--kube-version", f"{version}.0"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(tmp_path: Path, values: Mapping[str, Any], version: str = KUBERNETES) -> list[dict[str, Any]]:
    made = helm(tmp_path, values, "template", "shop", version=version)
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


@pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])
def test_the_chart_passes_helms_own_check(tmp_path, values):
    checked = helm(tmp_path, values, "lint", "--strict")

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])
def test_everything_is_valid_for_kubernetes(tmp_path, values, version):
    for one in rendered(tmp_path, values, version):
        # The schemas of Prometheus' operator are not Kubernetes' own.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(one, version, strict=True)


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
        ("ServiceMonitor", "shop-serve"),
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
    variables = {"APPLYING", "PARTITION_GROUPS", *variables_of(map(command_of, COMMANDS))}
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        words = container["args"] if "command" not in container else [*container["command"], *container["args"]]
        name = {"pipeline": "run"}.get(component, component)

        assert {word for word in words if word.startswith("--")} <= options_of(command_of(name)) | {"--"}
        assert {one["name"] for one in container["env"]} <= variables, component


def told(container: Mapping[str, Any], number: int = 0) -> list[str]:
    """The words that ``unskew`` is called with in the pod of a number, as its shell makes them if there is a script."""
    if "command" not in container:
        words: list[str] = container["args"]
        return words
    shell, flag, script, zeroth = container["command"]
    # A line for each word, as words may hold spaces.
    ran = subprocess.run(
        [shell, flag, script.replace("exec unskew", r"printf '%s\n'"), zeroth, *container["args"]],
        env={
            **{one["name"]: one["value"] for one in container["env"] if "value" in one},
            "PATH": "/usr/bin:/bin",
            "HOSTNAME": f"shop-pipeline-{number}",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def test_every_command_line_and_every_variable_is_one_that_the_command_accepts(objects, tmp_path, monkeypatch):
    for name in os.environ:  # noqa: TID251 - what is set here is not what the pods have
        if name.startswith("UNSKEW_"):
            monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("token")
    lines = {}
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        name, *words = told(container)
        words = [str(token) if word == "/etc/unskew/token/token" else word for word in words]
        with monkeypatch.context() as pod_has:
            for one in container["env"]:
                # A secret: what it holds is an address with a password.
                pod_has.setenv(one["name"], one.get("value", "redis://:secret@valkey:6379/0"))

            with command_of(name).make_context(name, words) as context:
                lines[component] = context.params

    assert {"pipeline", "serve", "compact", "monitor"} <= lines.keys()
    assert lines["pipeline"]["idle"] == "wall"
    assert str(lines["compact"]["log"]) == str(lines["pipeline"]["log"]) == str(lines["monitor"]["log"])
    assert lines["serve"]["redis_url"] == lines["pipeline"]["redis_url"]
    if "materialize" in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:01Z", lines["materialize"]["until"])
        assert lines["retain"]["keep_log"] == "400d"
        assert [str(path) for path in lines["monitor"]["baselines"]] == ["/etc/unskew/baselines"]


def test_each_pod_of_the_pipeline_reads_its_own_partitions_and_the_last_alone_applies(tmp_path):
    """An update of a StatefulSet begins with the last pod and waits until it is ready before it goes to the next."""
    rest = ["--idle", "wall", "--shards", "1", "--progress", "none"]
    for groups, extra, expected in (
        (
            ["0,1", "2,3", "4"],
            ["--epoch", "2s"],
            [["--partitions", "0,1"], ["--partitions", "2,3"], ["--partitions", "4", "--apply"]],
        ),
        ([], [], [["--apply"]]),
    ):
        values = {**LEAST, "pipeline": {"partitionGroups": groups, "extraArgs": extra}}
        (pipeline,) = (one for one in rendered(tmp_path, values) if one["kind"] == "StatefulSet")
        (container,) = pipeline["spec"]["template"]["spec"]["containers"]

        assert pipeline["spec"]["replicas"] == len(expected)
        assert [told(container, number) for number in range(len(expected))] == [
            ["run", *words, *rest, *extra] for words in expected
        ]
    (pipeline,) = (
        one for one in rendered(tmp_path, {**LEAST, "pipeline": {"apply": False}}) if one["kind"] == "StatefulSet"
    )
    (container,) = pipeline["spec"]["template"]["spec"]["containers"]
    assert "--apply" not in told(container)


def is_accepted(state: Path, group: int, *, umask: int) -> bool:
    """Whether the pods' user makes its state there, in a process of its own, and the pipeline accepts it."""
    if (child := os.fork()) == 0:
        code = 1
        with contextlib.suppress(LayoutError):
            os.setgroups([group])
            os.setegid(group)
            os.seteuid(USER)
            os.umask(umask)
            state.mkdir()
            refuse_strangers(state)
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of others")
def test_the_pipeline_accepts_the_volume_of_its_state_as_kubernetes_hands_it_over(objects):
    """The volume's root belongs to root and to the group ``fsGroup``, which may write there and passes itself on."""
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        variables = {one["name"]: one.get("value") for one in container["env"]}
        if "UNSKEW_STATE" not in variables:
            continue
        (mount,) = (one["mountPath"] for one in container["volumeMounts"] if one["name"] == "state")
        assert Path(variables["UNSKEW_STATE"]).parent == Path(mount)
        group = pod["securityContext"]["fsGroup"]
        assert pod["securityContext"]["runAsGroup"] == group
        # Below a folder that others can pass.
        with tempfile.TemporaryDirectory(dir="/tmp") as above:
            Path(above).chmod(0o755)
            volume = Path(above) / component
            volume.mkdir()
            os.chown(volume, 0, group)
            volume.chmod(0o2775)

            assert is_accepted(volume / "state", group, umask=int(str(variables["UNSKEW_UMASK"]), 8))
            # Else this test would show nothing.
            assert not is_accepted(volume / "other", group, umask=0o077)


def test_probes_ask_for_paths_that_are_answered(objects):
    for component, pod in pods(objects):
        (container,) = pod["containers"]
        probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
        ports = {one["name"]: one["containerPort"] for one in container.get("ports", [])}

        assert bool(probes) is (component in {"pipeline", "serve"})
        for name, probe in probes.items():
            assert probe["httpGet"]["path"] == ("/ready" if name == "readinessProbe" else "/health")
            assert probe["httpGet"]["port"] in ports


def test_a_server_that_asks_for_a_token_is_scraped_with_it_and_under_the_names_that_alerts_have(tmp_path):
    monitors = {
        one["metadata"]["name"]: one["spec"]["endpoints"][0]
        for one in rendered(tmp_path, MOST)
        if one["kind"] == "ServiceMonitor"
    }
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    names = {name: [one["replacement"] for one in found["relabelings"]] for name, found in monitors.items()}

    assert names == {"shop-pipeline": ["unskew"], "shop-serve": ["unskew-serve"]}
    assert all(f'up{{job="{one}"}}' in alerts for (one,) in names.values())
    assert monitors["shop-serve"]["authorization"] == {"credentials": {"name": "token", "key": "token"}}
    assert "authorization" not in monitors["shop-pipeline"]


def test_alerts_are_those_of_the_repository(tmp_path):
    (rules,) = (one for one in rendered(tmp_path, MOST) if one["kind"] == "PrometheusRule")

    assert rules["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())


def test_text_of_definitions_is_not_taken_for_a_template(tmp_path):
    (files,) = (one for one in rendered(tmp_path, MOST) if one["kind"] == "ConfigMap")

    assert files["data"] == MOST["definitions"]["files"]


def test_definitions_are_read_from_a_mounted_configmap(tmp_path):
    """Kubernetes mounts one as links to a folder of another name, which it replaces as a whole."""
    files = {path.name: path.read_text() for path in HOME.rglob("*.*") if path.suffix in {".py", ".yaml", ".avsc"}}
    held = tmp_path / "..2026_01_31_00_00_00.1"
    held.mkdir()
    (tmp_path / "..data").symlink_to(held.name)
    for name in ("definitions.py", "household_coupon_count_30d.yaml", "transaction.avsc", "page_view.avsc"):
        # As docs/kubernetes.md asks: schemas by their file alone.
        (held / name).write_text(files[name].replace("schemas/", ""))
        (tmp_path / name).symlink_to(f"..data/{name}")

    plan = load(tmp_path)

    assert plan.views.keys() == load(HOME).views.keys()


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
        ({"kafka": {"bootstrapServers": "kafka"}}, "kafka.bootstrapServers"),
        ({"redis": {"url": "redis+sentinel://a/main?sentinel_password=x"}}, "redis.url"),
        ({"redis": {"url": "http://valkey:6379"}}, "redis.url"),
        ({"tables": {"log": "", "archive": "s3://bucket/archive"}}, "tables.log"),
        ({"tables": {"log": "s3://key:secret@bucket/log", "archive": "s3://bucket/archive"}}, "tables.log"),
        ({"tables": {"log": "/data/../etc", "archive": "/data/archive", "existingClaim": "c"}}, "tables.log"),
        ({"tables": {**LEAST["tables"], "deadLetters": "/data/letters"}}, "give tables.existingClaim"),
        ({"tables": {**LEAST["tables"], "credentialsSecret": "Not A Name"}}, "tables.credentialsSecret"),
        ({"definitions": {"files": {"schemas/a.avsc": "{}"}}}, "definitions.files"),
        ({"image": {"repository": "unskew\n    command: [sh]", "tag": "1"}}, "image.repository"),
        ({"image": {"repository": "unskew", "tag": "1 # 2"}}, "image.tag"),
        ({"pipeline": {"partitionGroups": ["0,1", "1,2"]}}, "a partition is in two groups"),
        ({"pipeline": {"extraArgs": ["--redis-url", "redis://:secret@valkey:6379/0"]}}, "pipeline.extraArgs"),
        ({"pipeline": {"state": {"size": "much"}}}, "pipeline.state.size"),
        ({"serve": {"resources": {"requests": {"cpu": None}}}}, "serve.resources.requests.cpu"),
        ({"serve": {"tokenSecret": "../token"}}, "serve.tokenSecret"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(tmp_path, changed, named):
    made = helm(tmp_path, {**LEAST, **changed}, "template", "shop")

    assert made.returncode != 0
    assert named in made.stderr.replace("/", ".")
