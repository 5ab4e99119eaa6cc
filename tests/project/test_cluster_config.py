"""The files that start clusters: accepted by the tools that read them, or by their schemas and linters."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes import client
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.executor.scheduler import RunConfig
from seqtex.cli.terminal.parser import build_parser
from training.config import TrainConfig
from training.loop.strategies import check_run

REPO = Path(__file__).resolve().parents[2]
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
    assert types.keys() == {"head", "cpu_worker", "gpu_worker"}
    assert types["cpu_worker"]["min_workers"] == 0 < types["cpu_worker"]["max_workers"]
    assert types["gpu_worker"]["min_workers"] == types["gpu_worker"]["max_workers"] == 0  # until it is asked for


def test_every_node_is_set_up_whole():
    """A type's own list replaces the common one (StandardAutoscaler._get_node_type_specific_fields)."""
    config = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    common = yaml.safe_load(CLUSTER.read_text())["setup_commands"]
    lists = [config["head_setup_commands"]]
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            lists.append(kind.get("worker_setup_commands", config["worker_setup_commands"]))
    assert len(lists) == 3 and len(common) == 4
    assert all(commands[: len(common)] == common for commands in lists)
    assert "python3.11-venv" in common[0] and "ppa:" in common[0]  # Ubuntu's own is a release candidate, or missing


