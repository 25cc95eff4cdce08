"""The page in a real browser: prediction, maps, models, errors, keyboard, and its policy."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

import sigcam
from sigcam.core.spec import ClassSelection
from tests.serve.chromium import chromium, needs_chromium  # noqa: F401 (a fixture)
from tests.support.live_server import live_server

pytestmark = [needs_chromium, pytest.mark.slow]

READY = "document.querySelector('#result')?.getAttribute('aria-busy') === 'false'"
SHOWN = "document.querySelector('#shown').src.startsWith('blob:') && " + READY


@pytest.fixture(scope="module")
def server(artifact, make_artifact):
    one = make_artifact(classes=ClassSelection("topk", 2))
    with live_server(f"all={artifact}", f"two={one}") as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory, png):
    path = tmp_path_factory.mktemp("images") / "cat <b>1<b>.png"
    path.write_bytes(png)
    return path


@pytest.fixture
def page(chromium, server):  # noqa: F811
    chromium.events.clear()
    chromium.open(server.url + "/")
    chromium.wait("document.querySelector('#model').options.length === 2")
    return chromium


def pixels(page):
    """The image that the page shows, RGB."""
    code = """(() => {
      const image = document.querySelector('#shown');
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      canvas.getContext('2d').drawImage(image, 0, 0);
      return canvas.toDataURL('image/png').split(',')[1];
    })()"""
    page.wait("document.querySelector('#shown').complete")
    data = np.frombuffer(base64.b64decode(page.evaluate(code)), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]


def choose(page, name, value):
    page.evaluate(f"document.querySelector('input[name={name}][value=\"{value}\"]').click()")
    page.wait(READY)


def labels(page):
    return page.evaluate(
        "[...document.querySelectorAll('#classes label')].map(one => one.innerText)"
    )


def test_an_image_gives_predictions_and_the_map_of_each(page, file, artifact):
    page.give("#file", file)
    page.wait(SHOWN)
    with sigcam.load(artifact, "ort") as session:
        wanted = session.explain(file, top_k=4)
    assert [one.split("\n")[0] for one in labels(page)] == [one.label for one in wanted]
    assert f"{100 * wanted[0].probability:.1f} %" in labels(page)[0]
    assert f"evidence {wanted[0].evidence:.3f}" in labels(page)[0]
    for rank, one in enumerate(wanted, 1):
        choose(page, "class", rank)
        assert np.array_equal(pixels(page), one.overlay())
        caption = page.evaluate("document.querySelector('#caption').textContent")
        assert caption == f"Evidence map of {one.label} over {file.name}"
        assert page.evaluate("document.querySelector('#shown').alt") == caption
    choose(page, "view", "heatmap")
    assert np.abs(pixels(page)[:, :, 0] - np.rint(255 * wanted[3].heatmap)).max() <= 1
    choose(page, "view", "image")
    assert np.array_equal(pixels(page), one.image)
    assert not page.evaluate("document.querySelectorAll('#caption b').length")  # text, not HTML


def test_another_model_is_asked_with_what_it_can_give(page, file):
    page.give("#file", file)
    page.wait(SHOWN)
    page.evaluate(
        "const one = document.querySelector('#model'); one.value = 'two';"
        "one.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.wait("document.querySelectorAll('#classes label').length === 2 && " + READY)
    choose(page, "class", 2)
    assert "two" in page.evaluate("document.querySelector('#model').value")
    assert page.evaluate("document.querySelector('#error').hidden")


def test_a_quick_second_image_is_the_one_that_is_shown(page, file, tmp_path, image, artifact):
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), np.ascontiguousarray(image[::-1, ::-1]))
    for one in (file, other, file, other):
        page.give("#file", one)
    page.wait(f"{SHOWN} && document.querySelector('#shown').alt.includes('other.png')")
    with sigcam.load(artifact, "ort") as session:
        (wanted,) = session.explain(other)
    assert np.array_equal(pixels(page), wanted.overlay())
    assert labels(page)[0].split("\n")[0] == wanted.label


def test_errors_are_shown_and_the_next_image_works(page, file, tmp_path):
    damaged = tmp_path / "half.png"
    damaged.write_bytes(file.read_bytes()[:500])
    page.give("#file", damaged)
    text = page.wait("document.querySelector('#error').innerText")
    assert "image 0" in text
    role = page.evaluate("document.querySelector('#error').getAttribute('role')")
    assert role == "alert"
    page.give("#file", file)
    page.wait(SHOWN)
    assert page.evaluate("document.querySelector('#error').hidden")


def test_a_file_that_is_dropped_is_taken(page, file):
    data = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(
        "const bytes = Uint8Array.from(atob('" + data + "'), one => one.charCodeAt(0));"
        "const carried = new DataTransfer();"
        "carried.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));"
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{dataTransfer: carried, bubbles: true, cancelable: true})); 1"
    )
    page.wait(SHOWN)
    assert "dropped.png" in page.evaluate("document.querySelector('#caption').textContent")
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{dataTransfer: new DataTransfer(), bubbles: true, cancelable: true})); 1"
    )
    assert "is no file" in page.wait("document.querySelector('#error').innerText")


def test_the_keyboard_reaches_everything(page, file):
    page.give("#file", file)
    page.wait(SHOWN)
    page.evaluate("document.querySelector('#model').focus()")
    reached = []
    for _ in range(4):
        page.press("Tab", 9)
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert reached[:3] == ["file", "class", "view"]
    page.evaluate("document.querySelector('input[name=class]').focus()")
    before = page.evaluate("document.querySelector('#shown').alt")
    page.press("ArrowDown", 40)
    page.wait(f"document.querySelector('#shown').alt !== {before!r} && " + READY)
    assert page.evaluate("document.querySelector('input[name=class]:checked').value") == "2"


def test_a_screen_reader_finds_names_for_everything(page, file):
    page.give("#file", file)
    page.wait(SHOWN)
    nodes = [one for one in page.send("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
    found = {}
    for one in nodes:
        role = one["role"]["value"]
        found.setdefault(role, []).append(one.get("name", {}).get("value", ""))
    controls = [role for role in ("combobox", "button", "radio", "image", "group") if role in found]
    assert {"combobox", "radio", "image", "group"} <= set(controls)
    for role in controls:
        assert all(found[role]), (role, found[role])
    assert "Model" in found["combobox"]
    assert any("Evidence map of" in name for name in found["image"])
    assert {"main", "heading", "status"} <= set(found)
    assert page.evaluate("document.documentElement.lang") == "en"


def test_nothing_comes_from_elsewhere_and_the_policy_holds(page, server, file):
    page.give("#file", file)
    page.wait(SHOWN)
    addresses = [one["request"]["url"] for one in page.of("Network.requestWillBeSent")]
    assert addresses
    assert all(one.startswith((server.url, "blob:", "data:")) for one in addresses), addresses
    assert page.of("Log.entryAdded") == []
    assert page.of("Runtime.exceptionThrown") == []
    # What the policy forbids isn't done: code in the page, code and images of others.
    page.evaluate(
        "window.broken = []; document.addEventListener('securitypolicyviolation',"
        "event => window.broken.push(event.effectiveDirective)); 1"
    )
    page.evaluate(
        "const made = (tag, values) => document.body.append(Object.assign("
        "document.createElement(tag), values));"
        "made('img', {src: 'http://127.0.0.1:9/a.png'});"
        "made('iframe', {src: 'about:srcdoc'});"
        "const inline = document.createElement('style'); inline.textContent = 'body {color: red}';"
        "document.head.append(inline);"
        "fetch('http://127.0.0.1:9/').catch(() => 0); 1"
    )
    page.wait("window.broken.length >= 3")
    broken = set(page.evaluate("window.broken"))
    assert {"img-src", "style-src-elem", "connect-src"} <= broken
    scripts = page.send(
        "Runtime.evaluate",
        expression="document.createElement('script').textContent = 'window.ran = 1'",
    )
    assert "exceptionDetails" in scripts  # trusted types: texts don't become scripts


def test_a_server_with_a_token_asks_for_it(chromium, artifact, file, tmp_path):  # noqa: F811
    (tmp_path / "token").write_text("open-sesame")
    options = ["--token-file", str(tmp_path / "token")]
    with live_server(f"all={artifact}", *options) as server:
        chromium.open(server.url + "/")
        chromium.wait("!document.querySelector('#token-field').hidden")
        assert "bearer token" in chromium.wait("document.querySelector('#error').innerText")
        chromium.evaluate(
            "const one = document.querySelector('#token'); one.value = 'open-sesame';"
            "one.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        chromium.wait("document.querySelector('#model').options.length === 1")
        chromium.give("#file", file)
        chromium.wait(SHOWN)
