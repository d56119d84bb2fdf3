"""Reads the manifests of ``cluster/kubernetes/`` and checks them as an API server does, without one."""

import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "cluster/kubernetes"
KUBERNETES = "1.37"
Manifest = dict[str, Any]


def read(name: str) -> list[Manifest]:
    """All objects of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def files() -> list[str]:
    """Names of the files that hold objects of a cluster."""
    return sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def objects() -> list[Manifest]:
    """All objects of the folder."""
    return [manifest for name in files() for manifest in read(name)]


def validate(manifest: Manifest, definitions: Path) -> None:
    """Check an object against the schema of its kind; unknown fields are refused.

    Args:
        manifest: the object.
        definitions: folder with KubeRay's custom resource definitions.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError: it does not fit.
    """
    if not manifest["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    custom_validator(manifest["kind"], manifest["apiVersion"].partition("/")[2], definitions).validate(manifest)
    # The custom schema leaves metadata open.
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}, KUBERNETES, strict=True
    )
    for template in pod_templates(manifest):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True)


@cache
def custom_validator(kind: str, version: str, definitions: Path) -> jsonschema.Draft7Validator:
    """The strict validator of a kind of custom objects."""
    content = gzip.decompress((definitions / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes())
    definition = yaml.load(content, yaml.CSafeLoader)
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version)
    return jsonschema.Draft7Validator(close(schema))


def close(schema: Any) -> Any:
    """A schema that refuses fields it does not name, as the API server does with strict field validation."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


def cluster_spec(manifest: Manifest) -> Manifest | None:
    """The Ray cluster that an object describes; None where it describes none."""
    if manifest["kind"] == "RayCluster":
        return manifest["spec"]
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else None


def groups(spec: Manifest) -> list[Manifest]:
    """The head and the groups of workers of a Ray cluster."""
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """Every pod that an object leads to."""
    spec = cluster_spec(manifest)
    if spec:
        yield from (group["template"] for group in groups(spec))
    if manifest["kind"] == "RayJob":
        yield manifest["spec"]["submitterPodTemplate"]
    if manifest["kind"] == "CronJob":
        yield manifest["spec"]["jobTemplate"]["spec"]["template"]


def containers(template: Manifest) -> list[Manifest]:
    """All containers of a pod."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def quantity(text: str | int) -> float:
    """The number that a quantity of Kubernetes stands for."""
    number, unit = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, None: 1}[unit]


def find(manifest: Any, key: str) -> Iterator[Any]:
    """The values of a key at any depth."""
    if isinstance(manifest, dict):
        yield from (value for name, value in manifest.items() if name == key)
    for value in manifest.values() if isinstance(manifest, dict) else manifest if isinstance(manifest, list) else ():
        yield from find(value, key)
