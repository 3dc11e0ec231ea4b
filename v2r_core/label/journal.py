"""What networks answered so far, in a file: an interrupted run asks the same questions again and need not wait.

A run is deterministic but for its networks' time: it asks them the same questions in the same order. So a run that is
started again reads, decodes and copies everything anew and takes each answer from the journal, as long as question and
journal agree. The first question that differs (another model, bag or goal) ends the replay, and what comes after it in
the file is thrown away; a stale journal can cost time, never a wrong answer.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.reward import Network

_HEAD = struct.Struct("<16sIIB3sI")
"""Digest of the question, length and CRC-32 of the answer, number of axes, type of the numbers, CRC-32 of the rest."""
_MOST_AXES = 8
_TOO_LONG = 1 << 18
"""Bytes; longer answers (the denoiser of Diffusion Reward at its released size) would fill a disk: they are asked for
again."""
_NOT_KEPT = b"---"


class AnswerJournal:
    """Networks whose answers survive a killed process. Not thread-safe.

    Attributes:
        replayed: answers that came from the file.
        asked: answers that a network had to give.
    """

    def __init__(self, path: Path, identity: str) -> None:
        """Opens or makes the file.

        Args:
            path: of the file; its folder exists.
            identity: what besides its inputs decides what a network answers, e.g. the hash of the model.

        Raises:
            FileExistsError: it is the journal of something else.
        """
        self._path = path
        self._identity = identity.encode()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError as error:
            raise FileExistsError(
                f"{path.parent} was left by another command that was interrupted; finish that, remove the folder, or "
                "give another name"
            ) from error
        self._offset = 0
        self._replaying = True
        self.replayed = 0
        self.asked = 0

    def wrap(self, name: str, network: Network) -> Network:
        """The network with its answers taken from the journal, or added to it.

        Args:
            name: tells it from the other networks of the run.
            network: a pure function from arrays to one array.

        Returns:
            Gives read-only or new arrays, bit for bit what the network gave. Raises OSError if an answer cannot be
            written, e.g. on a full disk.
        """

        def ask(*arrays: NDArray[Any], **named: NDArray[Any]) -> NDArray[Any]:
            question = self._digest(name, arrays, named)
            known, answer = self._next(question) if self._replaying else (False, None)
            if answer is not None:
                self.replayed += 1
                return answer
            if self._replaying and not known:
                self._replaying = False
                os.ftruncate(self._file, self._offset)
            answer = np.asarray(network(*arrays, **named))
            self.asked += 1
            if not known:
                self._append(question, answer)
            return answer

        return ask

    def close(self) -> None:
        """Closes the file, which stays. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _digest(self, name: str, arrays: tuple[NDArray[Any], ...], named: dict[str, NDArray[Any]]) -> bytes:
        digest = hashlib.sha256(self._identity)
        for key, array in (*((str(place), array) for place, array in enumerate(arrays)), *sorted(named.items())):
            digest.update(f"\0{name}\0{key}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()[:16]

    def _next(self, question: bytes) -> tuple[bool, NDArray[Any] | None]:
        """Whether the current place of the file is about this question, and the answer if it was kept."""
        head = os.pread(self._file, _HEAD.size, self._offset)
        if len(head) < _HEAD.size:
            return False, None
        found, length, crc, axes, kind, head_crc = _HEAD.unpack(head)
        if zlib.crc32(head[:-4]) != head_crc or found != question:
            return False, None
        shape_bytes = 8 * axes
        body = os.pread(self._file, shape_bytes + length, self._offset + _HEAD.size)
        if len(body) < shape_bytes + length or zlib.crc32(body) != crc:
            return False, None
        self._offset += _HEAD.size + len(body)
        if kind == _NOT_KEPT:
            return True, None
        shape = struct.unpack(f"<{axes}q", body[:shape_bytes])
        return True, np.frombuffer(body, np.dtype(kind.decode()), offset=shape_bytes).reshape(shape)

    def _append(self, question: bytes, answer: NDArray[Any]) -> None:
        kind = answer.dtype.str.encode()
        if len(kind) != 3 or answer.ndim > _MOST_AXES:
            raise ValueError(
                f"a network gave {answer.dtype} {answer.shape}; plain numbers of {_MOST_AXES} axes expected"
            )
        payload = np.ascontiguousarray(answer).tobytes()
        if len(payload) > _TOO_LONG:
            kind, payload = _NOT_KEPT, b""
        body = struct.pack(f"<{answer.ndim}q", *answer.shape) + payload
        head = _HEAD.pack(question, len(payload), zlib.crc32(body), answer.ndim, kind, 0)[:-4]
        record = head + struct.pack("<I", zlib.crc32(head)) + body
        written = 0
        while written < len(record):
            written += os.pwrite(self._file, record[written:], self._offset + written)
        self._offset += len(record)
