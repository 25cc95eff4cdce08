"""How many images may wait: many in a burst, fewer while more come than can be run."""

from __future__ import annotations

import random

import pytest

from sigcam.serve.options import ServeOptions
from sigcam.serve.room import Room, room_for
from sigcam.serve.runs import Runs


@pytest.mark.parametrize(
    ("runs", "options", "burst", "lasting"),
    [
        (Runs(2, 1), {}, 40, 12),
        (Runs(1, 8), {}, 40, 16),
        (Runs(4, 8), {}, 160, 64),
        (Runs(2, 1), {"request_images": 50}, 50, 15),
        (Runs(2, 1), {"queue_images": 17}, 17, 5),
        (Runs(1, 8), {"queue_images": 16, "batch_size": 8}, 16, 16),
        (Runs(1, 1), {"queue_images": 1, "request_images": 1}, 1, 1),
    ],
)
def test_the_room_follows_the_runs_unless_it_is_given(runs, options, burst, lasting):
    room = room_for(runs, ServeOptions(**options))
    assert room.most == burst
    assert room.take(burst)
    assert not room.take(1)
    assert room.most == lasting


def test_it_is_long_again_when_it_was_worked_off():
    room = Room(10, 4)
    assert room.take(10)
    assert not room.take(1)
    for left in range(9, 2, -1):
        room.give_back(1)
        assert room.images == left
        assert room.take(1) == (left < 4)
        if left < 4:
            room.give_back(1)
    room.give_back(1)
    assert (room.images, room.most) == (2, 10)


def test_a_large_request_that_does_not_fit_says_nothing_of_the_queue():
    room = Room(10, 4)
    assert room.take(5)
    assert not room.take(6)
    assert (room.images, room.most) == (5, 10)
    assert room.take(5)


@pytest.mark.parametrize("lasting", [1, 3, 9, 20])
def test_whatever_comes_it_is_bounded_and_opens_again(lasting):
    draw = random.Random(lasting)
    room, inside = Room(9, lasting), []
    for _ in range(5000):
        images = draw.randint(1, 5)
        if draw.random() < 0.5 and inside:
            room.give_back(inside.pop(draw.randrange(len(inside))))
        elif room.take(images):
            inside.append(images)
        assert room.images == sum(inside) <= 9
    while inside:
        room.give_back(inside.pop())
    assert (room.images, room.most) == (0, 9)
