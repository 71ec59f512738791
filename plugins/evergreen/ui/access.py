"""Who may see and do what: Airflow's auth manager decides, by the DAG ``<model>.retrain``.

An app that a plugin mounts is not authenticated by Airflow, so every route here asks. A form
carries a token that is signed for its user and model, lives for half a day and names the act it
may do once: what another site sends in a person's name has none.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Path, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from evergreen.declaration.types import Name

#: Seconds for which a form can be sent.
FORM_LIVES = 12 * 3600
#: What a person may do, and what Airflow must allow for it: method, and which part of the DAG.
RIGHTS: dict[str, tuple[Literal["POST", "PUT"], DagAccessEntity | None, str]] = {
    "retrain": ("POST", DagAccessEntity.RUN, "retrain"),
    "roll_back": ("POST", DagAccessEntity.RUN, "rollback"),
    "acknowledge": ("PUT", DagAccessEntity.HITL_DETAIL, "escalate"),
    "decline": ("PUT", DagAccessEntity.HITL_DETAIL, "escalate"),
    "pause": ("PUT", None, "retrain"),
    "resume": ("PUT", None, "retrain"),
}


def readable(request: Request, user: GetUserDep, model: Annotated[Name, Path()]) -> str:
    """The model in a path, if the user may see it.

    :raises HTTPException: 401 without a token, 403 when Airflow doesn't let the user read its DAG.
    """
    requires_access_dag("GET", None, f"{model}.retrain")(request, user)
    return model


Model = Annotated[str, Depends(readable)]


def check_right(request: Request, user: BaseUser, model: str, act: str) -> None:
    """Refuse an act that Airflow doesn't let the user do.

    :raises HTTPException: 403.
    """
    method, entity, family = RIGHTS[act]
    requires_access_dag(method, entity, f"{model}.{family}")(request, user)


def rights(request: Request, user: BaseUser, model: str) -> set[str]:
    """What a user may do with a model; the page shows no button for the rest."""
    allowed = set()
    for act in RIGHTS:
        try:
            check_right(request, user, model, act)
        except HTTPException as error:
            if error.status_code != 403:
                raise
        else:
            allowed.add(act)
    return allowed


def sign(user: BaseUser, model: str, act: str) -> str:
    """A token for one form."""
    return _serializer().dumps([user.get_id(), model, act, secrets.token_hex(8)])


def check_form(request: Request, user: BaseUser, model: str, act: str, token: str) -> str:
    """What a form's token stands for: the key of its act.

    :raises HTTPException: 403 for a form that wasn't made for this user, model and act, is too old,
        or was sent from another site.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise HTTPException(403, "this form was sent from another site; open the page anew")
    try:
        signed: Any = _serializer().loads(token, max_age=FORM_LIVES)
    except BadSignature:  # an expired one too
        raise HTTPException(403, "this form is too old or not ours; open the page anew") from None
    if signed[:3] != [user.get_id(), model, act]:
        raise HTTPException(403, "this form was made for someone or something else")
    return str(signed[3])


def token_of(request: Request) -> str:
    """The user's own token, to ask Airflow's API in their name."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer
    return request.cookies.get(COOKIE_NAME_JWT_TOKEN, "")


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(conf.get_mandatory_value("api", "secret_key"), salt="evergreen")
