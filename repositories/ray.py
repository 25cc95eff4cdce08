"""A repository for Ray Serve: an application for each model, on one machine or on many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sigcam.repositories.models import copy_model
from sigcam.repositories.options import NamedModel, RepositoryOptions
from sigcam.repositories.yaml import to_yaml

__all__ = ["write_ray"]

_APP = '''"""The applications of serve.yaml: `serve run serve.yaml` in this folder."""

from pathlib import Path

from sigcam.repositories.ray_model import application

MODELS = Path(__file__).resolve().parent / "models"


def model(arguments):
    """Returns the application of a model; the arguments are those in serve.yaml."""
    name = arguments["name"]
    return application(
        MODELS / name / "1", name, arguments["batch_size"], arguments["batch_delay"]
    )
'''


def write_ray(models: list[NamedModel], folder: Path, options: RepositoryOptions) -> None:
    """Writes app.py, serve.yaml, and models/NAME/1/ for each model.

    Each model is an application under /v2/models/NAME with replicas of its own, which Ray starts
    and ends by the requests that are under way.

    Args:
        models: artifacts or engines.
        folder: of the repository; it exists.
        options: batches and queue; `instances` are the fewest replicas.

    Example:
        write_ray([NamedModel("net", Path("net.onnx"))], Path("repository"), RepositoryOptions())
    """
    for one in models:
        copy_model(one, folder / "models" / one.name / "1")
    (folder / "app.py").write_text(_APP, encoding="utf-8")
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [_application(one.name, options) for one in models],
    }
    (folder / "serve.yaml").write_text(to_yaml(document), encoding="utf-8")


def _application(name: str, options: RepositoryOptions) -> dict[str, Any]:
    batch = options.batch_size
    return {
        "name": name,
        "route_prefix": f"/v2/models/{name}",
        "import_path": "app:model",
        "args": {"name": name, "batch_size": batch, "batch_delay": options.batch_delay},
        "deployments": [
            {
                "name": "Model",
                # One batch runs while the next one comes together; further requests wait in the
                # proxies, and are refused with 503 when so many wait there.
                "max_ongoing_requests": 2 * batch,
                "max_queued_requests": options.queue_requests,
                "autoscaling_config": {
                    "min_replicas": options.instances,
                    "max_replicas": 4 * options.instances,
                    "target_ongoing_requests": batch,
                },
                "ray_actor_options": {"num_cpus": 1},
            }
        ],
    }
