"""From images of bytes on the device to a network's input: the plan of the kernels `prepare_*`.

Along each axis, whole cells of pixels are averaged and rounded, and what comes of that is resized
bilinearly. Images that lie one after the other and have one size take one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigcam.kernels.arguments import MOST_CHANNELS, InputAxis, PrepareArguments
from sigcam.kernels.plan import THREADS, Launch

MOST_PIXELS = 16384
"""Most pixels of an input's side: places between cells are whole numbers of 32 bits."""


@dataclass(frozen=True)
class Images:
    """Images of one size that lie one after the other, uint8.

    Attributes:
        batch, height, width, channels: their number and sizes.
        planar: whether they are [B, n, H, W] rather than [B, H, W, n].
    """

    batch: int
    height: int
    width: int
    channels: int
    planar: bool = False


@dataclass(frozen=True)
class Values:
    """What the network takes of a pixel, one number for each channel.

    Attributes:
        border: levels from 0 to 255 of the pixels where no image is.
        scale, shift: an input is level * scale + shift, float32 [B, n, H, W]; None for both keeps
            levels, uint8 [B, H, W, n].
    """

    border: tuple[float, ...]
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PreparePlan:
    """The launch that prepares images of one size.

    Attributes:
        launch: the kernel and its grid.
        argument: its argument, but for the addresses.
    """

    launch: Launch
    argument: PrepareArguments

    def arguments(self, images: int, inputs: int) -> PrepareArguments:
        """Returns the argument with its addresses.

        Raises:
            ValueError: `inputs` isn't aligned to what is written there.
        """
        if self.launch.kernel == "prepare_f32" and inputs % 4:
            raise ValueError(f"inputs must be a multiple of 4 bytes, got {inputs:#x}")
        made = PrepareArguments.from_buffer_copy(self.argument)
        made.images, made.inputs = images, inputs
        return made


def plan(images: Images, rows: InputAxis, columns: InputAxis, values: Values) -> PreparePlan:
    """Plans the launch for images of one size.

    Args:
        images: what is given.
        rows: how the input lies in an image along the height.
        columns: along the width.
        values: what is made of a pixel.

    Raises:
        ValueError: no images; an axis that leaves its image or its input, or is too long; too many
            channels, or another number of values than of them.

    Example:
        >>> images = Images(batch=2, height=480, width=640, channels=3)
        >>> rows = InputAxis(start=0, factor=2, cells=240, first=0, shown=224, length=224)
        >>> columns = InputAxis(start=80, factor=2, cells=240, first=0, shown=224, length=224)
        >>> plan(images, rows, columns, Values((0, 0, 0))).launch
        Launch(kernel='prepare_u8', grid=(196, 1, 2), block=256, shared=0)
    """
    if images.batch < 1 or not 1 <= images.channels <= MOST_CHANNELS:
        raise ValueError(
            f"there must be images of 1 to {MOST_CHANNELS} channels, got {images.batch} images of "
            f"{images.channels} channels"
        )
    _check_axis("rows", rows, images.height)
    _check_axis("columns", columns, images.width)
    n = images.channels
    steps = (
        (images.width, 1, images.height * images.width)
        if images.planar
        else (images.width * n, n, 1)
    )
    area = rows.factor * columns.factor
    argument = PrepareArguments(
        image=images.height * images.width * n,
        row=steps[0],
        column=steps[1],
        channel=steps[2],
        rows=rows,
        columns=columns,
        channels=n,
        halves_up=halves_up(rows.factor, columns.factor, n),
        share=1 / area,
    )
    for name in ("border", "scale", "shift"):
        given: Sequence[float] | None = getattr(values, name)
        if given is None:
            continue
        if len(given) != n:
            raise ValueError(f"{name} must have {n} numbers, one a channel, got {len(given)}")
        getattr(argument, name)[:n] = given
    kernel = "prepare_u8" if values.scale is None else "prepare_f32"
    blocks = -(-rows.length * columns.length // THREADS)
    return PreparePlan(Launch(kernel, (blocks, 1, images.batch), THREADS, 0), argument)


def halves_up(rows: int, columns: int, channels: int) -> bool:
    """Says how OpenCV, which prepares images on the CPU, rounds a mean between two levels.

    Its code for cells of 2 x 2 pixels adds before it shifts; all other cells are rounded to the
    even level.

    Args:
        rows: pixels of a cell along the height.
        columns: along the width.
        channels: of the image.

    Example:
        >>> halves_up(2, 2, 3), halves_up(4, 4, 3), halves_up(2, 2, 5)
        (True, False, False)
    """
    return (rows, columns) == (2, 2) and channels in (1, 3, 4)


def _check_axis(name: str, axis: InputAxis, size: int) -> None:
    """Refuses an axis by which a kernel would read or write elsewhere."""
    inside = (
        axis.start >= 0 and axis.factor > 0 and axis.cells > 0
        and axis.start + axis.cells * axis.factor <= size
        and axis.first >= 0 and axis.shown > 0 and axis.first + axis.shown <= axis.length
    )  # fmt: skip
    if not inside:
        values = ", ".join(f"{field}={getattr(axis, field)}" for field, *_ in axis._fields_)
        raise ValueError(f"{name} must lie in an image of {size} pixels, got {values}")
    if axis.length > MOST_PIXELS or axis.cells > 2 * MOST_PIXELS:
        raise ValueError(
            f"{name} of an input may have {MOST_PIXELS} pixels at most, and twice as many cells, "
            f"got {axis.length} and {axis.cells}"
        )
