"""The HTTP endpoints."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal, cast

import anyio
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from pipeline.champion import Served
from pipeline.detector import Prediction as Predicted
from pipeline.explanation.heat import Explanation
from pipeline.explanation.overlay import overlay
from pipeline.images import ImageError
from pipeline.monitoring import feedback, predictions
from pipeline.var import DRIFT_REPORT
from serving import answers, openapi, upload
from serving import card as card_page
from serving.answers import DIGITS
from serving.context import Context, Opened
from serving.errors import ApiError, internal
from serving.front import WEB

ONE = "-F image=@photo.jpg URL/predict"
MAP = "-F image=@photo.jpg URL/explain"
SEVERAL = "-F images=@a.jpg -F images=@b.jpg URL/predict/batch"
LABEL = "-F id=ID -F label=real URL/feedback"
FLUSH_SECONDS = 2 * predictions.FLUSH_SECONDS
"""After this time an answer is in the prediction log, where feedback looks it up."""

log = logging.getLogger(__name__)


class Predict(HTTPEndpoint):
    """POST /predict."""

    async def post(self, request: Request) -> Response:
        """The verdict on the form's `image`."""
        started, context = time.perf_counter(), _context(request)
        context.served()  # without a model, fail before receiving the image
        async with upload.form(request, context, ONE) as form:
            data = await upload.files(form, "image", 1, ONE)[0].read()
        champion = context.served()
        async with _deadline(context):
            opened = await context.open(champion, data)
            served, found = await context.judge(champion, opened)
        return _json(_record_answer(context, opened, served, found, started))


class PredictBatch(HTTPEndpoint):
    """POST /predict/batch."""

    async def post(self, request: Request) -> Response:
        """A verdict or an error for each of the form's `images`."""
        started, context = time.perf_counter(), _context(request)
        context.served()
        most = context.settings.max_batch
        async with upload.form(request, context, SEVERAL, most) as form:
            files = upload.files(form, "images", most, SEVERAL)
            names = [file.filename and file.filename[:200] for file in files]
            champion = context.served()
            async with _deadline(context):
                # One after the other: decoded images are large, and a batch must not take every thread from single requests.
                opened = [await _opened(context, champion, await file.read()) for file in files]
                good = [item for item in opened if not isinstance(item, ApiError)]
                judged = iter(await asyncio.gather(*(context.judge(champion, item) for item in good)))
        items = []
        for index, (name, item) in enumerate(zip(names, opened, strict=True)):
            if isinstance(item, ApiError):
                context.metrics.refused(item.code)
                items.append(answers.Item(index=index, name=name, error=answers.Problem(**item.body)))
            else:
                items.append(answers.Item(index=index, name=name, result=_record_answer(context, item, *next(judged), started)))
        return _json(answers.Batch(results=items, timing_ms=round((time.perf_counter() - started) * 1000, 1)))


class Explain(HTTPEndpoint):
    """POST /explain."""

    async def post(self, request: Request) -> Response:
        """The heat map, as numbers or, if `Accept` asks for image/png, as a transparent PNG to lay over the image."""
        context = _context(request)
        context.served()
        async with upload.form(request, context, MAP) as form:
            data = await upload.files(form, "image", 1, MAP)[0].read()
        champion = context.served()

        async def explain(served: Served) -> tuple[Served, Explanation, dict[str, float], tuple[int, int]]:
            prepared = await context.decoded(data, served.detector.prepare)
            return served, *await context.threads.run_heat_map(lambda: served.detector.explain(prepared)), prepared.size

        async with _deadline(context):
            challenger = context.trial.canary_for(context.trial.picture(data))  # if it gave the verdict
            served, found, seen, size = await context.with_fallback(champion, challenger, explain)
        if "image/png" in request.headers.get("accept", ""):
            return Response(overlay(found.heat, seen, size), media_type="image/png", headers={"X-Explanation-Method": found.method})
        heat = [[round(float(value), 3) for value in row] for row in found.heat]
        return _json(answers.Explanation(method=found.method, heat=heat, region=answers.Region(**seen), model=answers.Model.of(served)))


class Feedback(HTTPEndpoint):
    """POST /feedback."""

    async def post(self, request: Request) -> Response:
        """Record what a user says an image is, and keep the image if the user agrees."""
        context = _context(request)
        async with upload.form(request, context, LABEL) as form:
            id = upload.text(form, "id", (), LABEL)
            label = cast(Literal["real", "fake"], upload.text(form, "label", ("real", "fake"), LABEL))
            comment = upload.text(form, "comment", (), LABEL, default="", most=feedback.LONGEST_COMMENT).strip() or None
            image = await _consented_image(form)
        answer = await _find(context, id)
        if image is not None:
            async with _deadline(context):
                await context.decoded(image, lambda _: None)  # only a readable image is kept
        folder = context.settings.var / feedback.FOLDER

        def note() -> None:
            client = request.state.client[:64]
            said = {"version": answer.version, "verdict": answer.verdict, "client": client, "comment": comment}
            try:
                context.room.take(client, len(image or b""))
                feedback.record(folder, id=id, label=label, **said, probability_fake=answer.probability_fake, image=image)
            except OSError as error:
                log.warning("feedback was not kept: %s", error)
                raise ApiError("no_room") from None

        await context.threads.run(note)
        context.metrics.labelled(answer.verdict, label)
        return _json(answers.Feedback(id=id, label=label, image_kept=image is not None))


