"""The files that start clusters: accepted by the tools that read them, or by their schemas and linters."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubernetes import client
from ray.autoscaler._private.util import prepare_config, validate_config

REPO = Path(__file__).resolve().parents[1]
CLUSTER = REPO / "ray_cluster.yaml"
DEPLOY = REPO / "deploy"


def tool(name: str) -> str:
    """A program that a package of the `dev` extra has brought."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert path, f"{name} is not installed; run `make setup`"
    return path


# ray_cluster.yaml


def test_launcher_accepts_the_cluster_file():
    config = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


def test_every_ray_start_uses_token_authentication():
    config = yaml.safe_load(CLUSTER.read_text())
    starts = [
        c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in config[key] if "ray start" in c
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_the_head_does_no_asset_work_and_workers_start_when_wanted():
    types = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert workers.keys() == {"cpu_worker", "gpu_worker"}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())


# shell scripts


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run([tool("shellcheck"), "--severity=style", script], check=True)


STAND_IN = """#!/bin/bash
echo "$(basename "$0") token=${RAY_AUTH_TOKEN:0:4} mode=$RAY_AUTH_MODE: $*" >> "$LOG"
"""
SRUN = STAND_IN + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
RAY = STAND_IN + '[[ $1 != start ]] || exec sleep 600\n[[ $(grep --count "ray .*start --head" "$LOG") -gt 0 ]]\n'
SCONTROL = STAND_IN + "echo node-1; echo node-2\n"


def run_slurm_script(folder: Path, seqtex: str, nodes: int) -> tuple[subprocess.CompletedProcess, list[str]]:
    """deploy/slurm.sh between stand-ins for SLURM's commands, Ray's and ours; and what these were asked for."""
    scripts = {"srun": SRUN, "ray": RAY, "scontrol": SCONTROL, "seqtex": STAND_IN + seqtex}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": 17, "JOB_NODELIST": "node-[1-2]", "JOB_NUM_NODES": nodes, "CPUS_PER_TASK": 8}
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()} | {"LOG": str(folder / "log")}
    environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", DEPLOY / "slurm.sh", "--source", "folder:/shared/two words", "--out", "/shared/out"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, start_new_session=True)
    return ended, (folder / "log").read_text().splitlines()


def test_the_slurm_script_starts_a_cluster_with_a_token_of_its_own_and_builds(tmp_path):
    ended, log = run_slurm_script(
        tmp_path, 'until grep --quiet "ray .*start --block" "$LOG"; do sleep 0.05; done\nexit 3\n', nodes=2
    )
    assert ended.returncode == 3  # as the build ended
    calls = [line.split(": ", 1)[1] for line in log]
    assert "start --head --block --node-ip-address=node-1 --port=20017 --num-cpus=7" in calls
    assert "start --block --address=node-1:20017 --num-cpus=8" in calls
    assert "build --source folder:/shared/two words --out /shared/out --address node-1:20017" in calls
    assert "status --address=node-1:20017" in calls
    (token,) = {line.split()[1] for line in log if not line.startswith("scontrol")}
    assert len(token) == len("token=") + 4
    assert all("mode=token" in line for line in log if not line.startswith("scontrol"))


def test_the_slurm_script_queues_itself_again_when_it_is_stopped(tmp_path):
    stop = 'kill -USR1 "$PPID"\nexec sleep 600\n'
    ended, log = run_slurm_script(tmp_path, stop, nodes=1)
    assert ended.returncode == 0, ended.stderr
    assert log[-1].endswith("requeue 17")
    assert not any("--block --address" in line for line in log)  # one node alone


# Dockerfile


def test_the_dockerfile_is_sound_and_bakes_in_nothing_secret():
    subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile"], check=True)
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "ARG BASE=python:3.11-slim" in lines
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 1000"] and lines.index(users[0]) < lines.index('CMD ["seqtex", "--help"]')
    assert any("pip install" in line and "-c constraints.txt" in line for line in lines)
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert copied == {"schemas", "geometry", "pipeline", "training", "cli"} | files
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_what_the_image_compiles_with_is_there():
    """The lines `RUN python -c ...` are run here as they are there."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    programs = [shlex.split(line)[3] for line in lines if line.startswith("RUN python -c ")]
    assert len(programs) == 1
    subprocess.run([sys.executable, "-c", *programs], cwd=REPO, check=True)


# Kubernetes

GROUP = {
    "type": "object",
    "properties": {
        "groupName": {"type": "string"},
        "replicas": {"type": "integer", "minimum": 0},
        "minReplicas": {"type": "integer", "minimum": 0},
        "maxReplicas": {"type": "integer", "minimum": 1},
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": {"type": "object"},
    },
    "additionalProperties": False,
}
RAY_JOB = {
    "type": "object",
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                "rayClusterSpec": {
                    "type": "object",
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {"properties": {"mode": {"const": "token"}}, "additionalProperties": False},
                        "enableInTreeAutoscaling": {"const": True},
                        "autoscalerOptions": {
                            "properties": {"idleTimeoutSeconds": {"type": "integer"}},
                            "additionalProperties": False,
                        },
                        "headGroupSpec": GROUP | {"required": ["rayStartParams", "template"]},
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": GROUP | {"required": ["groupName", "maxReplicas", "minReplicas", "template"]},
                        },
                    },
                    "required": ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
                    "additionalProperties": False,
                },
            },
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
        },
    },
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
}
"""What we use of the operator's own definition (ray.io/v1, KubeRay 1.5), which no registry package carries."""


@pytest.fixture(scope="module")
def ray_job() -> dict:
    return yaml.safe_load((DEPLOY / "kuberay-rayjob.yaml").read_text())


def groups(ray_job: dict) -> list[dict]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_ray_job_has_the_structure_that_the_operator_defines(ray_job):
    jsonschema.validate(ray_job, RAY_JOB)
    pinned = (REPO / "constraints.txt").read_text().splitlines()
    assert f"ray=={ray_job['spec']['rayClusterSpec']['rayVersion']}" in pinned
    assert [group.get("groupName") for group in groups(ray_job)] == [None, "cpu", "gpu"]
    assert groups(ray_job)[0]["rayStartParams"] == {"num-cpus": "0"}


def test_its_pods_are_what_kubernetes_models_and_run_confined(ray_job):
    kubernetes = client.ApiClient()
    for group in groups(ray_job):
        pod = kubernetes._ApiClient__deserialize(group["template"], client.V1PodTemplateSpec)
        assert kubernetes.sanitize_for_serialization(pod) == group["template"]  # no field that Kubernetes lacks
        assert pod.spec.security_context.run_as_non_root and pod.spec.security_context.run_as_user == 1000
        (container,) = pod.spec.containers
        assert container.security_context.allow_privilege_escalation is False
        assert container.security_context.capabilities.drop == ["ALL"]
        assert container.resources.requests == container.resources.limits
        assert [mount.name for mount in container.volume_mounts] == [volume.name for volume in pod.spec.volumes]
        gpus = container.resources.limits.get("nvidia.com/gpu")
        assert gpus == ("1" if group.get("groupName") == "gpu" else None)
