"""Loads classifiers: by name (torchvision's, timm's, the paper's, ...), the user's, ONNX files."""

from __future__ import annotations

from sigcam.classifier.zoo.base import LoadedModel as LoadedModel
from sigcam.classifier.zoo.efficientnet_lite import EFFICIENTNET_LITE0 as EFFICIENTNET_LITE0
from sigcam.classifier.zoo.load import load_model as load_model
from sigcam.classifier.zoo.load import takes_num_classes as takes_num_classes
from sigcam.classifier.zoo.load import weights_file as weights_file
