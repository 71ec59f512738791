"""The OpenAPI document: what each route takes and gives, written from the versions that are loaded.

Bodies are read by `evergreen.serving.payloads`, not by a framework, so this is written by hand,
and a test holds it against the server. Where JSON Schema can't say what is allowed (columns in
any order, lists of one length) it shows the form in which the model's signature has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evergreen import __version__
from evergreen.declaration import Task
from evergreen.lifecycle.contracts import Feature
from evergreen.serving.payloads import Expected

Schema = dict[str, Any]
_BOUNDS = {"minimum": -(2**63), "maximum": 2**63 - 1}
_WHOLE: Schema = {"type": ["integer", "null"], **_BOUNDS}
_NUMBER: Schema = {
    "type": ["number", "null"],
    "description": "Of double precision; one beyond its range is refused.",
}
_TEXT: Schema = {"type": ["string", "null"]}
_KEY: Schema = {"type": ["number", "string", "null"], **_BOUNDS}
_CSV_NUMBER = r"(-?[0-9]{1,15}(\.[0-9]{1,15})?)?"
_CSV_TEXT = "[A-Za-z0-9_ -]{0,20}"
_ERRORS = {
    400: "Not as the model needs it: the error names column and row, counted from 0.",
    401: "The API key is missing or wrong.",
    408: "The body didn't arrive in time.",
    413: "Too many rows, or too large a body.",
    415: "Another content type, charset or encoding than is listed.",
    429: "Too many requests wait; come back after Retry-After seconds.",
    500: "The model failed on this request.",
    503: "No version is loaded or it hangs, its features can't be had, or the prediction log can't "
    "be written.",
    504: "The answer took too long.",
}


@dataclass(frozen=True)
class Described:
    """A model as its routes are described.

    :ivar features: of the version that answers; None while none is loaded.
    :ivar keys: the columns that online features are looked up by.
    :ivar online: the features that are looked up.
    :ivar classes: their names, of a classifier.
    """

    name: str
    task: Task
    expected: Expected
    prefixes: Sequence[str]
    features: Sequence[Feature] | None
    keys: Sequence[Feature]
    online: Sequence[str]
    classes: Sequence[str]


def openapi(models: Sequence[Described], *, guarded: bool) -> Schema:
    """The document.

    :param guarded: whether an API key is asked for.
    """
    paths: Schema = _common(guarded=guarded)
    for model in models:
        for prefix in model.prefixes:
            paths[f"{prefix}/invocations"] = _route(model, "invocations", prefix, guarded=guarded)
            paths[f"{prefix}/predict"] = _route(model, "predict", prefix, guarded=guarded)
    components: Schema = {"schemas": {"Error": _error(), "Version": _version()}}
    if guarded:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Evergreen",
            "version": __version__,
            "description": "Answers from champions, by features or by entity keys.",
        },
        "paths": paths,
        "components": components,
    }


def _common(*, guarded: bool) -> Schema:
    """The routes that aren't a model's."""
    state = {"application/json": {"schema": {"$ref": "#/components/schemas/Version"}}}
    page = {"text/plain": {"schema": {"type": "string"}}}
    document = {"application/json": {"schema": {"type": "object"}}}
    empty = {"application/json": {"schema": {"type": "object", "maxProperties": 0}}}
    routes = {
        "/ping": ("ping", "Whether every model can answer.", empty, (503,), False),
        "/version": ("version", "Which versions are loaded.", state, (), guarded),
        "/metrics": ("metrics", "Metrics for Prometheus.", page, (), guarded),
        "/openapi.json": ("openapi", "This document.", document, (), guarded),
    }
    return {
        path: {
            "get": {
                "operationId": name,
                "summary": summary,
                "responses": {
                    "200": {"description": "As asked.", "content": content},
                    **_errors((*codes, *((401,) if locked else ()))),
                },
                **_security(guarded=locked),
            }
        }
        for path, (name, summary, content, codes, locked) in routes.items()
    }


def _route(model: Described, route: str, prefix: str, *, guarded: bool) -> Schema:
    codes = (400, *((401,) if guarded else ()), 408, 413, 415, 429, 500, 503, 504)
    predicts = route == "predict"
    content = {
        "application/json": {"schema": _rows_asked(model) if predicts else _invocations(model)}
    }
    if not predicts and model.features is not None:
        content["text/csv"] = {"schema": _csv(model)}
    answer = _predicted(model) if predicts else _invoked(model)
    summary = (
        f"Answers of {model.name} by entity keys and request features."
        if predicts
        else f"Answers of {model.name} to features, as MLflow's clients ask."
    )
    return {
        "post": {
            "operationId": f"{route}_{model.name}" if prefix else route,
            "summary": summary,
            "parameters": [
                {
                    "name": "X-Request-Id",
                    "in": "header",
                    "required": False,
                    "description": "Kept in the log and sent back when it is of 1 to 128 printable "
                    "ASCII characters; another one is made when it isn't.",
                    "schema": {"type": "string"},
                }
            ],
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": {
                    "description": "A prediction for each row, in order.",
                    "headers": {**_header("X-Request-Id"), **_header("X-Evergreen-Version")},
                    "content": {"application/json": {"schema": answer}},
                },
                **_errors(codes),
            },
            **_security(guarded=guarded),
        }
    }


def _header(name: str) -> Schema:
    return {name: {"required": True, "schema": {"type": "string"}}}


def _security(*, guarded: bool) -> Schema:
    return {"security": [{"bearer": []}, {"key": []}]} if guarded else {}


def _errors(codes: Sequence[int]) -> Schema:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: Schema = {
        str(code): {"description": _ERRORS[code], "content": body} for code in sorted(codes)
    }
    if "429" in found:
        found["429"]["headers"] = {
            "Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}
        }
    return found


def _rows(model: Described, properties: Schema, required: Sequence[str]) -> Schema:
    row = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "array", "minItems": 1, "maxItems": model.expected.rows, "items": row}


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _besides(model: Described) -> Schema:
    """The columns that a row may hold besides features."""
    names = (*model.expected.entities, *model.expected.slices)
    moment = {"type": ["string", "null"], "format": "date-time"}
    return {**dict.fromkeys(names, _KEY), model.expected.timestamp: moment}


def _feature(feature: Feature) -> Schema:
    return _NUMBER if feature.type == "number" else _TEXT


def _rows_asked(model: Described) -> Schema:
    keys = {key.name: _TEXT if key.type == "string" else _WHOLE for key in model.keys}
    own = [f for f in model.features or () if f.name not in model.online]
    features = {feature.name: _feature(feature) for feature in own}
    properties = {**_besides(model), **keys, **features}
    return _object(rows=_rows(model, properties, [*keys, *features]))


def _invocations(model: Described) -> Schema:
    features = {feature.name: _feature(feature) for feature in model.features or ()}
    records = _rows(model, {**_besides(model), **features}, list(features))
    forms = [_object(**{name: records}) for name in ("dataframe_records", "inputs", "instances")]
    if model.features is not None:
        lists = _lists(model)
        split = _object(columns={"const": list(features)}, data=lists)
        split["properties"]["index"] = {"type": "array"}
        split["description"] = "Columns may stand in any order, and others beside them."
        columns = _object(dataframe_split=split)
        forms += [_object(instances=lists), columns]
    return {
        "oneOf": forms,
        "description": "inputs may also be an object of lists of one length, column by column.",
    }


def _lists(model: Described) -> Schema:
    """Rows as lists, in the signature's order."""
    features = [_feature(feature) for feature in model.features or ()]
    row = {
        "type": "array",
        "prefixItems": features,
        "minItems": len(features),
        "maxItems": len(features),
    }
    return {"type": "array", "minItems": 1, "maxItems": model.expected.rows, "items": row}


