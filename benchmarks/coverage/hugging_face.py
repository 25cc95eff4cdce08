"""Small configurations of transformers' families, made on the spot.

A name is "hf: FAMILY (small configuration)". The folder that `save_pretrained` writes is loaded
as a user's would be, so its weights file and its image processor are part of what is tried.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from sigcam.classifier.zoo import load_model
from sigcam.classifier.zoo.base import LoadedModel

_NAME = re.compile(r"hf: (\w+) \(small configuration\)")

_VIT = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96,
    "image_size": 64, "patch_size": 8,
}  # fmt: skip
_SWIN = {
    "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2],
    "window_size": 4,
}  # fmt: skip
_CONV = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4}
_PYRAMID = {
    "image_size": 64, "depths": [1] * 4, "hidden_sizes": [16, 24, 32, 48],
    "num_attention_heads": [1, 2, 2, 4],
}  # fmt: skip
_VISION = {"vision_config": {**_VIT}}

FAMILIES: dict[str, dict[str, Any]] = {
    "ViT": _VIT,
    "DeiT": _VIT,
    "Beit": {**_VIT, "use_relative_position_bias": True},
    "Data2VecVision": {**_VIT, "use_relative_position_bias": True},
    "Dinov2": {**_VIT, "mlp_ratio": 2},
    "Dinov2WithRegisters": {**_VIT, "mlp_ratio": 2},
    "IJepa": _VIT,
    "ViTMSN": _VIT,
    "CLIP": _VISION,
    "Siglip": _VISION,
    "Swin": _SWIN,
    "Swinv2": _SWIN,
    "DonutSwin": _SWIN,
    "Hiera": {
        "image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 2, 2], "masked_unit_size": [8, 8],
    },
    "FocalNet": {
        "image_size": 64, "embed_dim": 16, "hidden_sizes": [32, 64, 128, 128], "depths": [1] * 4,
    },
    "Pvt": {**_PYRAMID, "sequence_reduction_ratios": [4, 2, 1, 1]},
    "PvtV2": {**_PYRAMID, "image_size": [64, 64], "sr_ratios": [4, 2, 1, 1]},
    "Segformer": {**_PYRAMID, "sr_ratios": [4, 2, 1, 1]},
    "PoolFormer": {"depths": [1] * 4, "hidden_sizes": [16, 24, 32, 48]},
    "SwiftFormer": {"image_size": 64, "depths": [1] * 4, "embed_dims": [16, 24, 32, 48]},
    # An error of theirs: stage s needs more than s blocks.
    "Cvt": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "Levit": {"image_size": 128, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4],
              "depths": [1, 1, 1]},
    "MobileViT": {
        "image_size": 64, "hidden_sizes": [16, 20, 24], "num_attention_heads": 2,
        "neck_hidden_sizes": [8, 8, 16, 16, 20, 24, 32],
    },
    "MobileViTV2": {
        "image_size": 64, "width_multiplier": 0.5, "n_attn_blocks": [1, 1, 1],
    },
    "ResNet": {**_CONV, "layer_type": "basic"},
    "Bit": {**_CONV, "num_groups": 8},
    "RegNet": {**_CONV, "groups_width": 8},
    "ConvNext": {"hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4},
    "ConvNextV2": {"hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4},
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 64},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 64},
    "EfficientNet": {
        "image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320,
    },
    "HGNetV2": {
        "embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 32, 48, 64], "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [32, 48, 64, 96], "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "PPLCNet": {"scale": 0.25},
    "TextNet": {"image_size": [64, 64]},
}  # fmt: skip
"""Names of classes of transformers without "Config", and what isn't their default."""

_SIDE = 64


def name_of(family: str) -> str:
    """Returns the name of a family's row."""
    return f"hf: {family} (small configuration)"


def is_hugging_face(name: str) -> bool:
    """Returns whether a name is of a small configuration of transformers."""
    return _NAME.fullmatch(name) is not None


def load(name: str) -> LoadedModel:
    """Saves a fresh network in a temporary folder and loads it as "hf/" and that folder.

    Args:
        name: as `name_of` gives it.
    """
    import transformers

    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a small configuration")
    family, given = found[1], FAMILIES[found[1]]
    config = getattr(transformers, f"{family}Config")(**given, num_labels=10)
    config.architectures = [f"{family}ForImageClassification"]
    side = config.image_size if hasattr(config, "image_size") else _SIDE
    side = side if isinstance(side, int) else side[0]
    # Some have image_size as an unused default.
    side = side if "image_size" in given or "vision_config" in given else _SIDE
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
        _widen(model)
        model.save_pretrained(folder)
        transformers.ViTImageProcessor(
            size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.25] * 3
        ).save_pretrained(folder)
        return load_model(f"hf/{Path(folder)}")


def _widen(model: torch.nn.Module) -> None:
    """Adds noise of a usual size: fresh parameters of narrow layers are next to nothing."""
    with torch.no_grad():
        for value in model.parameters():
            width = value[0].numel() if value.ndim > 1 else 100
            value.add_(torch.randn(value.shape) * width**-0.5)
