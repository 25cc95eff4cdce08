"""The demo's photographs: those that scikit-image ships, or the user's own."""

from __future__ import annotations

from pathlib import Path

# Name of the file in scikit-image to who made it (scikit-image's own credits).
CREDITS = {
    "chelsea.png": "Chelsea the cat, Stefan van der Walt (CC0)",
    "coffee.png": "Coffee, Rachel Michetti (public domain)",
    "rocket.jpg": "Falcon 9 launch, SpaceX (CC0)",
    "motorcycle_left.png": "Motorcycle, Middlebury stereo data set 2014 (CC0)",
    "astronaut.png": "Eileen Collins, NASA (public domain)",
}


def shipped_images() -> list[Path]:
    """Returns the paths of the photographs inside the installed scikit-image package.

    Example:
        [path.name for path in shipped_images()]  # ["chelsea.png", "coffee.png", ...]
    """
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [folder / name for name in CREDITS if (folder / name).is_file()]
