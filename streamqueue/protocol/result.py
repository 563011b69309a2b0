"""What a job returns: checked when it is to be stored, and encoded as it will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bson
from bson.raw_bson import RawBSONDocument

from ..errors import PayloadError
from .document import CODEC, ENCODING_ERRORS
from .payload import check_values, culprit, steps_to

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
    if result is None:
        return None
    whole = {"$literal": result}
    try:
        plain = check_values(whole, "result", MAX_RESULT_BYTES)
        encoded = bson.encode(whole, codec_options=CODEC)
        if not plain:
            bson.decode(encoded, CODEC)
    except PayloadError:
        raise
    except ENCODING_ERRORS as error:
        what, place = culprit(result)
        raise PayloadError(
            f"this result cannot be stored as BSON: {what}, at result{steps_to(place)}"
        ) from error
    if len(encoded) > MAX_RESULT_BYTES:
        raise PayloadError(
            f"this result has {len(encoded):,} bytes as BSON; the limit is {MAX_RESULT_BYTES:,}. "
            "Put large data elsewhere (GridFS, an object store) and return its address"
        )
    return RawBSONDocument(encoded, _RAW_CODEC)


def decode_result(encoded: bytes) -> Any:
    """Return the result of which these are the bytes of :func:`encode_result`."""
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
