"""`v2r models`: the encoders and the bundles that there are."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import MANIFEST, load_bundle


@dataclass(frozen=True)
class Models:
    """Lists the encoders that can be exported and the bundles that are installed, ready to use."""

    def run(self) -> int:
        """Prints two tables. A bundle that is damaged is listed with what is wrong, and the exit code is 1 then."""
        console = Console()
        table, damaged = _bundles()
        console.print(table)
        console.print(_encoders())
        return 1 if damaged else 0


def _bundles() -> tuple[Table, int]:
    table = Table(title="bundles: use the folder as `bundle`")
    table.add_column("folder", overflow="fold")
    for heading in ("encoder", "reward", "MB", "weights"):
        table.add_column(heading)
    damaged = 0
    for manifest_file in sorted(DEFAULT_BUNDLE.parent.glob(f"*/{MANIFEST}")):
        try:
            bundle = load_bundle(manifest_file.parent)
        except ValueError as error:
            damaged += 1
            table.add_row(str(manifest_file.parent), f"damaged: {error}")
            continue
        manifest = bundle.manifest
        size = sum(spec.bytes for spec in manifest.files.values()) / 1e6
        encoder = manifest.encoder
        name = f"{encoder.name}, {encoder.embedding_dim}"
        table.add_row(str(bundle.path), name, manifest.reward.name, f"{size:.1f}", encoder.weights_license)
    return table, damaged


def _encoders() -> Table:
    table = Table("encoder", "what", title="encoders: `v2r export NAME --out FOLDER`")
    try:
        from v2r_core.encoders.zoo import list_encoders  # noqa: PLC0415 (a robot has no torch, but has bundles)
    except ImportError as error:
        table.add_row("none", f"training packages are not installed ({error.name}): pip install 'v2r_ros[train]'")
        return table
    for name, text in list_encoders().items():
        table.add_row(name, text)
    return table
