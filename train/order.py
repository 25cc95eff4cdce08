"""Checks that the positions of a grid lie as the picture's do."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sigcam.runtime.errors import ModelError
from sigcam.train.layout import Layout, Value
from sigcam.train.targets import Probe

CELLS = 8
"""Positions that are tried; each costs one picture through the network."""

LEAST_RANK = 0.8
"""Smallest mean share of positions that a change of the own pixels must outdo."""


def check_order(features: fx.GraphModule, values: tuple[Value, ...], example: Tensor) -> None:
    """Refuses values whose grid isn't the picture's, row by row.

    Shapes don't tell in which order tokens are kept: Hiera holds those of one window
    together, so its sequence has the right length and a scrambled grid. So the pixels of
    a few cells are changed, one cell per picture, and the features must change more at
    the cell's own position than at most of the others.

    Grids [B, N, h, w] aren't looked at: convolutions and poolings gave them their shape.

    Args:
        features: images to the branch layer's value.
        values: among the values of `features`.
        example: float32 [B, 3, H, W]; only its shape matters.

    Raises:
        ModelError: a value's positions are in another order; names its layer.
    """
    values = tuple(value for value in values if value.layout.kind != "nchw")
    for shape in {value.layout.shape[1:] for value in values}:
        same = [value for value in values if value.layout.shape[1:] == shape]
        for layer, rank in _ranks(features, same, shape, example).items():
            if rank < LEAST_RANK:
                raise ModelError(
                    f"the positions of the layer {layer!r} must lie as the picture's do, row by "
                    f"row, but they don't change most where the picture does: they are in "
                    f"another order (windows, perhaps) or mixed, so a map of them would be "
                    f"scrambled; name another layer"
                )


def _ranks(
    features: fx.GraphModule, values: list[Value], shape: tuple[int, int], example: Tensor
) -> dict[str, float]:
    """Layer to the mean share of positions that change less than the own one."""
    h, w = shape
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in features.parameters()), torch.device("cpu"))
    images = torch.randn((1, *example.shape[1:]), generator=generator)
    cells = torch.randperm(h * w, generator=generator)[: min(CELLS, h * w)]
    noise = torch.randn(images.shape, generator=generator)
    H, W = images.shape[2:]
    batch = [images]
    for cell in cells.tolist():
        row, column = divmod(cell, w)
        mask = torch.zeros(1, 1, H, W)
        mask[..., row * H // h : (row + 1) * H // h, column * W // w : (column + 1) * W // w] = 1
        batch.append(images + noise * mask)
    probe = Probe(features, {value.node for value in values})
    with torch.no_grad():
        probe.run(torch.cat(batch).to(device))
    return {value.layer: _rank(probe.values[value.node], value.layout, cells) for value in values}


def _rank(value: Tensor, layout: Layout, cells: Tensor) -> float:
    grid = layout.to_grid(value.float().cpu())
    change = (grid[1:] - grid[:1]).square().sum(1).flatten(1)
    own = change.gather(1, cells[:, None])
    # An untrained network may ignore the picture, or where something is in it (LeViT's
    # batch norms begin at zero, and so its attention at the same value everywhere).
    seen = change.amax(1) > 1.01 * change.amin(1)
    if not bool(seen.any()):
        return 1.0
    return float((change < own).sum(1)[seen].float().mean() / (change.shape[1] - 1))
