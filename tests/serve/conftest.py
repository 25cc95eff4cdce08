"""A tiny artifact behind the application, and requests to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from sigcam.serve.http.app import make_app
from sigcam.serve.http.around import make_server_app
from sigcam.serve.observe.metrics import Metrics
from sigcam.serve.options import ServeOptions
from sigcam.serve.repository import Repository
from sigcam.serve.served import BackendChoice
from sigcam.serve.service import Service
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def image():
    """uint8 [90, 120, 3]: red to the left, blue to the right, some noise."""
    made = np.random.default_rng(1).integers(0, 60, (90, 120, 3), dtype=np.uint8)
    made[20:60, 10:60, 0] = 230
    made[20:60, 60:110, 2] = 230
    return made


@pytest.fixture(scope="session")
def png(image):
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


# Whatever machine the tests run on; results of images that are run together differ in their last
# bits from those of each alone.
TOGETHER = {"batch_size": 8, "parallel_runs": 1}


@pytest.fixture
def serve():
    """serve(*sources, options=..., **of the application) -> a client of a running application."""
    services = []

    def start(*sources, options=None, backend="ort", observers=(), **more):
        service = Service(
            Repository([str(one) for one in sources]),
            BackendChoice(backend),
            options or ServeOptions(**TOGETHER),
            observers,
        )
        services.append(service)
        service.models.load_all()
        client = TestClient(make_app(service, **more), raise_server_exceptions=False)
        client.service = service
        return client

    yield start
    for service in services:
        service.close()


@pytest.fixture
def serve_all(serve):
    """serve_all(*sources, **of the application) -> a client of the whole of it, metrics too."""

    def start(*sources, **more):
        app = make_server_app(serve(*sources).service, Metrics(), **more)
        return TestClient(app, raise_server_exceptions=False)

    return start


@pytest.fixture(scope="session")
def artifact(make_artifact):  # noqa: F811
    return make_artifact()


@pytest.fixture
def client(serve, artifact):
    return serve(f"tiny={artifact}")
