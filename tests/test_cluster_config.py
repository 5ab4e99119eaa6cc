"""ray_cluster.yaml is what the Ray cluster launcher accepts, and it asks for authentication."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).resolve().parents[1] / "ray_cluster.yaml"


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
