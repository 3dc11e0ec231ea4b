"""Writes the standardisation of a step reward into a bundle that is there already."""

from __future__ import annotations

from v2r_core.deploy.bundle import Bundle, load_bundle, write_manifest
from v2r_core.deploy.card import CARD, write_card
from v2r_core.deploy.folder import BundleError, describe_files


def write_standard(bundle: Bundle, mean: float, std: float, count: int) -> Bundle:
    """Sets the parameters `mean` and `std` of the reward; the bundle has another hash afterwards.

    Args:
        bundle: with a step reward.
        mean: of the raw reward on expert videos.
        std: its standard deviation, above 0.
        count: number of rewards that they are from.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: `std` is not above 0.
    """
    if not std > 0:
        raise BundleError(f"{bundle.path}: the reward is {mean:.6g} on every frame; nothing to standardize by")
    manifest = bundle.manifest
    spec = manifest.reward.model_copy(update={"parameters": {**manifest.reward.parameters, "mean": mean, "std": std}})
    quality = {**manifest.quality, "rewards standardized on": float(count)}
    changed = manifest.model_copy(update={"reward": spec, "quality": quality})
    write_card(bundle.path, changed)
    files = {**manifest.files, **describe_files(bundle.path, [CARD])}
    write_manifest(bundle.path, changed.model_copy(update={"files": files}))
    return load_bundle(bundle.path)
