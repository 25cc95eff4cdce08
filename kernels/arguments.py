"""The kernels' arguments, laid out like the structures of the same names in arguments.cuh."""

from __future__ import annotations

import ctypes


class Axis(ctypes.Structure):
    """How one axis of the heatmap lies over the CAM.

    Pixel i of the heatmap is at `scale * i + offset` in the CAM, where 0 is the centre of the
    first cell; pixels outside [low, high) are outside the crop box, where the heatmap is 0.

    Example:
        >>> axis = Axis(size=14, low=2, high=12, cells=5, scale=0.5, offset=-1.25)
        >>> axis.scale * axis.low + axis.offset  # pixel 2 lies before the centre of the first cell
        -0.25
    """

    _fields_ = (
        ("size", ctypes.c_int),
        ("low", ctypes.c_int),
        ("high", ctypes.c_int),
        ("cells", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("offset", ctypes.c_float),
    )

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)}" for name, *_ in self._fields_)
        return f"Axis({values})"


def whole(size: int, cells: int) -> Axis:
    """Returns the axis of a heatmap that shows the CAM's whole extent.

    Args:
        size: pixels of the heatmap along the axis.
        cells: cells of the CAM along it.

    Example:
        >>> whole(14, 7)
        Axis(size=14, low=0, high=14, cells=7, scale=0.5, offset=-0.25)
    """
    return Axis(size, 0, size, cells, cells / size, 0.5 * cells / size - 0.5)


class Place(ctypes.Structure):
    """Where an image's heatmaps lie: over the CAM, and in the memory of the whole batch.

    Attributes:
        rows, columns: how they lie over the CAM along the height and along the width.
        start: the number of pixels before the image's first one.

    Example:
        >>> place = Place(whole(480, 7), whole(640, 7), start=2 * 224 * 224)
        >>> place.rows.size, place.columns.size, place.start
        (480, 640, 100352)
    """

    _fields_ = (("rows", Axis), ("columns", Axis), ("start", ctypes.c_longlong))


class CombineArguments(ctypes.Structure):
    """The argument of the kernels `combine*`; the source says what the fields mean."""

    _fields_ = (
        ("features", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("cams", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
        ("arrived", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("channels", ctypes.c_int),
        ("positions", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("tile_classes", ctypes.c_int),
        ("group", ctypes.c_int),
        ("units", ctypes.c_int),
        ("tile_units", ctypes.c_int),
        ("lanes", ctypes.c_int),
        ("chunk_groups", ctypes.c_int),
        ("chunks", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("clamp", ctypes.c_int),
        ("keep_sign", ctypes.c_int),
        ("bilinear", ctypes.c_int),
        ("place", Place),
    )


class HeatmapArguments(ctypes.Structure):
    """The argument of the kernels `extremes_*` and `enlarge_*`."""

    _fields_ = (
        ("cams", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("arrived", ctypes.c_void_p),
        ("heatmaps", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("classes", ctypes.c_int),
        ("strip", ctypes.c_int),
        ("aligned", ctypes.c_int),
        ("place", Place),
    )


MOST_CHANNELS = 16
"""Most channels of an image; MOST_CHANNELS of the source."""


class InputAxis(ctypes.Structure):
    """How one axis of a network's input lies in an image.

    From the image's pixel `start` on, `cells` cells of `factor` pixels are averaged. The input's
    pixels [first, first + shown) of `length` show the cells, the others are border.

    Example:
        >>> axis = InputAxis(start=8, factor=2, cells=300, first=0, shown=224, length=224)
        >>> axis.start + axis.cells * axis.factor  # the first image pixel that isn't read
        608
    """

    _fields_ = (
        ("start", ctypes.c_int),
        ("factor", ctypes.c_int),
        ("cells", ctypes.c_int),
        ("first", ctypes.c_int),
        ("shown", ctypes.c_int),
        ("length", ctypes.c_int),
    )


class PrepareArguments(ctypes.Structure):
    """The argument of the kernels `prepare_*`; the source says what the fields mean."""

    _fields_ = (
        ("images", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("image", ctypes.c_longlong),
        ("row", ctypes.c_longlong),
        ("column", ctypes.c_longlong),
        ("channel", ctypes.c_longlong),
        ("rows", InputAxis),
        ("columns", InputAxis),
        ("channels", ctypes.c_int),
        ("halves_up", ctypes.c_int),
        ("share", ctypes.c_float),
        ("border", ctypes.c_float * MOST_CHANNELS),
        ("scale", ctypes.c_float * MOST_CHANNELS),
        ("shift", ctypes.c_float * MOST_CHANNELS),
    )