async def model(request: Request) -> Response:
    """GET /model: the model that answers, and its figures on the test part."""
    context = _context(request)
    served, trouble = context.served(), context.champion.trouble
    detector, settings = served.detector, context.settings
    meta = detector.package.meta
    limits = {"megabytes": settings.max_megabytes, "megapixels": settings.max_megapixels, "batch": settings.max_batch}
    about = answers.About(
        **answers.Model.of(served).model_dump(),
        runtime=detector.runtime.name,
        trained_on=meta.trained_on,
        face_detector=detector.finds_faces,
        thresholds={name: round(value, DIGITS) for name, value in meta.thresholds.model_dump().items()},
        figures={name: {part: value and round(value, DIGITS) for part, value in figure.items()} for name, figure in meta.figures.items()},
        lineage=meta.lineage,
        limits=limits | {"formats": settings.formats},
        trouble=answers.trouble_text(trouble),
        challenger=answers.Challenger.of(context.trial),
    )
    return _json(about)


async def card(request: Request) -> Response:
    """GET /model/card: the model card, as a page or in Markdown."""
    text = _context(request).served().detector.card
    if text is None:
        raise ApiError("no_card")
    return card_page.answer(request, text)


async def metrics(request: Request) -> Response:
    """GET /metrics: metrics for Prometheus."""
    context = _context(request)
    # Imported late, like the counters in serving/context.py.
    from serving import gauges

    def read() -> bytes:
        return context.metrics.text([*gauges.drift(context.settings.var / DRIFT_REPORT), *gauges.challenger(context.trial)])

    return Response(await context.threads.run(read), media_type="text/plain; version=0.0.4; charset=utf-8")


async def drift(request: Request) -> Response:
    """GET /drift: the last report of the drift flow."""
    path = _context(request).settings.var / DRIFT_REPORT
    try:
        checked = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        report = {"checked": checked, **json.loads(path.read_text())}
        report.pop("announced", None)  # the id of some client's answer, which only that client should know
        return JSONResponse(report)
    except FileNotFoundError:
        raise ApiError("no_report") from None
    except (OSError, ValueError, TypeError):  # not JSON, not an object, or with NaN or infinity, which JSON lacks
        raise ApiError("no_report", "The last drift report cannot be read", "The next run of the flow `drift` writes a new one.") from None


async def schema(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(openapi.document(_context(request).settings.max_batch))


async def status(_: Request) -> Response:
    """GET /status: the status page for operators."""
    return FileResponse(WEB / "status.html")


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


@asynccontextmanager
async def _deadline(context: Context) -> AsyncGenerator[None, None]:
    seconds = context.settings.timeout
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ApiError("timeout", f"No answer within {seconds:g} seconds") from None


def _record_answer(context: Context, opened: Opened, served: Served, found: Predicted, started: float) -> answers.Prediction:
    """Count and record an answer, and return its body."""
    id, seconds = str(uuid.uuid4()), time.perf_counter() - started
    context.metrics.predicted(found.verdict, served.version, seconds)
    context.log.record(id=id, package=served.detector.package.digest, version=served.version, prediction=found)
    context.trial.record_answer(opened.picture, id, served, found.verdict)
    return answers.Prediction.of(id, found, opened.signed, served, seconds)


async def _opened(context: Context, champion: Served, data: bytes) -> Opened | ApiError:
    """An image of a batch, ready for the network; or the error that it gets instead."""
    try:
        return await context.open(champion, data)
    except ImageError as error:
        return ApiError(error.code, error.message, error.hint)
    except Exception:  # whatever goes wrong with one image, the others get their answers
        log.exception("an image of a batch failed")
        return internal()


async def _consented_image(form: FormData) -> bytes | None:
    """The image, if the user agreed to have it kept. Raises ApiError: bad_value if it came without consent, wrong_field."""
    keep = upload.text(form, "keep_image", ("true", "false"), LABEL, default="false") == "true"
    if "image" in form and not keep:
        raise ApiError("bad_value", "An image came without `keep_image=true`", "Send no image, or the user's agreement with it.")
    if not keep:
        return None
    return await upload.files(form, "image", 1, LABEL)[0].read()


async def _find(context: Context, id: str) -> predictions.Recorded:
    """Look up an answer in the prediction log, which the newest ones reach with a delay. Raises ApiError: unknown_id."""
    path = context.settings.var / predictions.FILE
    for wait in (0.0, FLUSH_SECONDS):
        await anyio.sleep(wait)
        if (answer := await context.threads.run(lambda: predictions.find(path, id))) is not None:
            return answer
    raise ApiError("unknown_id", f"There is no answer with the id {id[:64]!r}")
