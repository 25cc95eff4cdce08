"""The model of Triton's Python backend: encoded images in, prediction and maps out.

`model.py` in a repository imports `TritonPythonModel` from here, so that what runs is the
installed sigcam. It isn't imported anywhere else: `triton_python_backend_utils` exists inside of
Triton only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from sigcam.core.errors import ArtifactError
from sigcam.repositories.answers import Answers
from sigcam.repositories.models import copied_file
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel
from sigcam.serve.inputs import CLASS_IDS, ENCODED
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import (
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Answers what Triton's scheduler has put together, as `sigcam serve` answers it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model that lies beside model.py.

        Args:
            args: of Triton: the folder, the version and the configuration, as texts.

        Raises:
            SigcamError: as `sigcam.load`; and where this Triton doesn't know NumPy 2.
        """
        _check_numpy()
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        backend = config["parameters"]["backend"]["string_value"]
        batch = int(config["max_batch_size"])
        device = int(args.get("model_instance_device_id") or 0)
        on_gpu = args.get("model_instance_kind") == "GPU"
        options = BackendOptions(device=device if on_gpu else 0, batch_size=batch)
        self._model = ExportedModel.open(copied_file(folder), backend, options)
        limits = ServeOptions(batch_size=batch, queue_images=2 * batch, request_images=batch)
        self._answers = Answers(self._model, args["model_name"], limits, by_json=False)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers requests.

        Args:
            requests: Triton's.

        Returns:
            As many answers, each with its outputs or an error.
        """
        read = [_request(one) for one in requests]
        return [_response(one) for one in self._answers.to(read)]

    def finalize(self) -> None:
        """Frees the model."""
        self._model.close()


def _check_numpy(program: Path = Path("/proc/self/exe")) -> None:
    """Refuses a Triton whose Python backend was built for NumPy 1.

    It takes arrays of NumPy 2 for empty ones, without a word (seen in 2.51). The library that it
    is built with looks NumPy 2 up under the name numpy._core, so one that knows it holds that.

    Args:
        program: the backend's own, which runs this.

    Raises:
        ArtifactError: it is one.
    """
    if np.__version__.startswith("1.") or b"numpy._core" in program.read_bytes():
        return
    raise ArtifactError(
        f"this Triton's Python backend was built for NumPy 1 and takes arrays of NumPy "
        f"{np.__version__} for empty ones; take a later Triton"
    )


def _request(request: Any) -> InferRequest:
    inputs = []
    for name in (ENCODED, CLASS_IDS):
        tensor = triton.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        array = tensor.as_numpy()
        if name == ENCODED:
            files = [bytes(one) for one in array.ravel()]
            inputs.append(InputTensor(name, "BYTES", array.shape, files))
        else:
            inputs.append(InputTensor(name, "INT64", array.shape, array))
    outputs = tuple(RequestedOutput(name, True) for name in request.requested_output_names())
    parameters = json.loads(request.parameters() or "{}")
    return InferRequest(tuple(inputs), outputs, request.request_id(), parameters, True)


def _response(answer: InferResponse | RequestError) -> Any:
    if isinstance(answer, InferResponse):
        return triton.InferenceResponse([_tensor(one) for one in answer.outputs])
    codes = triton.TritonError
    code = codes.INVALID_ARG if answer.status < 500 else codes.INTERNAL
    return triton.InferenceResponse(error=triton.TritonError(str(answer), code))


def _tensor(output: OutputTensor) -> Any:
    data = output.data
    if isinstance(data, list):
        array = np.empty(len(data), np.object_)
        array[:] = data
        data = array.reshape(output.shape)
    return triton.Tensor(output.name, np.ascontiguousarray(data))
