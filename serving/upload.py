"""Multipart forms, limited while they are received and kept in memory: no image touches the disk, no file name becomes a path."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.context import Context
from serving.errors import ApiError
from serving.settings import FORM_BYTES


class Parser(MultiPartParser):
    """Starlette's parser, which silently drops the last part of a truncated form; `whole` tells whether it was complete."""

    whole = False

    def on_end(self) -> None:
        """Called at the closing delimiter."""
        self.whole = True


@asynccontextmanager
async def form(request: Request, context: Context, example: str, most_files: int = 1) -> AsyncGenerator[FormData, None]:
    """Receive the request's form; it is closed when the block ends.

    Args:
        request: whose body is read.
        context: its settings limit size and time of the upload, and it counts the bytes.
        example: arguments of curl for a correct request, for error messages.
        most_files: how many files the request may have; if more than one, `max_batch_megabytes` is their limit together.

    Raises:
        ApiError: not_multipart, too_large, too_many_images, upload_timeout, bad_form, busy.
    """
    settings = context.settings
    hint = _hint(example)
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError("not_multipart", "The request is not a multipart form", hint)
    charset = parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):  # Starlette would use any of Python's codecs, and some fail or make surrogates
        raise ApiError("bad_form", f"The form's charset is {charset[:40]!r}, and only utf-8 is read", hint)
    megabytes = settings.max_megabytes if most_files == 1 else settings.max_batch_megabytes
    limit = int(megabytes * 1e6) + FORM_BYTES
    too_large = ApiError("too_large", f"The upload is larger than {megabytes:g} MB", "Send a smaller file, or fewer at a time.")
    length = request.headers.get("content-length", "")
    known = length.isdecimal()
    if known and int(length) > limit:
        raise too_large

    def hold(size: int) -> None:
        context.uploads.hold(request.state.client, size)
        request.state.held += size

    if known:  # all of it at once: uploads that grow together would all be stopped by the limit, and none completed
        hold(int(length))

    async def bounded() -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:  # a chunked upload does not announce its length
                raise too_large
            if not known:
                hold(len(chunk))
            yield chunk

    # A few more files than allowed, so that the error can name the fields; beyond that the parser stops.
    parser = Parser(request.headers, bounded(), max_files=most_files + 8, max_fields=32)
    parser.spool_max_size = limit
    try:
        async with asyncio.timeout(settings.upload_timeout):
            read = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise ApiError("too_many_images", f"The form has more than {most_files} files") from None
        raise ApiError("bad_form", f"The multipart form cannot be read: {error.message}", hint) from None
    except TimeoutError:
        raise ApiError("upload_timeout", f"The upload took more than {settings.upload_timeout:g} seconds") from None
    try:
        if not parser.whole:
            raise ApiError("bad_form", "The multipart form is incomplete: its closing delimiter is missing", hint)
        yield read
    finally:
        await read.close()


def files(form: FormData, field: str, most: int, example: str) -> list[UploadFile]:
    """The files in a field of the form, at least one. Raises ApiError: wrong_field, too_many_images."""
    found = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
    if not found or len(found) != len(form.getlist(field)) or (most == 1 and len(found) > 1):
        kinds = [(name, "file" if isinstance(value, UploadFile) else "text") for name, value in form.multi_items()]
        names = ", ".join(f"`{name[:40]}` ({kind})" for name, kind in kinds[:8]) or "none"
        number = "one file" if most == 1 else f"1 to {most} files"
        raise ApiError("wrong_field", f"The form needs {number} in the field `{field}`; it has {names}", _hint(example))
    if len(found) > most:
        raise ApiError("too_many_images", f"The form has {len(found)} files, more than {most}")
    return found


def text(form: FormData, field: str, allowed: tuple[str, ...], example: str, default: str | None = None, most: int | None = None) -> str:
    """The text in a field of the form.

    Args:
        form: what was sent.
        field: its name.
        allowed: the allowed values; any if empty.
        example: arguments of curl for a correct request.
        default: value of an optional field that is missing.
        most: largest number of characters.

    Raises:
        ApiError: wrong_field if it is missing, bad_value if it is not one of the allowed ones, or too long.
    """
    value = form.get(field, default)
    if not isinstance(value, str):
        raise ApiError("wrong_field", f"The form needs text in the field `{field}`", _hint(example))
    value = value.replace("\r\n", "\n")  # browsers send line ends as two characters, but count one
    if allowed and value not in allowed:
        raise ApiError("bad_value", f"`{field}` is {value[:40]!r}", f"It should be one of: {', '.join(allowed)}.")
    if most is not None and len(value) > most:
        raise ApiError("bad_value", f"`{field}` has {len(value)} characters, more than {most}", "Shorten it.")
    return value


def _hint(example: str) -> str:
    return f"Send it like `curl {example}`."
