"""The manifests, rendered, against KubeRay's and Kubernetes' schemas and against this project."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator

from cluster.config import load_config
from cluster.placement import roles
from tests.cluster.head import SCRIPTS
from tests.cluster.kustomize import Document, containers, render
from tests.conftest import ROOT, shared_file

FOLDER = ROOT / "cluster" / "kubernetes"
DOCKERFILE = FOLDER / "Dockerfile"
OVERLAYS = sorted(
    path.parent.name
    for path in FOLDER.glob("*/kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
)
KUBERNETES = "1.31"


@pytest.fixture(params=OVERLAYS)
def overlay(request) -> list[Document]:
    return render(FOLDER / request.param)


def ray_objects(documents: list[Document]) -> list[Document]:
    return [d for d in documents if d["apiVersion"] == "ray.io/v1"]


def cluster_spec(document: Document) -> Document:
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def jobs(documents: list[Document]) -> list[Document]:
    return [d for d in documents if d["kind"] == "RayJob"]


def test_there_are_jobs_and_a_cluster_that_stays():
    kinds = {name: [d["kind"] for d in ray_objects(render(FOLDER / name))] for name in OVERLAYS}
    assert kinds == {
        "base": ["RayJob"],
        "shapes": ["RayJob"],
        "janus_pro": ["RayJob"],
        "janus_pro_standing": ["RayCluster"],
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_tests_render_as_kubectl_does(name):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine to compare with")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = list(yaml.safe_load_all(done.stdout))

    def key(document: Document) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    assert sorted(render(FOLDER / name), key=key) == sorted(expected, key=key)


def test_every_object_fits_its_schema(overlay):
    ours = ray_objects(overlay)
    for document in ours:
        schema = json.loads(
            shared_file(f"schemas/kuberay_{document['kind'].lower()}_v1.schema.json").read_text()
        )
        errors = [
            f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(document)
        ]
        assert not errors


def test_every_pod_and_every_built_in_object_fits_kubernetes(overlay):
    for document in overlay:
        if document["apiVersion"] in ("v1", "networking.k8s.io/v1"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for document in ray_objects(overlay):
        spec = cluster_spec(document)
        templates = [spec["headGroupSpec"]["template"]]
        templates += [group["template"] for group in spec["workerGroupSpecs"]]
        templates += [d["spec"]["submitterPodTemplate"] for d in jobs([document])]
        for template in templates:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}} | template
            pod["metadata"] = {"name": "x"} | template["metadata"]
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "bicot"
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            assert pod["spec"]["securityContext"]["runAsUser"] > 0


def test_no_container_is_privileged_or_without_limits(overlay):
    found = containers(overlay)
    found += [cluster_spec(d)["autoscalerOptions"] for d in ray_objects(overlay)]
    assert found
    for container in found:
        security, limits = container["securityContext"], container["resources"]["limits"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= limits.keys()
        assert container["resources"]["requests"].keys() == limits.keys()


def test_groups_have_bounds_and_every_role_finds_its_nodes(overlay):
    for document in ray_objects(overlay):
        spec = cluster_spec(document)
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["rayVersion"] == ray.__version__
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        offered = set()
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["maxReplicas"] > 0
            (word,) = shlex.split(group["rayStartParams"]["resources"])
            (resource,) = json.loads(word)
            assert resource == group["groupName"].replace("-", "_")
            offered.add(resource)
        assert {"learner", "rollout"} < offered
        for job in jobs([document]):
            asked = {name for role in roles(entry_config(job)) for name in role.custom}
            assert asked in (set(), offered)


def entry_config(job: Document):
    """The configuration that a job's entrypoint names, read as the command reads it."""
    python, module, package, command, path, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert [python, module, package, command] == ["python", "-m", "cluster", "train"]
    return load_config(ROOT / path, overrides)


def test_jobs_keep_their_runs_on_the_shared_volume(overlay):
    (claim,) = (d for d in overlay if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for job in jobs(overlay):
        config = entry_config(job)
        for container in containers(cluster_spec(job)):
            mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert config.runs_dir == mounted["runs"]
    for document in ray_objects(overlay):
        spec = cluster_spec(document)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_all_pods_run_one_image_in_the_folder_that_it_has(overlay):
    (image,) = {c["image"] for c in containers(overlay)}
    assert image.rpartition("/")[2].partition(":")[0] == "bicot"
    (code,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert {c["workingDir"] for c in containers(overlay) if "workingDir" in c} == {code}


def test_prometheus_and_policies_name_labels_and_ports_that_there_are(overlay):
    ports = {p["containerPort"]: p["name"] for c in containers(overlay) for p in c.get("ports", [])}
    for document in overlay:
        if document["kind"] == "NetworkPolicy":
            opened = {p["port"] for rule in document["spec"]["ingress"] for p in rule.get("ports", [])}
            assert opened <= ports.keys()
        if document["kind"] == "PodMonitor":
            assert {e["port"] for e in document["spec"]["podMetricsEndpoints"]} <= set(ports.values())
        if document["kind"] == "ConfigMap":
            (text,) = document["data"].values()
            assert json.loads(text)["title"] == "bicot"


def test_the_dockerfile_is_in_order():
    done = subprocess.run([SCRIPTS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = DOCKERFILE.read_text()
    assert "USER 1000" in text
    for source in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / Path(name)).exists() for name in source.split())
