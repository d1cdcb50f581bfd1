"""deploy/kubernetes.yaml and its guide agree with the commands, the settings and the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashsale.cli import build_parser
from flashsale.settings import Settings
from test_http_schema import CONTRACT

ROOT = Path(__file__).parents[1]
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
)
GUIDE = (ROOT / "docs" / "how-to" / "run-on-kubernetes.md").read_text()
NAMES = {(o["kind"], o["metadata"]["name"]): o for o in OBJECTS}
PODS = {name: o["spec"]["template"] for (_, name), o in NAMES.items() if "template" in o["spec"]}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
API, WORKER = "flashsale-api", "flashsale-worker"
SECRETS = {
    "owner-url": "postgresql://flashsale:x@db/flashsale",
    "api-url": "postgresql://api:x@db/flashsale",
    "worker-url": "postgresql://worker:x@db/flashsale",
    "webhook-secret": "x",
}


def settings_of(name: str) -> Settings:
    """The settings that the pod reads, with what is in the Secret."""
    given = {}
    for variable in CONTAINERS[name]["env"]:
        if "value" in variable:
            given[variable["name"]] = variable["value"]
        else:
            found = variable["valueFrom"]["secretKeyRef"]
            assert found["name"] == "flashsale"
            given[variable["name"]] = SECRETS[found["key"]]
    return Settings.from_env(given)


def test_the_file_has_these_objects() -> None:
    assert set(NAMES) == {
        ("Job", "flashsale-migrate"),
        ("Service", "flashsale"),
        ("Deployment", API),
        ("Deployment", WORKER),
        ("NetworkPolicy", API),
    }


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_pod_runs_a_command_that_we_have_with_settings_that_we_have(name: str) -> None:
    program, *arguments = CONTAINERS[name]["command"]
    assert program == "flashsale"
    build_parser().parse_args(arguments)
    assert arguments[0] == {API: "serve"}.get(name, name.removeprefix("flashsale-"))
    settings = settings_of(name)
    login = {API: "api", WORKER: "worker"}.get(name, "flashsale")
    assert settings.need_database_url() == f"postgresql://{login}:x@db/flashsale"
    assert bool(settings.webhook_secret) == (name == API)
    assert (settings.provider_url == Settings().provider_url) == (name != WORKER)


def test_the_guide_makes_the_secret_that_the_pods_read() -> None:
    made = set(re.findall(r"--from-literal=([\w-]+)=", GUIDE))
    read = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for container in CONTAINERS.values()
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert made == read == set(SECRETS)


def test_the_service_leads_to_the_port_on_which_the_api_listens() -> None:
    service = NAMES["Service", "flashsale"]["spec"]
    assert service["selector"] == PODS[API]["metadata"]["labels"]
    arguments = CONTAINERS[API]["command"][1:]
    options = build_parser().parse_args(arguments)
    (port,) = CONTAINERS[API]["ports"]
    assert (options.host, options.port) == ("0.0.0.0", port["containerPort"])
    assert [p["targetPort"] for p in service["ports"]] == [port["name"]]
    policy = NAMES["NetworkPolicy", API]["spec"]
    assert policy["podSelector"]["matchLabels"] == PODS[API]["metadata"]["labels"]
    assert policy["ingress"][0]["ports"] == [{"port": port["name"]}]
    label = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["app"]
    assert f"`app: {label}`" in GUIDE


@pytest.mark.parametrize("name", [API, WORKER])
def test_a_deployment_selects_its_pods(name: str) -> None:
    spec = NAMES["Deployment", name]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_probes_ask_what_there_is_and_wait_longer_than_the_answer_may_take() -> None:
    api = CONTAINERS[API]
    for probe, path in (("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")):
        asked = api[probe]["httpGet"]
        assert asked == {"path": path, "port": "http"}
        assert ("get", path) in CONTRACT
        assert api[probe]["timeoutSeconds"] > settings_of(API).readiness_timeout_seconds
    program, option, module = CONTAINERS[WORKER]["readinessProbe"]["exec"]["command"]
    assert (program, option) == ("python", "-m")
    folder = ROOT.joinpath("src", *module.split("."))
    assert (folder / "__main__.py").is_file()
    assert "livenessProbe" not in CONTAINERS[WORKER]


def test_a_pod_that_ends_has_the_time_that_it_takes() -> None:
    command, seconds = CONTAINERS[API]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    grace = {name: PODS[name]["spec"]["terminationGracePeriodSeconds"] for name in (API, WORKER)}
    assert grace[API] > int(seconds) + settings_of(API).shutdown_seconds
    assert grace[WORKER] > settings_of(WORKER).worker_stop_seconds


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_as_little_as_the_image_needs(name: str) -> None:
    spec = PODS[name]["spec"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = re.search(r"useradd --uid (\d+) --user-group", dockerfile)
    assert user
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[1]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert CONTAINERS[name]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["enableServiceLinks"] is False


def test_the_variables_of_its_service_disturb_nothing() -> None:
    """Other pods of the namespace, such as one for psql, get them."""
    service = NAMES["Service", "flashsale"]
    name = service["metadata"]["name"].upper()
    given = {f"{name}_SERVICE_HOST": "10.96.0.17"}
    for n, port in enumerate(service["spec"]["ports"]):
        number = port["port"]
        assert n == 0
        given |= {
            f"{name}_SERVICE_PORT": f"{number}",
            f"{name}_SERVICE_PORT_{port['name'].upper()}": f"{number}",
            f"{name}_PORT": f"tcp://10.96.0.17:{number}",
            f"{name}_PORT_{number}_TCP": f"tcp://10.96.0.17:{number}",
            f"{name}_PORT_{number}_TCP_PROTO": "tcp",
            f"{name}_PORT_{number}_TCP_PORT": f"{number}",
            f"{name}_PORT_{number}_TCP_ADDR": "10.96.0.17",
        }
    assert Settings.from_env(given) == Settings()


def test_the_guide_names_what_the_file_has() -> None:
    images = {container["image"] for container in CONTAINERS.values()}
    assert len(images) == 1
    assert set(re.findall(r"registry\.example/\S+", GUIDE)) == images
    named = set(re.findall(r"\b(job|deployment)[/ ](flashsale-\w+)", GUIDE))
    assert len(named) == 3
    assert {(kind.capitalize(), name) for kind, name in named} <= set(NAMES)
