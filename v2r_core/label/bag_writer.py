"""Writes a bag that is like another one: same storage, compression, split into files, types and metadata."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rosbags.interfaces import Connection, MessageDefinitionFormat, Qos
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter, Schema, write_schema
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

_LATEST = 9
"""Version of rosbag2's metadata since Jazzy; 8 is what releases before it write."""
_MCAP_MAGIC = b"\x89MCAP0\r\n"
_MCAP_CHUNK = 6
_METADATA = "metadata.yaml"
_INFORMATION = "rosbag2_bagfile_information"


@dataclass(frozen=True)
class BagFormat:
    """How a bag is stored.

    Attributes:
        storage: MCAP or SQLite.
        compression: of files, messages, or MCAP's chunks.
        version: of the metadata, 8 or 9.
        counts: messages in each of its files but the last, as the metadata has them; empty: it is not split.
        ros_distro: release of ROS that recorded it.
        custom_data: what its recorder noted.
    """

    storage: StoragePlugin
    compression: CompressionMode
    version: int
    counts: tuple[int, ...]
    ros_distro: str
    custom_data: dict[str, str]


def bag_format(path: Path) -> BagFormat:
    """The format of a bag that can be opened: its folder, or one of its files."""
    if path.is_file():
        storage = StoragePlugin.MCAP if path.suffix == ".mcap" else StoragePlugin.SQLITE3
        return BagFormat(storage, _chunk_compression([path]), _LATEST, (), "", {})
    information: dict[str, Any] = yaml.safe_load((path / _METADATA).read_text())[_INFORMATION]
    files = [path / Path(name).name for name in information["relative_file_paths"]]
    mode = (information.get("compression_mode") or "none").upper()
    storage = StoragePlugin[information["storage_identifier"].upper()]
    chunks = _chunk_compression(files) if storage is StoragePlugin.MCAP and mode == "NONE" else None
    return BagFormat(
        storage=storage,
        compression=chunks or CompressionMode[mode],
        version=min(max(information["version"], 8), _LATEST),
        counts=tuple(file["message_count"] for file in information.get("files") or [])[:-1],
        ros_distro=information.get("ros_distro") or "",
        custom_data=information.get("custom_data") or {},
    )


def _chunk_compression(files: Sequence[Path]) -> CompressionMode:
    """Whether the chunks of MCAP files are compressed, by the first chunk there is."""
    for path in files:
        with path.open("rb") as file:
            if file.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
                continue
            while len(head := file.read(9)) == 9:
                code, length = struct.unpack("<BQ", head)
                if code != _MCAP_CHUNK:
                    file.seek(length, 1)
                    continue
                (name_length,) = struct.unpack_from("<I", file.read(32), 28)
                return CompressionMode.STORAGE if name_length else CompressionMode.NONE
    return CompressionMode.NONE


