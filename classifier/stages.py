"""Finds the last layer of each resolution, which maps of several layers are made of."""

from __future__ import annotations

from torch import fx

from sigcam.classifier.layer_names import name_of
from sigcam.classifier.layout import Value, layout_of


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
    graph = features.graph
    image = next(iter(graph.nodes))
    _, h, w = target.layout.shape
    found: dict[tuple[int, int], str] = {}
    for node in graph.nodes:
        layout = layout_of(node, image)
        if layout is not None and layout.shape[1] % h == 0 and layout.shape[2] % w == 0:
            name = target.layer if node.name == target.node else name_of(graph, node)
            if ":" not in name or node.name == target.node:
                found[layout.shape[1:]] = name
        if node.name == target.node:
            break
    finer = [size for size in found if size > (h, w)]
    return [found[size] for size in sorted(finer, reverse=True)] + [target.layer]


def layers_with_grid(features: fx.GraphModule, target: Value) -> dict[str, tuple[int, int, int]]:
    """Lists the layers up to a target layer that hold a grid, which maps could be made of.

    Args:
        features: images to the branch layer's value.
        target: the target layer that the list ends with.

    Returns:
        Name to (N, h, w), in the order of the forward pass, without what has the image's own
        shape: its preprocessing. Whether the grid lies as the image
        does is found out when the layer is named.

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
    found: dict[str, tuple[int, int, int]] = {}
    for node in features.graph.nodes:
        layout = layout_of(node, image)
        if layout is not None and layout.value_shape not in (own, (*own[1:], own[0])):
            name = target.layer if node.name == target.node else name_of(features.graph, node)
            if ":" not in name or node.name == target.node:
                found[name] = layout.shape
        if node.name == target.node:
            break
    return found
