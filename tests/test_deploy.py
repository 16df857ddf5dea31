"""What stands in deploy/: it parses, its flags exist, and its times fit together."""

import configparser
import re
from pathlib import Path
from typing import Any

import yaml

from wscluster.config import flag_of, option_fields

DEPLOY = Path(__file__).parent.parent / "deploy"
FLAGS = {flag_of(name) for name in option_fields()}
GRACEFUL_SECONDS = 30


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


def manifests() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes/wscluster.yaml").read_text())}


def test_every_flag_that_is_given_is_there() -> None:
    service = unit("wscluster.service")["Service"]["ExecStart"]
    docker = (DEPLOY / "docker/Dockerfile").read_text()
    (container,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    commands = [service, docker.split("CMD")[1], " ".join(container["args"])]
    for text in commands:
        used = set(re.findall(r"--[a-z][a-z-]+", text))
        assert used
        assert used <= FLAGS


def test_systemd_waits_longer_than_the_drain_and_gives_the_primary_its_signal_alone() -> None:
    service = unit("wscluster.service")["Service"]
    assert int(service["TimeoutStopSec"]) > GRACEFUL_SECONDS
    assert service["KillMode"] == "mixed"
    assert service["Type"] == "notify-reload"
    assert unit("wscluster.socket")["Socket"]["ListenStream"] == "80"


def test_the_container_runs_as_nobody_in_particular_and_the_primary_is_process_1() -> None:
    docker = (DEPLOY / "docker/Dockerfile").read_text()
    assert re.search(r"^USER 10001$", docker, re.M)
    assert re.search(r'^ENTRYPOINT \["wscluster", "serve"\]$', docker, re.M), "the exec form: no shell before it"
    assert docker.count("-slim") == 2


def test_a_pod_has_time_for_its_drain_and_is_asked_at_the_metrics_port() -> None:
    spec = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    arguments = dict(argument.partition("=")[::2] for argument in container["args"])
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > wait + int(arguments["--graceful-timeout"])
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} == {"/readyz", "/healthz"}
    assert probes["livenessProbe"]["path"] == "/healthz", "a node that drains is not killed for it"
    assert {port["name"] for port in container["ports"]} >= {probe["port"] for probe in probes.values()}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert manifests()["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
