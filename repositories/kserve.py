"""A repository for KServe: a ServingRuntime that runs `sigcam serve`, and an InferenceService."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sigcam.repositories.models import copy_model
from sigcam.repositories.options import NamedModel, RepositoryOptions
from sigcam.repositories.yaml import to_yaml

__all__ = ["write_kserve"]

_MOUNT = "/mnt/models"
"""Where KServe puts what `storageUri` names."""


def write_kserve(models: list[NamedModel], folder: Path, options: RepositoryOptions) -> None:
    """Writes serving-runtime.yaml, inference-service.yaml, and models/NAME/1/ for each model.

    Args:
        models: artifacts or engines. One InferenceService serves all of them.
        folder: of the repository; it exists.
        options: batches, queue and the container image.

    Example:
        write_kserve([NamedModel("net", Path("net.onnx"))], Path("repository"), RepositoryOptions())
    """
    for one in models:
        copy_model(one, folder / "models" / one.name / "1")
    name = models[0].name.lower().replace("_", "-").replace(".", "-")
    (folder / "serving-runtime.yaml").write_text(to_yaml(_runtime(options)), encoding="utf-8")
    service = to_yaml(_service(name, options))
    (folder / "inference-service.yaml").write_text(service, encoding="utf-8")


def _runtime(options: RepositoryOptions) -> dict[str, Any]:
    container = {
        "name": "kserve-container",
        "image": options.image,
        "args": [
            "serve", _MOUNT, "--host", "0.0.0.0", "--port", "8080",  # noqa: S104 (in a container)
            "--batch-size", str(options.batch_size), "--batch-delay", str(options.batch_delay),
            "--queue-images", str(options.queue_requests),
        ],
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        # Loading counts as not ready, so a rollout waits for it; alive is the process alone.
        "startupProbe": {**_probe("ready"), "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": {**_probe("ready"), "periodSeconds": 5},
        "livenessProbe": {**_probe("live"), "periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {
            "requests": {"cpu": str(options.instances), "memory": "1Gi"},
            "limits": {"cpu": str(options.instances), "memory": "2Gi"},
        },
    }  # fmt: skip
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "sigcam"},
        "spec": {
            "supportedModelFormats": [{"name": "sigcam", "version": "1", "autoSelect": True}],
            "protocolVersions": ["v1", "v2"],
            "multiModel": False,
            "containers": [container],
        },
    }


def _service(name: str, options: RepositoryOptions) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 4,
                # Requests that one replica has at once before KServe starts another one.
                "scaleMetric": "concurrency",
                "scaleTarget": options.batch_size * 2,
                "model": {
                    "modelFormat": {"name": "sigcam"},
                    "protocolVersion": "v2",
                    "runtime": "sigcam",
                    "storageUri": "pvc://models/models",
                },
            }
        },
    }


def _probe(what: str) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{what}", "port": 8080}}
