"""Mosaics: how they are put together, and whole evaluations on a backend."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.core.errors import DataError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.data import Place, Sample, open_dataset
from sigcam.evaluate import EvaluateOptions, MosaicOptions, evaluate_mosaics
from sigcam.evaluate.localization.grid_pointing import tile_shares
from sigcam.evaluate.mosaics import Mosaic, make_mosaics, mosaic_input
from sigcam.evaluate.results import store
from sigcam.evaluate.results.metrics import results
from sigcam.runtime.session import load

pytest.importorskip("onnxruntime")
# The fourth class is yellow.
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.6, 0]], np.float32)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "warm": (255, 255, 0)}


def samples_of(counts):
    """Samples by the number of images of each class."""
    place = Place(Path("labels.csv"))
    return [
        Sample(f"{label}-{i}", Path(f"{label}-{i}"), place, label)
        for label, count in enumerate(counts)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Six images of each class, of one colour with some noise, in a folder for each class."""
    folder, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(5)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(6):
            height, width = (int(size) for size in rng.integers(50, 120, 2))
            image = rng.integers(0, 40, (height, width, 3), np.uint8) // 2
            image += (0.8 * np.array(colour)).astype(np.uint8)
            assert cv2.imwrite(str(folder / name / f"{index}.png"), image[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def make(artifact):
    """A function to the path of an artifact of these four classes."""
    return partial(artifact, weights=WEIGHTS)


def options(**changes):
    return EvaluateOptions(**{"backend": "ort", "batch_size": 2, "workers": 2, **changes})


def value(found, key="grid_pointing"):
    results_of = results(found.records, 0.2, resamples=20)
    return {one.metric.key: one.artifacts[0].metric.value for one in results_of}[key]


def test_every_image_is_in_one_mosaic_at_most_and_classes_differ():
    counts = [5, 9, 4, 4, 7, 3]
    samples = samples_of(counts)
    made = make_mosaics(samples, MosaicOptions(side=2))
    used = [tile.name for mosaic in made for tile in mosaic.tiles]
    assert len(set(used)) == len(used)
    assert all(len({tile.label for tile in mosaic.tiles}) == 4 for mosaic in made)
    # A mosaic takes at most one image of a class.
    most = max(m for m in range(32) if sum(min(count, m) for count in counts) >= 4 * m)
    assert len(made) == most


def test_as_many_as_the_largest_class_allows():
    # Four classes, and each mosaic needs all of them.
    assert len(make_mosaics(samples_of([9, 9, 9, 2]), MosaicOptions(side=2))) == 2


def test_the_seed_decides_and_the_count_limits():
    samples = samples_of([4] * 8)
    one, same, other = (
        [mosaic.name for mosaic in make_mosaics(samples, MosaicOptions(seed=seed, count=3))]
        for seed in (1, 1, 2)
    )
    assert one == same != other
    assert len(one) == 3


def test_places_are_drawn_too():
    """The fullest class isn't always in the same tile."""
    made = make_mosaics(samples_of([30, 10, 10, 10, 10]), MosaicOptions(seed=0))
    assert len({[t.label for t in mosaic.tiles].index(0) for mosaic in made}) == 4


def test_fewer_classes_than_tiles():
    with pytest.raises(DataError, match="2 x 2 needs images of 4 classes, got 3"):
        make_mosaics(samples_of([9, 9, 9]), MosaicOptions(side=2))


@pytest.mark.parametrize("changes", [{"side": 1}, {"side": 9}, {"count": 0}, {"min_right": 1.5}])
def test_options_out_of_range(changes):
    with pytest.raises(UsageError):
        MosaicOptions(**changes)


@pytest.mark.parametrize("rule", ["stretch", "crop", "letterbox"])
def test_tiles_are_read_by_the_resize_rule_at_their_size(coloured, rule):
    tiles = tuple(open_dataset(coloured).samples[i] for i in (0, 6, 12, 18))
    resize = 64 if rule == "crop" else None
    preprocessing = Preprocessing(57, 56, rule, resize=resize)
    made = mosaic_input(Mosaic("m", tiles[0].path, tiles[0].place, tiles=tiles), preprocessing)
    assert made.shape == (57, 56, 3)
    centres = made[[14, 14, 43, 43], [14, 42, 14, 42]].astype(int)
    strongest = {
        sample.path.parent.name: centre for sample, centre in zip(tiles, centres, strict=True)
    }
    for name, pixel in strongest.items():
        assert ((pixel > 128) == (np.array(COLOURS[name]) > 128)).all(), name


def test_shares_are_those_of_a_sessions_cams(make, coloured, tmp_path):
    path = make()
    found = evaluate_mosaics(
        [path], open_dataset(coloured), tmp_path / "out", MosaicOptions(), options()
    )
    shares = []
    with load(path, backend="ort") as session:
        for mosaic in found.dataset.samples:
            image = mosaic_input(mosaic, session.spec.preprocessing)
            explained = session.explain(image, classes=[tile.label for tile in mosaic.tiles])
            shares += [tile_shares(one.cam, i, 2)[0] for i, one in enumerate(explained)]
    assert len(shares) == 4 * len(found.dataset) == 24
    assert value(found) == pytest.approx(100 * np.mean(shares), abs=1e-4)
    assert 25 < value(found) < value(found, "grid_pointing_best")
    assert "24 of 24 images are classified right" in found.dataset.notes[-1]
    assert len(found.gallery.best) == len(found.gallery.worst) == 3


def test_an_interrupted_run_goes_on(make, coloured, tmp_path, monkeypatch):
    path, dataset, out = make(), open_dataset(coloured), tmp_path / "out"
    whole = evaluate_mosaics([path], dataset, tmp_path / "whole", None, options())
    monkeypatch.setattr(store, "_WRITTEN_AT_ONCE", 2)

    def stop(done, total):
        if 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_mosaics([path], dataset, out, None, options(), progress=stop)
    found = evaluate_mosaics([path], dataset, out, None, options())
    assert found.resumed == 2
    for one, other in zip(found.records, whole.records, strict=True):
        np.testing.assert_array_equal(one["grid"], other["grid"])
    with pytest.raises(UsageError, match="other"):
        evaluate_mosaics([path], dataset, out, MosaicOptions(seed=4), options())


def test_images_that_are_classified_wrong_are_left_out(make, coloured, tmp_path):
    wrong = tmp_path / "wrong"
    for name in COLOURS:
        (wrong / name).mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(sorted((coloured / name).iterdir())):
            # Two of the red images are among the green ones.
            goal = "green" if name == "red" and index < 2 else name
            (wrong / goal).mkdir(exist_ok=True)
            (wrong / goal / f"{name}{file.name}").write_bytes(file.read_bytes())
    dataset = open_dataset(wrong)
    found = evaluate_mosaics([make()], dataset, tmp_path / "a", None, options())
    assert "22 of 24 images" in found.dataset.notes[-1]
    assert len(found.dataset) == 4
    with pytest.raises(DataError, match=r"22 of 24 .* share of 0.95.*--min-right"):
        evaluate_mosaics(
            [make()],
            dataset,
            tmp_path / "b",
            MosaicOptions(min_right=0.95),
            options(),
        )


def test_images_that_cant_be_read(make, coloured, tmp_path):
    broken = tmp_path / "broken"
    for name in COLOURS:
        (broken / name).mkdir(parents=True)
        for file in (coloured / name).iterdir():
            content = file.read_bytes()
            short = name == "blue" and file.name == "0.png"
            (broken / name / file.name).write_bytes(
                content[: len(content) // 2] if short else content
            )
    dataset = open_dataset(broken)
    with pytest.raises(DataError, match="can't be read"):
        evaluate_mosaics([make()], dataset, tmp_path / "a", None, options())
    found = evaluate_mosaics([make()], dataset, tmp_path / "b", None, options(skip_bad=True))
    assert len(found.dataset) == 5
    assert any("can't be read" in one.text for one in found.dataset.problems)


def test_an_artifact_that_chooses_its_classes_itself(make, coloured, tmp_path):
    with pytest.raises(UsageError, match="--classes input"):
        evaluate_mosaics(
            [make(mode="top1")],
            open_dataset(coloured),
            tmp_path / "a",
            None,
            options(),
        )


def test_the_command_writes_reports(make, coloured, tmp_path):
    arguments = [
        "evaluate",
        str(make()),
        "--data",
        str(coloured),
        "--backend",
        "ort",
    ]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, [*arguments, "--mosaic", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads((out / "report.json").read_text())["metrics"]
    assert set(found) == {"grid_pointing", "grid_pointing_best"}
    assert "mosaics of 2 x 2" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "wrong",
    [["--mosaics", "3"], ["--min-right", "0.1"], ["--mosaic", "2", "--faithfulness", "road"]],
)
def test_options_that_contradict_each_other(make, coloured, tmp_path, wrong):
    arguments = [
        "evaluate",
        str(make()),
        "--data",
        str(coloured),
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(main, [*arguments, *wrong])
    assert done.exit_code == 2
    assert "leave" in done.output
