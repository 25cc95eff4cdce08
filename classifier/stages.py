"""Finds the last layer of each resolution, which maps of several layers are made of."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from sigcam.classifier.layer_names import name_of
from sigcam.classifier.layout import Layout, Value, layout_of


def last_of_stages(features: fx.GraphModule, target: Value) -> list[str]:
    """Names the last module of each resolution up to a target layer, the finest one first.

    Values that no module returns are left out, and so are those whose resolution isn't a whole
    multiple of the target layer's: windows and paddings look like grids too.

    Args:
        features: images to the branch layer's value.
        target: the target layer that the list ends with.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> convs = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*convs, *head), input_size=16)
        >>> last_of_stages(dual.features, dual.targets[0])
        ['1', '3']
    """
    _, h, w = target.layout.shape
    found: dict[tuple[int, int], str] = {}
    for name, layout in _named_grids(features, target):
        if layout.shape[1] % h == 0 and layout.shape[2] % w == 0:
            found[layout.shape[1:]] = name
    finer = [size for size in found if size > (h, w)]
    return [found[size] for size in sorted(finer, reverse=True)] + [target.layer]


def layers_with_grid(features: fx.GraphModule, target: Value) -> dict[str, tuple[int, int, int]]:
    """Lists the layers up to a target layer that hold a grid, which maps could be made of.

    Args:
        features: images to the branch layer's value.
        target: the target layer that the list ends with.

    Returns:
        Name to (N, h, w), in the order of the forward pass, without what has the image's own
        shape: its preprocessing. Whether the grid lies as the image does is found out when the
        layer is named.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> convs = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
        >>> dual = DualBranch(nn.Sequential(*convs, *head), input_size=16)
        >>> layers_with_grid(dual.features, dual.targets[0])
        {'0': (4, 8, 8), '1': (4, 8, 8), '2': (6, 4, 4), '3': (6, 4, 4)}
    """
    image = next(iter(features.graph.nodes))
    own = tuple(image.meta["val"].shape[1:])
    return {
        name: layout.shape
        for name, layout in _named_grids(features, target)
        if layout.value_shape not in (own, (*own[1:], own[0]))
    }


def _named_grids(features: fx.GraphModule, target: Value) -> Iterator[tuple[str, Layout]]:
    """Yields the values up to a target layer that hold a grid and that a module returns."""
    image = next(iter(features.graph.nodes))
    for node in features.graph.nodes:
        layout, is_target = layout_of(node, image), node.name == target.node
        if layout is not None:
            name = target.layer if is_target else name_of(features.graph, node)
            if is_target or ":" not in name:
                yield name, layout
        if is_target:
            return
