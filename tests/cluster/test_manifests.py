"""``cluster/kubernetes/``: what Kubernetes and KubeRay accept, and what the manifests promise together."""

import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from medfocus.cluster.environment import DEFAULTS
from medfocus.pipeline.commands.parser import build_parser
from medfocus.pipeline.config import load_config
from tests.cluster import manifests
from tests.cluster.manifests import Manifest, cluster_spec, containers, groups, pod_templates, quantity

REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
OBJECTS = manifests.objects()
JOBS = [manifest for manifest in OBJECTS if manifest["kind"] == "RayJob"]
CLUSTERS = [spec for spec in map(cluster_spec, OBJECTS) if spec]
PODS = [template for manifest in OBJECTS for template in pod_templates(manifest)]
LONGEST_NAME = {"RayJob": 47, "RayCluster": 53, "CronJob": 52}


def named(kind: str) -> Manifest:
    """The one object of a kind."""
    (manifest,) = (manifest for manifest in OBJECTS if manifest["kind"] == kind)
    return manifest


@pytest.mark.parametrize("name", manifests.files())
def test_a_manifest_is_what_its_schema_takes(name: str, kuberay: Path) -> None:
    for manifest in manifests.read(name):
        manifests.validate(manifest, kuberay)


MISTAKES: list[tuple[str, list[str | int], Any]] = [
    ("ray-cluster.yaml", ["spec", "enableInTreeAutoscalling"], True),
    ("ray-cluster.yaml", ["spec", "workerGroupSpecs", 0, "maxReplica"], 4),
    ("ray-cluster.yaml", ["spec", "workerGroupSpecs", 0, "maxReplicas"], "four"),
    ("ray-cluster.yaml", ["spec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
    ("ray-cluster.yaml", ["spec", "authOptions", "mode"], "tokens"),
    ("ray-cluster.yaml", ["spec", "headGroupSpec", "template", "metadata", "annotation"], {"a": "b"}),
    ("ray-cluster.yaml", ["spec", "headGroupSpec", "template", "spec", "containers", 0, "resource"], {}),
    ("ray-cluster.yaml", ["metadata", "label"], {"a": "b"}),
    ("score.yaml", ["spec", "activeDeadlineSecond"], 60),
    ("score.yaml", ["spec", "ttlSecondsAfterFinished"], "5m"),
    ("score.yaml", ["spec", "submitterPodTemplate", "spec", "tolerations"], [{"keys": "nvidia.com/gpu"}]),
    ("nightly.yaml", ["spec", "rayClusterSpec", "autoscalerOptions", "version"], "v3"),
    ("cron.yaml", ["spec", "concurrencyPolice"], "Forbid"),
    ("cron.yaml", ["spec", "startingDeadlineSeconds"], "an hour"),
    ("access.yaml", ["metadata", "labels"], ["medfocus"]),
    ("settings.yaml", ["datas"], {}),
]


@pytest.mark.parametrize(("name", "path", "value"), MISTAKES, ids=lambda item: str(item)[:60])
def test_a_manifest_with_a_mistake_is_refused(name: str, path: list[str | int], value: Any, kuberay: Path) -> None:
    manifest = manifests.read(name)[0]
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(REFUSED):
        manifests.validate(manifest, kuberay)


def test_the_folder_as_kubectl_applies_it(kuberay: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which builds the folder, is not installed")
    call = ["kubectl", "kustomize", str(manifests.FOLDER)]
    built = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    applied = list(yaml.safe_load_all(built))
    for manifest in applied:
        manifests.validate(manifest, kuberay)
    # What the CronJob mounts is in it, under the name that it mounts.
    by_name = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in applied}
    (cron,) = (manifest for (kind, _), manifest in by_name.items() if kind == "CronJob")
    (name,) = (source["name"] for source in manifests.find(cron, "configMap"))
    (content,) = by_name["ConfigMap", name]["data"].values()
    assert yaml.safe_load(content) == manifests.read("nightly.yaml")[0]
    assert not [manifest for manifest in applied if manifest["kind"] in ("Secret", "RayCluster", "RayJob")]


def test_names_leave_room_for_what_is_made_from_them() -> None:
    for manifest in OBJECTS:
        assert len(manifest["metadata"]["name"]) <= LONGEST_NAME.get(manifest["kind"], 63)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_every_command_is_one_of_ours(job: Manifest) -> None:
    for line in job["spec"]["entrypoint"].split("&&"):
        program, *arguments = shlex.split(line)
        assert program == "medfocus"
        call = build_parser().parse_args(arguments)
        # A head that does no work has nothing to plan with, so that each command says what it asks for.
        gpus = load_config(None, call.set).cluster.gpus
        groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert gpus and gpus <= sum(group["maxReplicas"] for group in groups)


def test_one_image_and_one_ray_everywhere() -> None:
    launcher = yaml.safe_load((manifests.REPOSITORY / "ray_cluster.yaml").read_text())
    ours = {c["image"] for pod in PODS for c in containers(pod) if "kubectl" not in c["image"]}
    assert ours == {launcher["docker"]["image"]}
    tag = ours.pop().rpartition(":")[2]
    project = tomllib.loads((manifests.REPOSITORY / "pyproject.toml").read_text())["project"]
    assert tag == f"{project['version']}-cuda"
    constraints = (manifests.REPOSITORY / "constraints.txt").read_text().splitlines()
    assert {f"ray=={spec['rayVersion']}" for spec in CLUSTERS} <= set(constraints)
    assert all(":" in c["image"] and not c["image"].endswith(":latest") for pod in PODS for c in containers(pod))


def test_no_container_has_more_rights_than_it_needs() -> None:
    for pod in PODS:
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert not any("hostPath" in volume for volume in pod["spec"]["volumes"])
    sidecars = [spec["autoscalerOptions"] for spec in CLUSTERS]
    for container in [*sidecars, *(c for pod in PODS for c in containers(pod))]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_what_is_mounted_is_declared() -> None:
    for pod in PODS:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for spec in CLUSTERS:
        head = {volume["name"] for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in spec["autoscalerOptions"]["volumeMounts"]} <= head


def test_requests_are_within_limits_and_memory_is_reserved_whole() -> None:
    sidecars = [spec["autoscalerOptions"] for spec in CLUSTERS]
    for container in [*sidecars, *(c for pod in PODS for c in containers(pod))]:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests) <= set(limits)
        assert all(quantity(requests[name]) <= quantity(limits[name]) for name in requests)
        # More memory than was requested is what a node takes back first, with the head and its driver in it.
        assert "kubectl" in container.get("image", "") or requests["memory"] == limits["memory"]


def test_the_object_store_fits_into_shared_memory_and_that_into_the_container() -> None:
    for spec in CLUSTERS:
        for group in groups(spec):
            (container,) = containers(group["template"])
            (name,) = (m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
            (volume,) = (v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == name)
            store = int(group["rayStartParams"]["object-store-memory"])
            assert volume["medium"] == "Memory"
            assert store < quantity(volume["sizeLimit"]) < 0.5 * quantity(container["resources"]["limits"]["memory"])


def test_gpu_pods_go_to_gpu_nodes_and_the_head_does_no_work() -> None:
    for spec in CLUSTERS:
        head, *workers = groups(spec)
        assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
        for group in workers:
            (container,) = containers(group["template"])
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            keys = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
            assert "nvidia.com/gpu" in keys
            assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        spot, on_demand = workers
        assert spot["priority"] > on_demand["priority"]
        assert spot["template"]["spec"]["nodeSelector"] != on_demand["template"]["spec"]["nodeSelector"]


@pytest.mark.parametrize(("refused", "started"), [([], "gpu-spot"), (["gpu-spot"], "gpu-on-demand")])
def test_ray_s_autoscaler_takes_spot_workers_first(refused: list[str], started: str) -> None:
    """What the autoscaler in the head reads from the RayCluster, and which group it asks for a worker with a GPU."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    cluster = manifests.read("ray-cluster.yaml")[0]
    cluster["metadata"]["namespace"] = "default"
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    assert types["headgroup"].resources["CPU"] == types["headgroup"].resources["GPU"] == 0
    actors = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 3)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=actors,
        recoverable_resource_availabilities=dict.fromkeys(refused, 0.0),
    )
    launches = ResourceDemandScheduler(None).schedule(request).to_launch
    workers = {launch.instance_type: launch.count for launch in launches if launch.instance_type != "headgroup"}
    assert workers == {started: 3}


def test_every_node_has_our_settings_and_the_cluster_asks_for_a_token() -> None:
    names = ("RAY_idle_worker_killing_time_threshold_ms", "RAY_USAGE_STATS_ENABLED")
    for spec in CLUSTERS:
        assert spec["authOptions"] == {"mode": "token"}
        for group in groups(spec):
            (container,) = containers(group["template"])
            assert container["env"] == [{"name": name, "value": DEFAULTS[name]} for name in names]


def test_all_clusters_are_the_same() -> None:
    assert len(CLUSTERS) == 3 and all(spec == CLUSTERS[0] for spec in CLUSTERS)


def test_nothing_is_open_to_the_outside() -> None:
    assert not [manifest for manifest in OBJECTS if manifest["kind"] in ("Service", "Ingress")]
    assert all(spec["headGroupSpec"]["serviceType"] == "ClusterIP" for spec in CLUSTERS)
    assert not list(manifests.find(OBJECTS, "enableIngress"))


def test_no_secret_has_a_value() -> None:
    secret = named("Secret")
    assert set(secret["stringData"].values()) == {"REPLACE"} and "data" not in secret
    configured = {named("ConfigMap")["metadata"]["name"]}
    assert {source["name"] for source in manifests.find(PODS, "secretRef")} == {secret["metadata"]["name"]}
    assert {source["name"] for source in manifests.find(PODS, "configMapRef")} == configured


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_a_run_ends_and_takes_its_cluster_with_it(job: Manifest) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] <= 600
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] <= 1 and "clusterSelector" not in spec


def test_the_nightly_run_is_submitted_once_and_watched_to_its_end() -> None:
    cron = named("CronJob")["spec"]
    job = cron["jobTemplate"]["spec"]
    (nightly,) = manifests.read("nightly.yaml")
    assert cron["concurrencyPolicy"] == "Forbid" and cron["startingDeadlineSeconds"] > 0
    assert cron["successfulJobsHistoryLimit"] > 0 and cron["failedJobsHistoryLimit"] > 0
    attempts = 1 + nightly["spec"]["backoffLimit"]
    assert job["backoffLimit"] == 0
    assert job["activeDeadlineSeconds"] > attempts * nightly["spec"]["activeDeadlineSeconds"]
    steps = containers(job["template"])
    name = f"rayjob/{nightly['metadata']['name']}"
    assert [step["args"][0] for step in steps] == ["delete", "create", "wait", "wait"]
    assert all(name in step["args"] for step in steps if step["args"][0] != "create")
    (mount,) = (m for m in steps[1]["volumeMounts"] if m["name"] == "nightly")
    assert f"--filename={mount['mountPath']}/nightly.yaml" in steps[1]["args"]


def test_the_cron_job_may_do_what_it_does_and_no_more() -> None:
    account, role, binding = (named(kind) for kind in ("ServiceAccount", "Role", "RoleBinding"))
    name = account["metadata"]["name"]
    assert named("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] == name
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    (rule,) = role["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert set(rule["verbs"]) == {"get", "list", "watch", "create", "delete"}