class _NoHash(str):
    """The hash of a type that a bag from before Iron has none for; the writer insists on one that is not false."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def _add_bare_type(writer: Writer, msgtype: str) -> None:
    """Has a type in a bag without saying what it consists of, for which the writer itself has no way."""
    if msgtype in writer.added_types:
        return
    writer.added_types.add(msgtype)
    if isinstance(writer.storage, McapWriter):
        schema = Schema(len(writer.storage.schemas) + 1, msgtype, "", "")
        writer.storage.schemas.append(schema)
        write_schema(writer.storage.chunk.bio, schema)


class BagWriter:
    """Writes a copy of a bag, and more messages into it.

    Messages go into files as they lie in those of the original; `close` makes one bag of them.
    """

    def __init__(self, folder: Path, form: BagFormat, connections: Sequence[Connection]) -> None:
        """Starts an empty bag.

        Args:
            folder: where the bag will be; does not exist. What is not finished yet lies next to it.
            form: of the original.
            connections: of the original.
        """
        self._folder, self._form = folder, form
        self._originals = list(connections)
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._extra: list[tuple[str, str, Typestore, Qos]] = []
        self._parts: list[Path] = []
        self._writer: Writer | None = None
        self._copied = 0
        self._own: dict[int, Connection] = {}
        self._added: dict[str, Connection] = {}

    def add_topic(self, topic: str, msgtype: str, types: Typestore, qos: Qos) -> None:
        """A topic that the original does not have; all of them before the first message."""
        self._extra.append((topic, msgtype, types, qos))

    def copy(self, connection: Connection, time_ns: int, data: bytes) -> None:
        """Writes the next message of the original as it is.

        Args:
            connection: of the original.
            time_ns: when it was recorded.
            data: the serialised message.
        """
        counts, part = self._form.counts, len(self._parts)
        if self._writer is None or (part <= len(counts) and self._copied >= counts[part - 1]):
            self._next_file()
        self._copied += 1
        self._write(self._own[connection.id], time_ns, data)

    def add(self, topic: str, time_ns: int, data: bytes) -> None:
        """Writes a message that the original does not have."""
        if self._writer is None:
            self._next_file()
        self._write(self._added[topic], time_ns, data)

    def close(self) -> None:
        """Makes the bag complete."""
        self._finish_file()
        self._folder.mkdir()
        parts = []
        for part in self._parts:
            metadata = part / _METADATA
            parts.append(yaml.safe_load(metadata.read_text())[_INFORMATION])
            metadata.unlink()
            for file in part.iterdir():
                file.rename(self._folder / file.name)
            part.rmdir()
        text = yaml.safe_dump({_INFORMATION: self._merged(parts)}, sort_keys=False)
        (self._folder / _METADATA).write_text(text)

    def abort(self) -> None:
        """Gives up, and removes what was written."""
        if self._writer is not None:
            # The disk may be full, or the file be closed already; it goes in any case.
            with suppress(Exception):
                self._writer.abort()
            self._writer = None
        for path in [*self._parts, self._folder]:
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, connection: Connection, time_ns: int, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(connection, time_ns, data)

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _next_file(self) -> None:
        self._finish_file()
        # The file is named after the folder that the writer makes.
        part = self._folder.with_name(f"{self._folder.name}_{len(self._parts)}")
        self._parts.append(part)
        self._copied = 0
        writer = Writer(part, version=self._form.version, storage_plugin=self._form.storage)  # type: ignore[arg-type]
        writer.set_compression(self._form.compression, CompressionFormat.ZSTD)
        for key, value in self._form.custom_data.items():
            writer.set_custom_data(key, value)
        writer.open()
        self._writer = writer
        self._own = {original.id: self._copied_connection(writer, original) for original in self._originals}
        self._added = {
            topic: writer.add_connection(topic, msgtype, typestore=types, offered_qos_profiles=[qos])
            for topic, msgtype, types, qos in self._extra
        }

    def _copied_connection(self, writer: Writer, original: Connection) -> Connection:
        for known in writer.connections:  # an MCAP file may have a topic on several channels that are the same
            if (known.topic, known.msgtype, known.ext) == (original.topic, original.msgtype, original.ext):
                return known
        definition = self._definition(original)
        if definition is None:
            _add_bare_type(writer, original.msgtype)
        writer.add_connection(
            original.topic,
            original.msgtype,
            msgdef=definition or "",
            rihs01=_NoHash(original.digest),
            serialization_format=original.ext.serialization_format,  # type: ignore[union-attr]
            offered_qos_profiles=original.ext.offered_qos_profiles,  # type: ignore[union-attr]
        )
        writer.connections[-1] = writer.connections[-1]._replace(digest=original.digest)
        return writer.connections[-1]

    def _definition(self, original: Connection) -> str | None:
        """What a type consists of; None: the bag does not say, and the type is none of ROS itself."""
        if original.msgdef.format is not MessageDefinitionFormat.NONE:
            return original.msgdef.data
        # Readers ask what they know themselves only of a bag without any definition; now this one has some.
        if original.msgtype not in self._types.types:
            return None
        known = original.digest in ("", self._types.hash_rihs01(original.msgtype))
        return self._types.generate_msgdef(original.msgtype, ros_version=2)[0] if known else None

    def _merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The metadata of the bag out of those of its files."""
        starts = [part["starting_time"]["nanoseconds_since_epoch"] for part in parts]
        ends = [start + part["duration"]["nanoseconds"] for start, part in zip(starts, parts, strict=True)]
        topics = [
            {**same[0], "message_count": sum(topic["message_count"] for topic in same)}
            for same in zip(*(part["topics_with_message_count"] for part in parts), strict=True)
        ]
        return {
            **parts[0],
            "relative_file_paths": [name for part in parts for name in part["relative_file_paths"]],
            "duration": {"nanoseconds": max(ends) - min(starts)},
            "starting_time": {"nanoseconds_since_epoch": min(starts)},
            "message_count": sum(part["message_count"] for part in parts),
            "topics_with_message_count": topics,
            "files": [file for part in parts for file in part["files"]],
            "ros_distro": self._form.ros_distro or parts[0]["ros_distro"],
        }
