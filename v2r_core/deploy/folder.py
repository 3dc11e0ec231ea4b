"""A folder that says of every file in it what it must be: what bundles of rewards and of policies have in common."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from v2r_core.video.resize import Preprocess


class BundleError(ValueError):
    """A bundle is incomplete, changed or not understood; the message names the file and the remedy."""


class Strict(BaseModel):
    """A record in which nothing may stand that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessSpec(Strict):
    """`Preprocess` as it is written to disk; the bounds keep an absurd file from allocating absurd memory."""

    size: int = Field(ge=16, le=2048)
    mode: Literal["squash", "crop"]
    resize_to: int = Field(ge=16, le=4096)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def preprocess(self) -> Preprocess:
        """The dataclass that `video.resize` works with."""
        return Preprocess(self.size, self.mode, self.resize_to, self.mean, self.std)


class FileSpec(Strict):
    """Hash and length of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


AnyManifest = TypeVar("AnyManifest", bound=Strict)


def read_manifest(folder: Path, name: str, kind: type[AnyManifest], what: str) -> tuple[AnyManifest, str]:
    """Reads the record of a folder.

    Args:
        folder: of the bundle.
        name: of the record's file.
        kind: its schema.
        what: the folder holds, in words: "bundle", "policy".

    Returns:
        The record, and the hash of its file, which is the identity of the whole.

    Raises:
        BundleError: no such file, or a schema not understood.
    """
    source = folder / name
    if not source.is_file():
        raise BundleError(f"{folder}: no {name} there; give the folder of a {what}, as `v2r export` writes it")
    raw = source.read_bytes()
    try:
        manifest = kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{source}: {where or 'file'}: {first['msg']}; export the {what} again") from error
    return manifest, hashlib.sha256(raw).hexdigest()


def check_files(folder: Path, name: str, files: dict[str, FileSpec], needed: set[str], what: str) -> None:
    """Compares every file of a folder with its hash.

    Args:
        folder: of the bundle.
        name: of the record's file.
        files: as the record lists them.
        needed: names that the record uses.
        what: see `read_manifest`.

    Raises:
        BundleError: a file is used and not listed, missing, changed, or outside the folder.
    """
    if missing := needed - set(files):
        raise BundleError(
            f"{folder / name}: {sorted(missing)} used but not listed under files; export the {what} again"
        )
    root = folder.resolve()
    for file, spec in files.items():
        _check_file(root, file, spec)


def write_manifest_file(folder: Path, name: str, manifest: Strict) -> None:
    """Writes the record, last of all files, by rename: a folder with a record is complete."""
    partial = folder / (name + ".partial")
    partial.write_text(json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
    partial.replace(folder / name)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path, names: list[str]) -> dict[str, FileSpec]:
    """Hash and length of each named file of the folder, for the record."""
    return {name: FileSpec(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size) for name in names}


def _check_file(root: Path, name: str, spec: FileSpec) -> None:
    file = root / name
    if not file.resolve().is_relative_to(root) or Path(name).is_absolute():
        raise BundleError(f"{root}: file name {name!r} leaves the bundle; do not use this bundle")
    if not file.is_file():
        raise BundleError(f"{file}: missing; copy the bundle again")
    if file.stat().st_size != spec.bytes:
        raise BundleError(f"{file}: {file.stat().st_size} bytes, {spec.bytes} expected; copy the bundle again")
    if (found := sha256_of(file)) != spec.sha256:
        raise BundleError(f"{file}: sha256 {found[:12]}..., {spec.sha256[:12]}... expected; copy the bundle again")
