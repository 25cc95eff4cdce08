"""Classifiers by name: torchvision's, timm's, the paper's, EfficientNet-Lite, the user's own."""

from __future__ import annotations

from sigcam.train.models.base import LoadedModel as LoadedModel
from sigcam.train.models.lite import EFFICIENTNET_LITE0 as EFFICIENTNET_LITE0
from sigcam.train.models.load import load_model as load_model
from sigcam.train.models.load import takes_num_classes as takes_num_classes
