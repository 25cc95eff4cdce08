"""Exports an artifact, or the bare classifier that it is compared with."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from sigcam.classifier.build import BuiltClassifier
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.onnx.kept import KeptFront, NotKeptError
from sigcam.classifier.task import names_for
from sigcam.core.annotations import checked
from sigcam.core.artifact import head_path
from sigcam.core.errors import ExportError, UsageError
from sigcam.core.files import check_writable
from sigcam.core.spec import Preprocessing, Source, Spec
from sigcam.core.versions import versions_of
from sigcam.export.kept_front import described, kept_for
from sigcam.export.methods import method_of
from sigcam.export.modules import ArtifactGraph, CamGraph, ClassifierGraph, HeadGraph
from sigcam.export.options import ExportOptions
from sigcam.export.parity.original import check_original
from sigcam.export.parity.run import ParityRun
from sigcam.export.parity.verify import verify, verify_head, verify_logits
from sigcam.export.staging import StagingFolder


@checked
def export_artifact(
    classifier: BuiltClassifier | DualBranch,
    path: str | Path,
    options: ExportOptions | None = None,
) -> Spec:
    """Writes one ONNX file that gives the prediction and the evidence map.

    The graph is compared with PyTorch before anything is written.

    Args:
        classifier: the classifier with its sigmoid branch, as `build_classifier` or
            `train_branch` gives it, or the model alone; it isn't changed.
        path: the file, usually ending in ".onnx". It is written whole or not at all, as is
            the head graph beside it.
        options: what the graph computes and how the file is written; the defaults when None.
            What they leave open about the classifier (preprocessing, class names, what the
            branch was trained on) is taken from it.

    Returns:
        The spec that the file carries, with the parity report.

    Raises:
        UsageError: options that contradict the classifier.
        ModelError: weights that aren't finite.
        ExportError: the graph can't be built from this model.
        ParityError: the graph doesn't compute what PyTorch computes; nothing is written.
        StorageError: a file can't be written.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from sigcam import ExportOptions, export_artifact
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=16)
        >>> options = ExportOptions(method="gradcam", class_names=("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spec = export_artifact(dual, f"{folder}/model.onnx", options)
        >>> spec.method, spec.cam_shape, spec.label(1)
        ('gradcam', (14, 14), 'dog')
    """
    options = completed_options(options or ExportOptions(), classifier)
    preprocessing = preprocessing_of(options, classifier)
    path = Path(path)
    check_writable(path)
    if options.head_graph:
        check_writable(head_path(path))
    if options.external_data:
        check_writable(path.with_name(f"{path.name}.data"))
    dual = dual_of(classifier)
    dual.check_finite(sigmoid=options.has_sigmoid)
    frozen = _on_cpu(dual)
    if method_of(options.method).need not in ("rows", "scores"):  # those take no gradient
        check_original(frozen, preprocessing)
    cams = CamGraph(frozen, options)
    kept, front_note = _kept_front(cams, frozen, options)
    graph = ArtifactGraph(cams, preprocessing, kept)
    spec = _spec(dual, options, preprocessing, graph.head_input, front_note)
    with StagingFolder(path) as staging:
        artifact = staging.export(path, graph, graph.signature, options)
        runnable = artifact.runnable
        report = verify(ParityRun(frozen, options, preprocessing), runnable, graph.output_names)
        spec = dataclasses.replace(spec, parity=report)
        artifact.spec = spec
        if options.head_graph:
            head_graph = HeadGraph(cams, graph.head_input)
            head = staging.export(head_path(path), head_graph, head_graph.signature, options)
            report = verify_head(
                ParityRun(frozen, options, preprocessing),
                runnable,
                head.runnable,
                graph.head_input,
                head_graph.output_names,
            )
            head.spec = dataclasses.replace(spec, kind="head", parity=report)
        staging.publish()
        return artifact.spec


def export_classifier(
    classifier: BuiltClassifier | DualBranch,
    path: str | Path,
    options: ExportOptions | None = None,
) -> None:
    """Writes the network alone, `image` to `logits`, without a map and without a spec.

    It is the baseline of the benchmarks: the same network with the same input handling.

    Args:
        classifier: the classifier, whose backbone and softmax branch are exported; it isn't
            changed.
        path: the file, usually ending in ".onnx". It is written whole or not at all.
        options: the options of the artifact beside it, or the defaults when None. How an
            image becomes the input and how the file is written (`preprocessing`,
            `external_data`, `tolerance`, `opset`) count here; all else is about the map.

    Raises:
        ModelError: weights that aren't finite.
        ExportError: the graph can't be built from this model.
        ParityError: the graph doesn't compute what PyTorch computes; nothing is written.
        StorageError: a file can't be written.
    """
    options = options or ExportOptions()
    preprocessing = preprocessing_of(options, classifier)
    path = Path(path)
    check_writable(path)
    dual = dual_of(classifier)
    dual.check_finite(sigmoid=False)
    frozen = _on_cpu(dual)
    graph = ClassifierGraph(frozen, preprocessing)
    with StagingFolder(path) as staging:
        model = staging.export(path, graph, graph.signature, options)
        verify_logits(frozen, model.runnable, preprocessing, options.tolerance)
        staging.publish()


def dual_of(classifier: BuiltClassifier | DualBranch) -> DualBranch:
    """Returns the model of a classifier, which may be the model itself."""
    return classifier if isinstance(classifier, DualBranch) else classifier.dual


def completed_options(
    options: ExportOptions, classifier: BuiltClassifier | DualBranch
) -> ExportOptions:
    """Fills in what the options leave open about the classifier.

    Raises:
        UsageError: the sigmoid branch is asked for, and the classifier can have none.
    """
    dual = dual_of(classifier)
    if not dual.is_trainable:
        if options.branch == "sigmoid" or options.sigmoid_logits:
            raise UsageError(
                f"nothing with parameters follows the layers {_listed(dual)} alone, so there is no "
                f"sigmoid branch to take the map from; use branch='softmax' or 'centred' (--branch "
                f"softmax), without the sigmoid branch's logits"
            )
        options = dataclasses.replace(options, has_sigmoid=False)
    if isinstance(classifier, DualBranch):
        return options
    return dataclasses.replace(
        options,
        class_names=options.class_names or classifier.class_names,
        trained_on=options.trained_on or classifier.trained_on,
        has_sigmoid=options.has_sigmoid and classifier.has_sigmoid,
    )


def _listed(dual: DualBranch) -> str:
    return " and ".join(target.layer for target in dual.targets)


def preprocessing_of(
    options: ExportOptions, classifier: BuiltClassifier | DualBranch
) -> Preprocessing:
    """Returns the preprocessing: the options', the classifier's own, or ImageNet's.

    Raises:
        ExportError: it is for another input size or number of channels than the model.
    """
    channels = dual_of(classifier).channels
    height, width = dual_of(classifier).input_size
    preprocessing = options.preprocessing
    if preprocessing is None and not isinstance(classifier, DualBranch):
        preprocessing = classifier.preprocessing
    preprocessing = preprocessing or Preprocessing(height, width)
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise ExportError(
            f"the preprocessing must have the size that the model was split for, {height}x{width}, "
            f"got {preprocessing.height}x{preprocessing.width}; make the DualBranch with "
            f"input_size=({preprocessing.height}, {preprocessing.width})"
        )
    if preprocessing.channels != channels:
        raise ExportError(
            f"the preprocessing must have the {channels} channels that the model was split for, "
            f"got a mean and std of {preprocessing.channels}; give {channels} numbers each in "
            "ExportOptions.preprocessing"
        )
    return dataclasses.replace(preprocessing, channel_order=dual_of(classifier).channel_order)


def _on_cpu(dual: DualBranch) -> DualBranch:
    """Returns the model in evaluation mode on the CPU, leaving the caller's as it is."""
    parameter = next(dual.parameters(), None)
    if parameter is None or parameter.device.type == "cpu":
        return dual if not dual.training else copy.deepcopy(dual).eval()
    return copy.deepcopy(dual).cpu().eval()


def _kept_front(
    cams: CamGraph, dual: DualBranch, options: ExportOptions
) -> tuple[KeptFront | None, str | None]:
    """Returns what is kept of the file that the classifier was read from, and says so in words.

    A classifier of another source has neither.
    """
    if dual.file_sha256 is None:
        return None, None
    try:
        kept, opset = kept_for(cams.cut.front, dual.softmax_head.traced, options.opset)
    except NotKeptError as exc:
        return None, (
            f"all of the file's graph was read into PyTorch's operators, and none of it kept: {exc}"
        )
    return kept, described(kept, opset)


def _spec(
    dual: DualBranch,
    options: ExportOptions,
    preprocessing: Preprocessing,
    head_input: str,
    front_note: str | None,
) -> Spec:
    return Spec(
        method=options.method,
        branch=options.branch,
        nwc=options.clamps,
        signed=options.signed,
        purpose=options.answers,
        target_layers=tuple(target.layer for target in dual.targets),
        profile=options.profile,
        classes=options.selection,
        preprocessing=preprocessing,
        num_classes=dual.num_classes,
        task=dual.task,
        feature_shapes=tuple(target.layout.shape for target in dual.targets),
        source=_source(dual, options, front_note),
        class_names=names_for(dual.task, options.class_names),
        method_options=options.method_options,
        head_input=head_input if options.head_graph else None,
    )


def _source(dual: DualBranch, options: ExportOptions, front_note: str | None) -> Source:
    has_sigmoid = options.has_sigmoid
    return Source(
        architecture=dual.architecture,
        weights_sha256=dual.weights_sha256(),
        branch_sha256=dual.branch_sha256() if has_sigmoid else None,
        trained_on=options.trained_on if has_sigmoid else None,
        versions=versions_of("numpy", "sigcam", "torch", "onnx", "onnxscript", "onnxruntime"),
        file_sha256=dual.file_sha256,
        front=front_note,
    )
