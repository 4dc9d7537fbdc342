"""Into the live page and out of it: one-time links, the cookie, signing out."""

import time

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from orchestrator.control import notices
from orchestrator.control.guard import COOKIE, LOGIN, PAGE
from orchestrator.control.schemas.platform import PageLinkAnswer
from orchestrator.control.sessions import LINK_S, SESSION_S, Sessions


def router(sessions: Sessions) -> APIRouter:
    routes = APIRouter(tags=["page"])

    @routes.post("/v1/page/links", status_code=201)
    async def make_link(request: Request, response: Response) -> PageLinkAnswer:
        """Make a link that signs a browser in to the live page as this key's bearer, once."""
        response.headers["Cache-Control"] = "no-store"
        token = sessions.offer(str(request.state.tenant), str(request.state.key), time.time())
        return PageLinkAnswer(path=f"{LOGIN}{token}", expires_s=LINK_S)

    @routes.get(LOGIN + "{token}", include_in_schema=False)
    async def login(token: str, request: Request) -> Response:
        """The browser's side of a link. The cookie goes to the page only, not to what listens on other ports of this host."""
        session = sessions.redeem(token, time.time())
        if session is None:
            return notices.signed_out(410, "This link was used already or is too old")
        answer = RedirectResponse(f"{PAGE}/", 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        answer.set_cookie(
            COOKIE, session, int(SESSION_S), path=PAGE, secure=request.url.scheme == "https", httponly=True, samesite="strict"
        )
        return answer

    @routes.post(f"{PAGE}/logout", include_in_schema=False)
    async def logout(request: Request) -> Response:
        """Ends the session here, whatever the browser does with its cookie."""
        sessions.end(str(request.state.session))
        answer = notices.signed_out(200, "You are signed out")
        answer.delete_cookie(COOKIE, path=PAGE, httponly=True, samesite="strict")
        return answer

    return routes
