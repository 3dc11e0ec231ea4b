"""The card of a bundle: what a person should know before using it, written from the manifest."""

from __future__ import annotations

from pathlib import Path

from v2r_core.deploy.bundle import Manifest

CARD = "README.md"

_PARITY = {
    "fp32_max_rel_error": "fp32 graph against torch, largest difference over the largest output",
    "fp16_min_cosine": "fp16 graph against torch, smallest cosine",
    "rounding_min_cosine": "weights rounded to float16 against unrounded, smallest cosine",
}


def write_card(folder: Path, manifest: Manifest) -> None:
    """Writes `README.md` into a bundle.

    Args:
        folder: the bundle's folder.
        manifest: its content; `files` is not looked at, since the card is one of them.
    """
    encoder = manifest.encoder
    frame = encoder.preprocess
    if frame.mode == "squash":
        prepared = f"resized to {frame.size} x {frame.size} pixels, the aspect ratio is not kept"
    else:
        prepared = f"shorter side resized to {frame.resize_to} pixels, centre {frame.size} x {frame.size} cropped"
    graphs = ", ".join(f"`{name}` ({precision})" for precision, name in encoder.graphs.items())
    goal = f"`{manifest.goal}`" if manifest.goal else "none inside; set one at run time"
    lines = [
        f"# {manifest.name}",
        "",
        manifest.description,
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {encoder.name}, {encoder.embedding_dim} values a frame |",
        "| input | `frames`, uint8 RGB (N, S, S, 3); scaling and normalisation are inside the graph |",
        f"| frames | {prepared} |",
        "| output | `embedding`, float32 (N, D) |",
        f"| reward | {manifest.reward.name}{_pairs(manifest.reward.parameters)} |",
        f"| goal | {goal} |",
        f"| graphs | {graphs}, opset {encoder.opset} |",
        f"| licence of the weights | {encoder.weights_license} |",
    ]
    lines += [f"| {key} | {value} |" for key, value in manifest.training.items()]
    for key, value in encoder.parity.items():
        # A cosine is read by its distance from one, an error by its order of magnitude.
        lines.append(f"| {_PARITY.get(key, key)} | {value:{'.6f' if 'cosine' in key else '.1e'}} |")
    lines += [f"| {key} | {value:.4g} |" for key, value in manifest.quality.items()]
    lines += [
        "",
        "The stored answer in `bundle.json` (`check`) lets a robot verify after loading that it computes the same.",
        "Loading checks the sha256 of every file: edit nothing here, export again.",
        "",
    ]
    (folder / CARD).write_text("\n".join(lines))


def _pairs(parameters: dict[str, float | int | str | bool]) -> str:
    return "".join(f", {key} = {value}" for key, value in parameters.items())
