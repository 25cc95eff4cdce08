"""Writes the model card of an exported model from its spec."""

from __future__ import annotations

from sigcam.core.spec import ParityReport, Preprocessing, Spec

_FITTED = {
    "crop": "the shorter side is resized to {resize} pixels, then the centre is cut out",
    "stretch": "resized whatever the aspect",
    "letterbox": "fitted inside, the rest filled with the mean colour",
}
_PURPOSES = {
    "localise": "localise: where the object is (negative weights are clamped)",
    "discriminate": "discriminate: what speaks for this class and not for another",
    None: "none: clamping and sign were chosen one by one",
}
_SELECTION = {
    "top1": "the most probable class",
    "topk": "the {k} most probable classes",
    "input": "the classes that the caller names",
}
_BRANCHES = {
    "sigmoid": "sigmoid, trained beside the classifier's own head",
    "softmax": "softmax, the classifier's own head",
    "centred": "centred, the classifier's own head without the mean over the classes",
}


def model_card(
    spec: Spec, repository: str, file: str, license_name: str | None, branch_file: str | None
) -> str:
    """Returns a model card in Markdown, with the Hub's metadata in front.

    Args:
        spec: the artifact's.
        repository: "owner/name".
        file: the artifact's path in the repository.
        license_name: an identifier of the Hub's, such as "apache-2.0"; None leaves a line that
            says that none was named.
        branch_file: the branch file's path in the repository; None without one.

    Example:
        model_card(read_spec("model.onnx"), "owner/name", "model.onnx", "mit", None)
    """
    named = f"{spec.source.architecture} with class evidence maps"
    parts = [
        _metadata(license_name),
        f"# {named}\n",
        "One ONNX graph that gives the prediction and, from the same forward pass, the evidence "
        "map of a class: which parts of the image speak for it. Made by "
        "sigcam; the spec is in the file's metadata.\n",
        "## Use\n",
        f'```python\nimport sigcam\n\nwith sigcam.load("hf://{repository}/{file}") as session:\n'
        '    best = session.explain("image.jpg")[0]\n'
        '    print(best.label, best.probability)\n    best.save("heatmap.png")\n```\n',
        f"On the command line: `sigcam explain hf://{repository}/{file} image.jpg`.\n",
        "## What it is\n",
        _table(_facts(spec, branch_file)),
        "## Parity with PyTorch\n",
        _parity(spec.parity),
    ]
    if spec.fidelity is not None:
        fidelity = spec.fidelity
        parts += [
            f"## Fidelity of {fidelity.precision}\n",
            f"Against float32, by {fidelity.backend}: {fidelity.described()}.\n",
        ]
    parts += ["## Classes\n", _classes(spec), "## Licence\n", _licence(license_name)]
    return "\n".join(parts)


def _metadata(license_name: str | None) -> str:
    lines = ["library_name: sigcam", "pipeline_tag: image-classification"]
    lines += ["tags:", "- onnx", "- class-activation-map", "- explainability"]
    lines += [f"license: {license_name}"] if license_name else []
    return "\n".join(["---", *lines, "---", ""])


def _facts(spec: Spec, branch_file: str | None) -> list[tuple[str, str]]:
    source = spec.source
    numbers = ", ".join(f"{name} {value:g}" for name, value in spec.method_options.items())
    rows = [
        ("classifier", f"{source.architecture}, {spec.num_classes} classes, {spec.task}"),
        ("method", spec.method + (f" ({numbers})" if numbers else "")),
        ("branch", _BRANCHES[spec.branch]),
        ("purpose", _PURPOSES[spec.purpose]),
        ("maps for", _SELECTION[spec.classes.mode].format(k=spec.classes.k)),
        ("target layers", ", ".join(f"`{layer}`" for layer in spec.target_layers)),
        ("map", "{}x{} before it is enlarged to the image".format(*spec.cam_shape)),
        ("input", _prepared(spec.preprocessing)),
    ]
    if source.trained_on:
        rows.append(("sigmoid branch trained on", source.trained_on))
    if branch_file is not None:
        rows.append(("branch file", f"`{branch_file}`, for `sigcam export --sigmoid-branch`"))
    rows.append(("weights", f"SHA-256 `{source.weights_sha256}`"))
    if source.versions:
        written = (f"{name} {version}" for name, version in source.versions.items())
        rows.append(("written by", ", ".join(written)))
    return rows


def _prepared(preprocessing: Preprocessing) -> str:
    fitted = _FITTED[preprocessing.rule].format(resize=preprocessing.resize)
    mean = ", ".join(f"{value:g}" for value in preprocessing.mean)
    std = ", ".join(f"{value:g}" for value in preprocessing.std)
    return (
        f"{preprocessing.layout}, {preprocessing.height}x{preprocessing.width}; {fitted}; "
        f"mean {mean}, deviation {std} of 0 to 1"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *cells, ""])


def _parity(parity: ParityReport | None) -> str:
    if parity is None:
        return "The file has no parity report.\n"
    rows = [
        f"| {name} | {error.max_abs:.2g} | {error.max_rel:.2g} |"
        for name, error in parity.outputs.items()
    ]
    return "\n".join(
        [
            f"The largest error of each output against {parity.reference}, run by "
            f"{parity.backend}, on {parity.inputs}; nothing is written above {parity.tolerance:g}.",
            "",
            "| output | absolute | relative |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _classes(spec: Spec) -> str:
    if not spec.class_names:
        return f"{spec.num_classes} classes without names, told apart by their numbers.\n"
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(spec.class_names))
    return f"<details><summary>{spec.num_classes} classes</summary>\n\n{listed}\n\n</details>\n"


def _licence(license_name: str | None) -> str:
    if license_name is None:
        return "None was named. Ask who published this before you use it.\n"
    return f"{license_name}, as named by who published this.\n"