def _csv(model: Described) -> Schema:
    features = model.features or ()
    header = ",".join(feature.name for feature in features)
    row = ",".join(_CSV_NUMBER if f.type == "number" else _CSV_TEXT for f in features)
    return {
        "type": "string",
        "pattern": f"^{header}\\n({row}\\n){{1,20}}$",
        "description": "A header row, then a row each; an empty field is a missing value. Columns "
        "may stand in any order, others beside them, and text may be quoted.",
    }


def _invoked(model: Described) -> Schema:
    value: Schema = {"type": "number"}
    one = value if model.task is Task.REGRESSION else {"type": "array", "items": value}
    return _object(predictions={"type": "array", "minItems": 1, "items": one})


def _predicted(model: Described) -> Schema:
    common: Schema = {
        "fallback": {"enum": [None, "defaults", "last_known"]},
        "feature_age_seconds": {"type": ["number", "null"]},
    }
    share: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    own: Schema = {"prediction": share if model.task is Task.BINARY else {"type": "number"}}
    if model.task is Task.MULTICLASS:
        named: Schema = dict.fromkeys(model.classes, share)
        probabilities = _object(**named) if named else {"type": "object"}
        own = {"probabilities": probabilities, "class": {"type": "string"}}
    predictions = {"type": "array", "minItems": 1, "items": _object(**own, **common)}
    text = {"type": "string"}
    return _object(
        model={"const": model.name}, version=text, request_id=text, predictions=predictions
    )


def _error() -> Schema:
    place = {"row": {"type": ["integer", "null"]}, "column": {"type": ["string", "null"]}}
    return _object(error=_object(code={"type": "string"}, reason={"type": "string"}, **place))


def _version() -> Schema:
    text, perhaps = {"type": "string"}, {"type": ["string", "null"]}
    model = {
        "type": "object",
        "properties": {
            "version": perhaps,
            "wanted": perhaps,
            "candidate": perhaps,
            "mode": {"enum": ["shadow", "canary"]},
            "refused": {"type": "object", "additionalProperties": text},
            "candidate_refused": {"type": "object", "additionalProperties": text},
            "registry_problem": perhaps,
            "from_cache": {"type": "boolean"},
            "loaded_at": perhaps,
        },
        "required": [
            "version", "wanted", "candidate", "mode", "refused", "candidate_refused",
            "registry_problem", "from_cache", "loaded_at",
        ],
    }  # fmt: skip
    models = {"type": "object", "additionalProperties": model}
    return _object(replica=text, started_at={**text, "format": "date-time"}, models=models)
