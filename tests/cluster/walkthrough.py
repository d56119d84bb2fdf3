"""Runs the commands of the README's section "On a cluster" in a cloud on this machine (``tests.cluster.cloud``).

A program that needs a network of its own: ``unshare --net --mount --pid --fork --mount-proc``. The first argument is a
new folder. It writes what happened to ``record.json`` there.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import boto3
import yaml

from medfocus.starter.phantoms import write_set
from tests import servers
from tests.cluster import cloud
from tests.cluster.relay import relay
from tests.integration.one_process import run_commands

REPOSITORY = Path(__file__).parents[2]
IMAGES = 8
_S3_PORT = 8098
_NETWORK = f"""
mount --make-rprivate / && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
ip link set lo up && ip link add br0 type bridge && ip addr add {cloud.GATEWAY}/24 dev br0 && ip link set br0 up
"""


def commands() -> list[str]:
    """The commands of the README's section, without their comments."""
    section = (REPOSITORY / "README.md").read_text().split("\n## On a cluster\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def launcher_file() -> dict[str, Any]:
    """``ray_cluster.yaml`` with another provider, and workers of two CPUs in place of eight and a GPU."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text()))
    config["provider"] = {"type": "external", "module": "tests.cluster.cloud.Machines"}
    for name in ("gpu_spot", "gpu_on_demand"):
        config["available_node_types"][name]["resources"] = {"CPU": 2}
    return config


def variables(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Environment variables of a node, as its image and the launcher file set them, with servers of this cloud."""
    options = [option.removeprefix("--env ") for option in config["docker"]["run_options"] if "--env " in option]
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "LANG": "C.UTF-8",
        **dict(option.split("=", 1) for option in options),
        **servers.s3_user(f"http://{cloud.GATEWAY}:{_S3_PORT}"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/work/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def prepare(folder: Path) -> None:
    """Make what the README's earlier sections make: labelled shards in the bucket, and the model ``chest``."""
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="archive")
    write_set(folder / "set", IMAGES, seed=0, preset="easy", size=128)
    keys = [f"work={folder}/work", "segment.points_per_side=2", "train.epochs=1", "train.folds=2"]
    settings = [part for key in keys for part in ("--set", key)]
    labels = ["--labels", f"{folder}/set/labels.csv"]
    calls = [
        ["pack", f"{folder}/set/images", "s3://archive/shards", *labels, *settings],
        ["embed", "s3://archive/shards", "s3://archive/features", *settings],
        ["train", "s3://archive/features", "--name", "chest", *settings],
    ]
    process = run_commands(calls, folder)
    assert process.returncode == 0, process.stderr[-2000:]


def execute(command: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command in a shell, as a user types it; what it printed, and how it ended."""
    options: dict[str, Any] = {"shell": True, "executable": "/bin/bash", "cwd": folder, "env": environment}
    if command.endswith("&"):
        log = folder / "background.log"
        with log.open("w") as output:
            process = subprocess.Popen(f"exec {command.removesuffix('&')}", stdout=output, stderr=output, **options)
        while process.poll() is None and socket.socket().connect_ex(("127.0.0.1", 8265)):
            time.sleep(0.2)  # a person waits until it says that the tunnel is there
        return {"command": command, "code": process.poll() or 0, "output": log.read_text()}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(command, text=True, timeout=300, check=False, **pipes, **options)
    return {"command": command, "code": ended.returncode, "output": ended.stdout}


def main(folder: Path) -> None:
    """Set up the cloud, run all commands, and record what happened."""
    subprocess.run(["bash", "-ec", _NETWORK], check=True)
    config = launcher_file()
    environment = variables(folder, config)
    laptop = folder / "laptop"
    laptop.mkdir()
    own = {name: environment[name] for name in ("PATH", "PYTHONPATH", "LANG")} | {"HOME": str(laptop)}
    (laptop / "ray_cluster.yaml").write_text(yaml.safe_dump(config))
    with servers.s3() as url:
        s3 = ("127.0.0.1", int(url.rpartition(":")[2]))
        threading.Thread(target=relay, args=((cloud.GATEWAY, _S3_PORT), s3), daemon=True).start()
        os.environ |= {name: environment[name] for name in environment if name.startswith(("AWS_", "MLFLOW_"))}
        prepare(folder)
        machines = cloud.Cloud(folder, environment)
        machines.refused.add("gpu_spot")
        cloud.serve(machines)
        steps = []
        for command in commands():
            steps.append(execute(command, laptop, own))
            steps[-1]["nodes"] = sorted(tags["ray-user-node-type"] for tags in machines.nodes().values())
            print(steps[-1], flush=True)
            if steps[-1]["code"]:
                break
        contents = boto3.client("s3", region_name="us-east-1").list_objects_v2(Bucket="archive", Prefix="out/")
    keys = [item["Key"] for item in contents.get("Contents", [])]
    token = (laptop / ".ray/auth_token").read_text()
    record = {"steps": steps, "asked": machines.asked, "keys": keys, "token": token}
    (folder / "record.json").write_text(json.dumps(record))
    os._exit(0)  # the tunnel and the threads of the servers would go on


if __name__ == "__main__":
    main(Path(sys.argv[1]))
