"""Who may ask, and what every answer says to browsers."""

from __future__ import annotations

import pytest

from tests.serve.requests import INFER, body, encoded, reason

TOKEN = "s3cret-Token"


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}",
     TOKEN, f"Bearer {TOKEN.upper()}", "Bearer é"],
)  # fmt: skip
def test_without_the_token(serve, artifact, given):
    client = serve(f"tiny={artifact}", token=TOKEN)
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for path in ("/v2", "/v2/models/tiny", "/v2/repository/index", "/nothing", "/v2/models/none"):
        response = client.get(path, headers=headers)
        assert "bearer token" in reason(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in response.text
    assert reason(client.post(INFER, content=b"", headers=headers), 401)


def test_with_the_token_and_for_probes_without(serve, artifact, png):
    client = serve(f"tiny={artifact}", token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert client.get("/v2", headers=headers).status_code == 200
        assert client.post(INFER, json=body(encoded(png)), headers=headers).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200


def test_pages_of_other_origins(client, serve, artifact):
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"):
        headers = {"Origin": f"http://{host}", "Host": host}
        assert client.get("/v2", headers=headers).status_code == 200
    # A name may have come to mean 127.0.0.1 after its owner's page was loaded.
    for host in ("evil.example:8000", "testserver", "localhost.evil.example", "127.0.0.1.x", ""):
        headers = {"Origin": f"http://{host}", "Host": host}
        reason(client.get("/v2", headers=headers), 403)
    own = {"Origin": "http://testserver", "Authorization": f"Bearer {TOKEN}"}
    assert serve(f"tiny={artifact}", token=TOKEN).get("/v2", headers=own).status_code == 200
    for origin in ("https://evil.example", "null", "http://testserver:81", "http://["):
        response = client.get("/v2", headers={"Origin": origin})
        assert "other origins" in reason(response, 403)
        assert "access-control-allow-origin" not in response.headers


def test_pages_that_may_ask(serve, artifact):
    page = "https://page.example"
    client = serve(f"tiny={artifact}", origins=[page], token=TOKEN)
    asked = {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,inference-header-content-length",
    }
    preflight = client.options(INFER, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == page
    headers = {"Origin": page, "Authorization": f"Bearer {TOKEN}"}
    response = client.get("/v2", headers=headers)
    assert response.headers["access-control-allow-origin"] == page
    assert client.get("/v2", headers={**headers, "Origin": "https://b.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/v2", "/nothing", "/v2/models/none"])
def test_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
