"""What a job returns, or a step: checked when it is to be stored, and encoded as it will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bson
from bson.raw_bson import RawBSONDocument

from ..errors import PayloadError
from .document import CODEC, ENCODING_ERRORS
from .payload import check_values, culprit, steps_to
from .steps import MAX_STEP_BYTES

if TYPE_CHECKING:
    from bson.codec_options import CodecOptions

MAX_RESULT_BYTES = 1024 * 1024
"""Results are for whoever asks for them: much larger ones belong elsewhere, as payloads do."""

_RAW_CODEC: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)


def encode_result(result: object) -> RawBSONDocument | None:
    """Return a result as an expression of an update, encoded; None for None, which is not stored.

    Raises:
        PayloadError: it cannot be stored and read back as it is: no BSON value, nested more than
            100 levels deep, or larger than 1 MiB. It says which type is to blame, and where.
    """
    return None if result is None else encode_value(result, "result", MAX_RESULT_BYTES)


def encode_step(name: str, result: object) -> RawBSONDocument:
    """Return the result of a step likewise; also a None, since it stands for *done*.

    Raises:
        PayloadError: as :func:`encode_result`, with the name of the step; the limit is 256 kB.
    """
    return encode_value(result, f"result of step {name!r}", MAX_STEP_BYTES)


def encode_value(value: object, what: str, most: int) -> RawBSONDocument:
    """Return a value as an expression of an update, encoded.

    Args:
        what: what it is, for the error.
        most: the bytes that it may have.

    Raises:
        PayloadError: it cannot be stored and read back as it is.
    """
    whole = {"$literal": value}
    try:
        plain = check_values(whole, what, most)
        encoded = bson.encode(whole, codec_options=CODEC)
        if not plain:
            bson.decode(encoded, CODEC)
    except PayloadError:
        raise
    except ENCODING_ERRORS as error:
        why, place = culprit(value)
        raise PayloadError(
            f"this {what} cannot be stored as BSON: {why}, at result{steps_to(place)}"
        ) from error
    if len(encoded) > most:
        raise PayloadError(
            f"this {what} has {len(encoded):,} bytes as BSON; the limit is {most:,}. "
            "Put large data elsewhere (GridFS, an object store) and return its address"
        )
    return RawBSONDocument(encoded, _RAW_CODEC)


def decode_result(encoded: bytes) -> Any:
    """Return the value of which these are the bytes of :func:`encode_value`."""
    return bson.decode(encoded, CODEC)["$literal"]


class Result:
    """What a job is completed with: encoded, and looked at, only if it is to be stored."""

    __slots__ = ("_encoded", "_is_encoded", "_value")

    def __init__(self, value: object) -> None:
        self._value: object = value
        self._encoded: RawBSONDocument | None = None
        self._is_encoded = value is None

    def encoded(self) -> RawBSONDocument | None:
        """Return what :func:`encode_result` does, which may raise, as it was the first time."""
        if not self._is_encoded:
            self._encoded = encode_result(self._value)
            self._is_encoded, self._value = True, None
        return self._encoded

    @property
    def size(self) -> int:
        """The bytes that it takes, once it is encoded."""
        return 0 if self._encoded is None else len(self._encoded.raw)


NO_RESULT = Result(None)
