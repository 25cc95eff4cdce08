"""KServe's first protocol, which TensorFlow Serving began: lists of instances as JSON."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.core.arguments import shown
from sigcam.serve.http.answers import json_response
from sigcam.serve.http.infer import body_of, client_gone
from sigcam.serve.inputs import ENCODED, IMAGE
from sigcam.serve.protocol.datatypes import datatype_of
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import (
    InferRequest,
    InferResponse,
    InputTensor,
    ParameterValue,
    RequestedOutput,
)
from sigcam.serve.protocol.requests import json_object
from sigcam.serve.served import ServedModel
from sigcam.serve.service import Service

__all__ = ["v1_routes"]

_PREDICTION = ("class_id", "label", "probability", "evidence")
_WANTED = (
    'an instance is {"b64": "..."} or {"image": {"b64": "..."}}, with a file of an image as '
    "base64, or the network's own input as lists of numbers"
)


def v1_routes(service: Service) -> list[Route]:
    """Returns the routes.

    Args:
        service: answers.
    """

    async def models(_: Request) -> Response:
        names = dict.fromkeys(one.name for one in service.models.all())
        return json_response({"models": sorted(names)})

    async def model(request: Request) -> Response:
        served = service.models.get(request.path_params["name"])
        selection = served.model.spec.classes
        most = served.model.spec.num_classes if selection.mode == "input" else selection.k
        is_ready = not service.draining
        told = {
            "name": served.name, "ready": is_ready, "version": served.version,
            "takes_classes": selection.mode == "input",
            "most_classes": min(most, service.options.max_classes),
        }  # fmt: skip
        return json_response(told, 200 if is_ready else 503)

    async def ask(
        request: Request, outputs: tuple[str, ...], answer: Callable[[InferResponse], Any]
    ) -> Response:
        with service.admit(request.path_params["name"]) as ticket:
            body = await body_of(service, ticket, request)
            return await service.infer(
                ticket,
                partial(_request, body, ticket.served, outputs),
                lambda response: json_response(answer(response)),
                partial(client_gone, request.receive),
            )

    async def predict(request: Request) -> Response:
        return await ask(request, ("explanations",), _predictions)

    async def explain(request: Request) -> Response:
        return await ask(request, ("explanations", "heatmap_png"), _explanations)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name}:predict", predict, methods=["POST"]),
        Route("/v1/models/{name}:explain", explain, methods=["POST"]),
        Route("/v1/models/{name}", model),
    ]


def _request(body: bytes, served: ServedModel, outputs: tuple[str, ...]) -> InferRequest:
    given = json_object(body)
    for name in given:
        if name not in ("instances", "parameters"):
            raise RequestError(
                f"the request has {shown(name)}, which isn't known here; known are instances and "
                "parameters"
            )
    instances = given.get("instances")
    if not isinstance(instances, list) or not instances:
        raise RequestError('Expected "instances" to be a list of at least one; ' + _WANTED)
    return InferRequest(
        inputs=(_tensor(instances, served),),
        outputs=tuple(RequestedOutput(name, binary=True) for name in outputs),
        parameters=_parameters(given.get("parameters", {})),
    )


def _parameters(given: object) -> Mapping[str, ParameterValue]:
    if not isinstance(given, dict):
        raise RequestError(f'"parameters" must be an object, got {shown(given)}')
    for name, value in given.items():
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int, float)) for one in several):
            raise RequestError(
                f"parameter {shown(name)} must be a text, a number, true or false, or a list"
            )
    return given


def _tensor(instances: list[Any], served: ServedModel) -> InputTensor:
    """Makes one tensor of the instances, which are all files or all arrays."""
    plain = [_without_name(one) for one in instances]
    files = [isinstance(one, dict) for one in plain]
    if all(files):
        data = [_decoded(one, place) for place, one in enumerate(plain)]
        return InputTensor(ENCODED, "BYTES", (len(data),), data)
    if any(files):
        raise RequestError("instances must be all files of images, or all arrays, got both")
    return _array(plain, served)


def _without_name(instance: Any) -> Any:
    """Takes {"image": ...} off an instance."""
    if isinstance(instance, dict) and list(instance) == [IMAGE]:
        return instance[IMAGE]
    return instance


def _decoded(instance: Mapping[str, Any], place: int) -> bytes:
    data = instance.get("b64")
    if len(instance) != 1 or not isinstance(data, str):
        raise RequestError(f"instance {place} can't be read; {_WANTED}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RequestError(f"instance {place} isn't base64: {exc}") from exc


def _array(instances: list[Any], served: ServedModel) -> InputTensor:
    (info,) = (one for one in served.model.backend.inputs if one.name == IMAGE)
    try:
        found = np.array(instances)
    except ValueError as exc:  # rows of different lengths
        raise RequestError(f"instances make no array: {exc}; {_WANTED}") from exc
    if found.dtype.kind not in "if" or (found.dtype.kind == "f" and info.dtype.kind != "f"):
        raise RequestError(
            f"instances must be numbers of the type {info.dtype}, got {found.dtype}; {_WANTED}"
        )
    made = found.astype(info.dtype)
    if info.dtype.kind != "f" and not np.array_equal(made, found):
        raise RequestError(
            f"instances have numbers that {info.dtype} doesn't hold: from {found.min()} to "
            f"{found.max()}"
        )
    return InputTensor(IMAGE, datatype_of(info.dtype), made.shape, made)


def _explained(response: InferResponse) -> list[list[dict[str, Any]]]:
    """Returns what each class of each instance came to."""
    output = response.outputs[0]
    assert isinstance(output.data, list)  # noqa: S101 (it is of bytes)
    each = output.shape[1]
    found = [json.loads(one) for one in output.data]
    return [found[place * each : (place + 1) * each] for place in range(output.shape[0])]


def _predictions(response: InferResponse) -> dict[str, Any]:
    return {
        "predictions": [
            [{name: one[name] for name in _PREDICTION} for one in instance]
            for instance in _explained(response)
        ]
    }


def _explanations(response: InferResponse) -> dict[str, Any]:
    files = response.outputs[1].data
    assert isinstance(files, list)  # noqa: S101 (it is of bytes)
    left = iter(files)
    explained = _explained(response)
    for instance in explained:
        for one in instance:
            one["heatmap_png"] = {"b64": base64.b64encode(next(left)).decode("ascii")}
    return {"explanations": explained}