def test_nodes_have_a_system_and_a_disk_of_their_own():
    """Ray's default is an Ubuntu 18.04 on its small disk."""
    for kind in yaml.safe_load(CLUSTER.read_text())["available_node_types"].values():
        machine = kind["node_config"]
        assert machine["ImageId"].startswith("ami-")
        assert machine["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100


@pytest.mark.parametrize("path", [CLUSTER, DEPLOY / "slurm.sh", DEPLOY / "Dockerfile"], ids=lambda path: path.name)
def test_a_node_that_falls_silent_is_missed_soon(path):
    """Ray waits seven minutes; all processes of a cluster are to have the same times."""
    for setting in ("RAY_grpc_client_keepalive_time_ms=60000", "RAY_grpc_client_keepalive_timeout_ms=20000"):
        assert path.read_text().count(setting) == 1


# shell scripts


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run([tool("shellcheck"), "--severity=style", script], check=True)


STAND_IN = """#!/bin/bash
echo "$(basename "$0") token=${RAY_AUTH_TOKEN:0:4} mode=$RAY_AUTH_MODE: $*" >> "$LOG"
"""
SRUN = STAND_IN + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
RAY = STAND_IN + '[[ $1 != start ]] || exec sleep 600\n[[ $(grep --count "^ray .*start --head" "$LOG") -gt 0 ]]\n'
SCONTROL = STAND_IN + "echo node-1; echo node-2\n"
GETENT = "#!/bin/bash\necho '127.0.1.1  STREAM node-1'\necho '10.0.0.7  STREAM'\n"
LOOPBACK = "#!/bin/bash\necho '127.0.1.1  STREAM node-1'\n"
HOSTNAME = "#!/bin/bash\necho '10.0.0.8 172.17.0.1 '\n"


def run_slurm_script(
    folder: Path, seqtex: str, nodes: int, ray: str = RAY, getent: str = GETENT, script: str = "slurm.sh", **more: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """A script of deploy/ between stand-ins for SLURM's commands, Ray's and ours; and what these were asked for."""
    scripts = {"srun": SRUN, "ray": ray, "scontrol": SCONTROL, "seqtex": STAND_IN + seqtex}
    scripts |= {"getent": getent, "hostname": HOSTNAME}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": 17, "JOB_NODELIST": "node-[1-2]", "JOB_NUM_NODES": nodes, "CPUS_ON_NODE": 8}
    slurm |= {"NTASKS_PER_NODE": 8}
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()} | {"LOG": str(folder / "log")} | more
    environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", DEPLOY / script, "--source", "folder:/shared/two words", "--out", "/shared/out"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, start_new_session=True)
    return ended, (folder / "log").read_text().splitlines()


def test_the_slurm_script_starts_a_cluster_with_a_token_of_its_own_and_builds(tmp_path):
    ended, log = run_slurm_script(
        tmp_path, 'until grep --quiet "^ray .*start --block" "$LOG"; do sleep 0.05; done\nexit 3\n', nodes=2
    )
    assert ended.returncode == 3  # as the build ended
    calls = [line.split(": ", 1)[1] for line in log]
    assert "start --head --block --node-ip-address=10.0.0.7 --port=20017 --num-cpus=7" in calls
    assert "start --block --address=10.0.0.7:20017 --num-cpus=8" in calls
    assert "build --source folder:/shared/two words --out /shared/out --address 10.0.0.7:20017" in calls
    assert "status --address=10.0.0.7:20017" in calls
    steps = [line for line in log if line.startswith("srun ")]  # which inherits no --cpus-per-task since SLURM 22.05
    assert len(steps) == 2 and all(" --cpus-per-task=8 " in step for step in steps)
    (token,) = {line.split()[1] for line in log if not line.startswith("scontrol")}
    assert len(token) == len("token=") + 4
    assert all("mode=token" in line for line in log if not line.startswith("scontrol"))


BUILDER = f"""exec {sys.executable} -c '
import os, signal, time
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
try:
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(600)
except KeyboardInterrupt:
    print("let go of the lock", file=open(os.environ["LOG"], "a"))
'
"""


def test_the_slurm_script_queues_itself_again_when_it_is_stopped(tmp_path):
    ended, log = run_slurm_script(tmp_path, BUILDER, nodes=1)
    assert ended.returncode == 0, ended.stderr
    assert log[-2] == "let go of the lock"  # in an object store nothing else ends it
    assert log[-1].endswith("requeue 17")
    assert not any("--block --address" in line for line in log)  # one node alone


def test_the_slurm_script_queues_itself_again_when_it_is_stopped_before_the_build(tmp_path):
    stop = "kill -USR1 $(cut -d' ' -f6 /proc/$$/stat)"  # to the leader of the session: the script
    never = RAY.replace("[[ $(grep", f"{stop}; [[ ray == up && $(grep")
    ended, log = run_slurm_script(tmp_path, "exit 3\n", nodes=1, ray=never)
    assert ended.returncode == 0, ended.stderr
    assert any(line.endswith("requeue 17") for line in log)
    assert not any(line.startswith("seqtex") for line in log)


def test_the_slurm_script_tells_why_ray_does_not_answer(tmp_path):
    silent = STAND_IN + "[[ $1 != start ]] || exec sleep 600\necho 'no token' >&2\nexit 1\n"
    ended, _ = run_slurm_script(tmp_path, "exit 3\n", nodes=1, ray=silent, START_S="2")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "Ray does not answer at 10.0.0.7:20017 after 2 s: no token"


def test_the_slurm_script_gives_others_an_address_that_leads_to_the_first_node(tmp_path):
    _, log = run_slurm_script(tmp_path, "exit 0\n", nodes=1, getent=LOOPBACK)
    assert any("--node-ip-address=10.0.0.8 " in line for line in log)


@pytest.mark.parametrize(("exit_code", "again"), [(75, True), (138, True), (0, False), (65, False)])
def test_the_training_script_queues_itself_again_exactly_when_it_was_interrupted(tmp_path, exit_code, again):
    ended, log = run_slurm_script(
        tmp_path, f"exit {exit_code}\n", nodes=4, script="slurm_train.sh", SLURM_CPUS_PER_TASK="6"
    )
    assert ended.returncode == (0 if again else exit_code)
    assert log[-1].endswith("requeue 17") == again
    assert " --cpus-per-task=6 " in log[0] and log[0].endswith(" --run.nodes 4 --run.devices 8")


def documented_training() -> list[str]:
    """The commands for several nodes, in the script and on the page."""
    script = re.sub(r" \\\n# +", " ", (DEPLOY / "slurm_train.sh").read_text())
    page = re.sub(r" \\\n +", " ", (REPO / "docs" / "training.md").read_text())
    found = re.findall(r"sbatch (--nodes \d+) deploy/slurm_train\.sh (.*)", script + page)
    return [f"--run.{nodes.removeprefix('--')} --run.devices 8 {options}" for nodes, options in found]


def test_the_documented_training_on_several_nodes_can_be_trained():
    commands = documented_training()
    assert len(commands) == 2
    for words in (["train", *command.split()] for command in commands):
        parser = build_parser("train", words)
        options = parser.instantiate(parser.parse_args(words)).train.as_dict()
        check_run(TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)}))


