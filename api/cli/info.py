"""`sigcam info`: what an artifact is, from its spec alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigcam.cli.common import echo, echo_json, reports_errors

if TYPE_CHECKING:
    from sigcam.core.spec import FidelityReport, Preprocessing, Spec

_SQUASHING = {
    "single-label": "softmax",
    "multi-label": "sigmoid",
    "binary": "sigmoid, of one logit and its negation",
}


@click.command(name="info")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the spec as JSON.")
@reports_errors
def command(model: Path, as_json: bool) -> None:
    """Print the spec and parity report of MODEL, or of a TensorRT engine's model.

    MODEL may be an address on the Hugging Face Hub, hf://OWNER/NAME.
    """
    from sigcam.core.artifact import read_spec
    from sigcam.hub.pull import local

    model = local(model)
    spec = read_spec(model)
    if as_json:
        echo_json(json.loads(spec.to_json()))
        return
    for name, value in [*_tensorrt_rows(model), *_rows(spec)]:
        echo(f"{name:<14} {value}")
    if spec.parity is not None:
        converted = "" if spec.fidelity is None else ", before it was converted"
        echo(f"\nlargest error of each output against PyTorch{converted}")
        for output, error in spec.parity.outputs.items():
            echo(f"  {output:<16} absolute {error.max_abs:.1e}   relative {error.max_rel:.1e}")


def _tensorrt_rows(model: Path) -> list[tuple[str, str]]:
    """Returns what an engine's sidecar says beside the spec; nothing for an .onnx file."""
    if model.suffix != ".engine":
        return []
    from sigcam.core.sidecar import read_sidecar

    sidecar = read_sidecar(model)
    ranges = [
        f"{name} {list(low)} to {list(high)}" for name, (low, _, high) in sidecar.shapes.items()
    ]
    tf32 = ", products in TF32" if sidecar.tf32 else ""
    return [
        ("engine", f"{sidecar.package} {sidecar.version}, {sidecar.precision}{tf32}"),
        ("built on", sidecar.platform),
        ("capability", ", ".join(sidecar.capabilities) or "8.0 and later"),
        ("sizes", "; ".join(ranges)),
        ("built from", f"{sidecar.source}, {sidecar.source_sha256[:16]}"),
    ]


def _channels(preprocessing: Preprocessing) -> str:
    mean, std = (
        ", ".join(f"{value:g}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    order = "; turned to BGR in the graph" if preprocessing.channel_order == "bgr" else ""
    return f"{preprocessing.channels}: mean {mean}; std {std}; scale {preprocessing.scale:g}{order}"


def _rows(spec: Spec) -> list[tuple[str, str]]:
    """Returns the spec as pairs of a name and its value in words."""
    preprocessing, classes, source = spec.preprocessing, spec.classes, spec.source
    features = [
        f"{channels} channels, {height}x{width}, from {layer}"
        for layer, (channels, height, width) in zip(
            spec.target_layers, spec.feature_shapes, strict=True
        )
    ]
    selection = {
        "top1": "the predicted class",
        "topk": f"the {classes.k} most probable classes",
        "input": "named at run time",
    }[classes.mode]
    fitted = (
        f"{preprocessing.rule} {preprocessing.resize}"
        if preprocessing.resize
        else preprocessing.rule
    )
    numbers = ", ".join(f"{name} {value:g}" for name, value in spec.method_options.items())
    numbers = f" ({numbers})" if numbers else ""
    rows = [
        ("architecture", source.architecture),
        ("kind", "artifact" if spec.kind == "artifact" else f"head graph, takes {spec.head_input}"),
        ("method", f"{spec.method}{numbers}, from the {spec.branch} branch"),
        ("purpose", spec.purpose or "none: clamping and sign were chosen one by one"),
        ("clamping", "negative weights clamped" if spec.nwc else "off"),
        ("sign", "kept" if spec.signed else "negative sums are 0"),
        ("profile", spec.profile),
        ("maps for", selection),
        ("classes", f"{spec.num_classes}" + ("" if spec.class_names else " (no names)")),
        ("task", f"{spec.task}: probabilities by {_SQUASHING[spec.task]}"),
        ("input", f"{preprocessing.layout} {preprocessing.height}x{preprocessing.width}, {fitted}"),
        ("channels", _channels(preprocessing)),
        ("features", "; ".join(features)),
        ("weights", source.weights_sha256[:16]),
        ("digest", (spec.digest or "none")[:16]),
    ]
    if source.file_sha256 is not None:
        rows.append(("read from", f"an ONNX file of SHA-256 {source.file_sha256[:16]}"))
    if source.front is not None:
        rows.append(("front", source.front))
    if source.branch_sha256 is not None:
        rows.append(("sigmoid branch", source.branch_sha256[:16]))
        rows.append(("trained on", source.trained_on or "not said"))
    rows.append(("written by", ", ".join(f"{k} {v}" for k, v in source.versions.items())))
    if spec.parity is not None:
        parity = spec.parity
        rows.append(("parity with", f"{parity.reference}, run by {parity.backend}"))
        sizes = ", ".join(str(size) for size in parity.batch_sizes)
        rows.append(("tried on", f"{parity.inputs}; batches {sizes}"))
        rows.append(("tolerance", f"{parity.tolerance:g}"))
        if parity.file:
            errors = ", ".join(f"{name} {error.max_rel:.2g}" for name, error in parity.file.items())
            rows.append(("against the file", f"{errors} (largest relative)"))
        if parity.left_out:
            why = "their gradients jump within rounding"
            rows.append(("left out", f"maps of {parity.left_out} of these images: {why}"))
        if parity.empty:
            rows.append(("empty maps", f"{parity.empty} of these images"))
    if spec.fidelity is not None:
        rows += _fidelity_rows(spec.fidelity)
    return rows


def _fidelity_rows(fidelity: FidelityReport) -> list[tuple[str, str]]:
    rows = [
        ("precision", fidelity.precision),
        ("fidelity", f"{fidelity.described()}; against float32, by {fidelity.backend}"),
        (
            "limits",
            f"agreement {fidelity.min_agreement:g}, mean correlation {fidelity.min_correlation:g}",
        ),
    ]
    if fidelity.calibration:
        rows.append(("calibrated on", f"{fidelity.calibration} other images"))
    if fidelity.kept_float:
        rows.append(("in float32", ", ".join(fidelity.kept_float)))
    return rows
