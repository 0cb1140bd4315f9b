# SPDX-License-Identifier: Apache-2.0
"""What containers and clusters are told. No image is built here: files are held to their formats' schemas, and to each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from deploy.monitoring.files import DEPLOY
from deploy.monitoring.generate import DASHBOARD, KUBERNETES_RULES, RULES
from deploy.touchpoints.table import minor_of, newest, read_table
from vllm_surgery import load_patch
from vllm_surgery.cli import _parser

ROOT = DEPLOY.parent
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DEPLOYMENT = DEPLOY / "kubernetes" / "server" / "deployment.yaml"
JOB = DEPLOY / "kubernetes" / "canary-job" / "job.yaml"
OVERLAYS = [DEPLOY, DEPLOY / "kubernetes" / "canary-deployment", DEPLOY / "kubernetes" / "canary-job"]
OPERATORS = "monitoring.coreos.com/v1"
COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml"]
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
USER = 10001


def load(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


@pytest.fixture(scope="module")
def kustomization() -> dict[str, Any]:
    return load(DEPLOY / "kustomization.yaml")


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return load(DEPLOYMENT)


@pytest.fixture(scope="module")
def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]


# Kubernetes.


@pytest.mark.parametrize(
    "name", ["server/deployment", "service", "headless_service", "networkpolicy", "canary-job/job"]
)
def test_resources_fit_kubernetes_schemas(name: str) -> None:
    resource = load(DEPLOY / "kubernetes" / f"{name}.yaml")
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("name", "kind"), [("service_monitor", "ServiceMonitor"), ("prometheus_rule", "PrometheusRule")]
)
def test_the_operators_resources_are_of_its_kinds(name: str, kind: str) -> None:
    # Their schemas are in no package; what stands in them is tested below.
    resource = load(DEPLOY / "kubernetes" / f"{name}.yaml")
    assert (resource["apiVersion"], resource["kind"]) == (OPERATORS, kind)


def test_a_resource_that_does_not_fit_is_refused(deployment: dict[str, Any]) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**deployment, "spec": {"replcas": 1}}, kubernetes_validate.latest_version(), strict=True
        )


def test_the_kustomization_takes_every_resource_and_what_it_takes_is_there(kustomization: dict[str, Any]) -> None:
    assert sorted(kustomization["resources"]) == sorted(
        ["kubernetes/server", *(str(file.relative_to(DEPLOY)) for file in KUBERNETES)]
    )
    for config_map in kustomization["configMapGenerator"]:
        for source in config_map["files"]:
            file = (DEPLOY / source.rpartition("=")[2]).resolve()
            assert file.is_file()
            assert file.is_relative_to(DEPLOY), "kustomize takes nothing from outside its folder"
            assert file.stat().st_size < 2**20, "a ConfigMap holds no more than 1 MiB"


def test_config_maps_fit_kubernetes_schema(kustomization: dict[str, Any]) -> None:
    for generated in kustomization["configMapGenerator"]:
        files = [source.rpartition("=") for source in generated["files"]]
        data = {key or Path(path).name: (DEPLOY / path).read_text() for key, _, path in files}
        metadata = {"name": generated["name"], "labels": generated.get("options", {}).get("labels", {})}
        resource = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_dashboard_is_labelled_for_grafanas_sidecar(kustomization: dict[str, Any]) -> None:
    (dashboard,) = [each for each in kustomization["configMapGenerator"] if DASHBOARD in each["files"]]
    assert dashboard["options"]["labels"] == {"grafana_dashboard": "1"}


def test_the_followed_file_is_in_the_mounted_config_map(kustomization: dict[str, Any], pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mount = next(each for each in container["volumeMounts"] if each["mountPath"] == "/patches")
    assert "subPath" not in mount, "Kubernetes never updates those"
    name = volumes[mount["name"]]["configMap"]["name"]
    (files,) = [each["files"] for each in kustomization["configMapGenerator"] if each["name"] == name]
    assert {"--watch", *(f"--patch=/patches/{source.partition('=')[0]}" for source in files)} <= set(container["args"])
    assert kustomization["generatorOptions"]["disableNameSuffixHash"], "or a new content would be a new pod"


def test_every_mount_has_its_volume(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounted = {mount["name"] for each in [*pod["containers"], *pod["initContainers"]] for mount in each["volumeMounts"]}
    assert mounted == volumes


def test_selectors_meet_labels_and_ports_meet_names(deployment: dict[str, Any], pod: dict[str, Any]) -> None:
    service, monitor = (load(DEPLOY / "kubernetes" / f"{name}.yaml") for name in ("service", "service_monitor"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert {**service["spec"]["selector"], "track": "stable"} == labels, "the Service has the canary's pods too"
    headless = load(DEPLOY / "kubernetes" / "headless_service.yaml")["spec"]
    assert (headless["selector"], headless["ports"]) == (service["spec"]["selector"], service["spec"]["ports"])
    assert headless["clusterIP"] == "None", "so that its name has an address for each pod"
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {each["name"] for each in pod["containers"][0]["ports"]}
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [port["name"]]


def test_the_network_policy_is_about_the_servers_pods(pod: dict[str, Any], deployment: dict[str, Any]) -> None:
    policy = load(DEPLOY / "kubernetes" / "networkpolicy.yaml")["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert {**policy["podSelector"]["matchLabels"], "track": "stable"} == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["ingress"]
    assert [port["port"] for port in rule["ports"]] == [each["containerPort"] for each in pod["containers"][0]["ports"]]


def rendered(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl isn't there")
    out = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return list(yaml.safe_load_all(out.stdout))


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_kustomize_renders_what_kubernetes_takes(folder: Path) -> None:
    resources = rendered(folder)
    assert resources
    for resource in resources:
        if resource["apiVersion"] != OPERATORS:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_kustomize_renders_each_resource_once_with_its_image_and_its_files(deployment: dict[str, Any]) -> None:
    found = {(each["kind"], each["metadata"]["name"]): each for each in rendered(DEPLOY)}
    assert sorted(found) == [
        ("ConfigMap", "vllm-surgery-dashboard"),
        ("ConfigMap", "vllm-surgery-patch"),
        ("Deployment", "vllm-surgery"),
        ("NetworkPolicy", "vllm-surgery"),
        ("PrometheusRule", "vllm-surgery"),
        ("Service", "vllm-surgery"),
        ("Service", "vllm-surgery-pods"),
        ("ServiceMonitor", "vllm-surgery"),
    ]
    made = found["Deployment", "vllm-surgery"]["spec"]["template"]["spec"]
    assert {each["image"] for each in (*made["containers"], *made["initContainers"])} == {"vllm-surgery:cpu"}
    patch = found["ConfigMap", "vllm-surgery-patch"]["data"]
    assert patch == {"active.yaml": (DEPLOY / "kubernetes" / "patches" / "active.yaml").read_text()}


def test_a_second_deployment_differs_in_its_name_its_track_and_its_patch_alone(deployment: dict[str, Any]) -> None:
    found = {each["kind"]: each for each in rendered(DEPLOY / "kubernetes" / "canary-deployment")}
    made, labels = found["Deployment"], {"app.kubernetes.io/name": "vllm-surgery", "track": "canary"}
    assert made["metadata"]["name"] == "vllm-surgery-canary"
    assert made["spec"]["selector"]["matchLabels"] == made["spec"]["template"]["metadata"]["labels"] == labels
    volumes = {each["name"]: each for each in made["spec"]["template"]["spec"]["volumes"]}
    assert (
        volumes["patch"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"] == "vllm-surgery-patch-canary"
    )
    first, second = deployment["spec"]["template"]["spec"], made["spec"]["template"]["spec"]
    assert second["containers"][0]["args"] == first["containers"][0]["args"]
    assert second["containers"][0]["env"] == first["containers"][0]["env"]


def test_the_canarys_job_asks_all_pods_and_has_both_keys(pod: dict[str, Any]) -> None:
    job = load(JOB)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    headless = load(DEPLOY / "kubernetes" / "headless_service.yaml")
    address = f"dns://{headless['metadata']['name']}:{headless['spec']['ports'][0]['port']}"
    assert f"--urls-from={address}" in container["args"]
    _parser().parse_args(container["args"])
    keys = {each["name"] for each in pod["containers"][0]["env"] if "valueFrom" in each}
    assert {each["name"] for each in container["env"]} == keys
    assert job["spec"]["backoffLimit"] == 0, "what was taken back isn't tried again"
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] != "vllm-surgery", "no server"


def test_patches_for_the_cluster_are_patches() -> None:
    files = [
        file for folder in ("canary-deployment", "canary-job") for file in (DEPLOY / "kubernetes" / folder).iterdir()
    ]
    names = [load_patch(file).name for file in files if file.name in {"active.yaml", "new.yaml"}]
    assert len(names) == 2


def test_the_server_has_its_keys_or_does_not_start(pod: dict[str, Any]) -> None:
    keys = {each["name"]: each.get("valueFrom") for each in pod["containers"][0]["env"]}
    for variable, key in (("VLLM_API_KEY", "api-key"), ("VLLM_SURGERY_KEY", "surgery-key")):
        assert keys[variable] == {"secretKeyRef": {"name": "vllm-surgery", "key": key}}


def test_containers_run_without_rights(pod: dict[str, Any]) -> None:
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, USER)
    for container in [*pod["containers"], *pod["initContainers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_what_is_bad_once_weights_may_be_mixed(pod: dict[str, Any], probe: str) -> None:
    # That the server's /health turns bad then is tested in tests/engine/test_live_ranks.py.
    assert pod["containers"][0][probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_the_prometheus_rule_has_the_rules_of_the_files() -> None:
    groups = [group for path in RULES.values() for group in load(DEPLOY / path)["groups"]]
    assert load(DEPLOY / KUBERNETES_RULES)["spec"] == {"groups": groups}


def test_the_example_patch_is_the_shipped_one(shipped_patch: Path) -> None:
    assert load_patch(DEPLOY / "kubernetes" / "patches" / "active.yaml").id == load_patch(shipped_patch).id


# docker compose.


def check_compose(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)


def test_nobody_is_grafanas_administrator() -> None:
    environment = load(DEPLOY / "compose.yaml")["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert "GF_AUTH_ANONYMOUS_ORG_ROLE" not in environment


def test_compose_files_fit_the_compose_schema() -> None:
    checked = check_compose(*COMPOSE)
    assert checked.returncode == 0, checked.stdout


def test_a_compose_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {vllm: {imge: vllm}}")
    assert check_compose(file).returncode == 1


def test_mounted_folders_and_files_are_there_and_volumes_declared() -> None:
    compose = load(COMPOSE[0])
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert there, f"{name}: {source}"


def test_ports_are_open_to_this_machine_alone() -> None:
    services = load(COMPOSE[0])["services"].values()
    assert all(port.startswith("127.0.0.1:") for service in services for port in service.get("ports", []))


def test_the_override_names_services_that_are_there() -> None:
    base, override = (load(file)["services"] for file in COMPOSE)
    assert set(override) <= set(base)


def test_prometheus_and_grafana_find_each_other() -> None:
    compose = load(COMPOSE[0])["services"]
    (source,) = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (scraped,) = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["vllm:8000"]}]
    assert {"prometheus", "vllm"} <= set(compose)


# Both.


def test_the_demo_model_is_served_as_make_serves_it(pod: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    (options,) = re.findall(r"DEMO_OPTIONS := ((?:.*\\\n)*.*)", makefile)
    demo = set(re.sub(r" (?=[^-])", "=", re.sub(r"\\\n\s*", "", options)).split())
    for command in (load(COMPOSE[0])["services"]["vllm"]["command"], pod["containers"][0]["args"]):
        assert demo <= set(command)


# Images.


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_images_have_stages_pinned_bases_and_no_root(file: Path) -> None:
    lines = re.sub(r"\\\n", "", file.read_text()).splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    stages = {line.split()[3] for line in lines if line.startswith("FROM ") and " AS " in line}
    assert len(bases) > 1
    tags = dict(re.findall(r"^ARG (\w+)=(\S+)", "\n".join(lines), re.MULTILINE))
    bases = [tags[base[2:-1]] if base.startswith("${") else base for base in bases]
    assert all(re.search(r":v?\d+\.\d+\.\d+", base) for base in bases if base not in stages)
    assert [line for line in lines if line.startswith("USER ")] == [f"USER {USER}"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_what_images_copy_is_there_and_not_ignored(file: Path) -> None:
    ignored = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_the_gpu_image_has_the_engine_that_the_project_asks_for() -> None:
    (version,) = re.findall(r"vllm/vllm-openai:v(\S+)", (DEPLOY / "docker" / "gpu.Dockerfile").read_text())
    (asked,) = re.findall(r'^gpu = \["vllm(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert SpecifierSet(asked).contains(version)
    assert minor_of(version) == newest(read_table())


def test_images_of_compose_are_pinned() -> None:
    images = [service["image"] for service in load(COMPOSE[0])["services"].values()]
    own = {"vllm-surgery:cpu"}
    assert all(image in own or re.fullmatch(r"\$\{[A-Z]+_IMAGE:-\S+:v?\d+\.\d+\.\d+\}", image) for image in images)