# Dockerfile


def test_the_dockerfile_is_sound_and_bakes_in_nothing_secret():
    subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile", DEPLOY / "cuda.Dockerfile"], check=True)
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "ARG BASE=python:3.11-slim" in lines
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 1000"] and lines.index(users[0]) < lines.index('CMD ["seqtex", "--help"]')
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2 and all("-c constraints.txt" in line for line in installs)
    # nvdiffrast's own set-up needs the torch that the first has installed, and no GPU is there to ask
    assert "--no-build-isolation" not in installs[0] and "--no-build-isolation" in installs[1]
    assert any(line.startswith("ARG TORCH_CUDA_ARCH_LIST=") for line in lines)
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert copied == {"schemas", "geometry", "pipeline", "training", "seqtex"} | files
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
        "maxReplicas": {"type": "integer", "minimum": 0},
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
"""Our part of the operator's own definition (ray.io/v1, KubeRay 1.5.1), which no registry package carries."""


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
    assert [group["maxReplicas"] for group in groups(ray_job)[1:]] == [16, 0]  # GPUs when they are asked for


def test_workers_give_out_memory_for_as_many_jobs_as_processors_and_keep_some(ray_job):
    """KubeRay would have Ray give out all of it (controllers/ray/common/pod.go), its own share included."""
    for group in groups(ray_job)[1:]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        given = int(group["rayStartParams"]["memory"])
        assert given <= 0.8 * 2**30 * int(limits["memory"].removesuffix("Gi"))
        assert given >= int(limits["cpu"]) * RunConfig().job_memory_gb * 2**30


def modelled(document: dict, kind: type) -> Any:
    """Return a document as Kubernetes models it: no field is there that it lacks."""
    kubernetes = client.ApiClient()
    found = kubernetes._ApiClient__deserialize(document, kind)
    assert kubernetes.sanitize_for_serialization(found) == document
    return found


def test_the_volume_and_its_shell_are_what_kubernetes_models(ray_job):
    claim, shell = yaml.safe_load_all((DEPLOY / "kubernetes-volume.yaml").read_text())
    assert modelled(claim, client.V1PersistentVolumeClaim).spec.access_modes == ["ReadWriteMany"]
    pod = modelled(shell, client.V1Pod)
    head = groups(ray_job)[0]["template"]["spec"]
    assert shell["spec"]["volumes"] == head["volumes"]
    assert pod.spec.volumes[0].persistent_volume_claim.claim_name == claim["metadata"]["name"]
    assert shell["spec"]["securityContext"] == head["securityContext"]
    assert shell["spec"]["containers"][0]["image"] == head["containers"][0]["image"]
    assert shell["spec"]["containers"][0]["securityContext"] == head["containers"][0]["securityContext"]


def test_its_pods_are_what_kubernetes_models_and_run_confined(ray_job):
    for group in groups(ray_job):
        pod = modelled(group["template"], client.V1PodTemplateSpec)
        assert pod.spec.security_context.run_as_non_root and pod.spec.security_context.run_as_user == 1000
        (container,) = pod.spec.containers
        assert container.security_context.allow_privilege_escalation is False
        assert container.security_context.capabilities.drop == ["ALL"]
        assert container.resources.requests == container.resources.limits
        assert [mount.name for mount in container.volume_mounts] == [volume.name for volume in pod.spec.volumes]
        gpus = container.resources.limits.get("nvidia.com/gpu")
        assert gpus == ("1" if group.get("groupName") == "gpu" else None)
