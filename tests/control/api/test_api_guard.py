"""Who may call the API: scopes of tokens, loopback, and browsers that act for other sites."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from control.api.guard import TokenScope, is_loopback, token_scope
from schemas.settings import Settings
from tests.support.served_api import Api

DISMISS = "/api/dead-letters/0:1/dismiss"
ADMIN, READ = "an-admin-token", "a-reading-token"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_loopback_is_open_without_a_token_and_errors_have_remedies(api: Api) -> None:
    assert api.get("/api/hosts") == (200, {"items": [], "cursor": None})
    status, answer = api.post(DISMISS)
    assert (status, answer["version"], answer["error"]["code"]) == (404, 1, "not_found")
    assert set(answer["error"]) == {"code", "message", "remedy"}


def test_tokens_have_scopes(api_with: Callable[..., Api]) -> None:
    """Also on loopback, once a token is set."""
    api = api_with(api_token=ADMIN, api_read_token=READ)
    answers = {
        token: (api.get("/api/hosts", **bearer(token))[0], api.post(DISMISS, **bearer(token))[0])
        for token in (ADMIN, READ, "", "wrong", ADMIN + "x", "\u00e9")
    }
    assert answers == {ADMIN: (200, 404), READ: (200, 403)} | dict.fromkeys(
        ("", "wrong", ADMIN + "x", "\u00e9"), (401, 401)
    )
    assert api.get("/api/hosts")[0] == 401
    assert api.get("/api/hosts", Authorization=f"Basic {ADMIN}")[0] == 401
    assert api.get("/api/nothing")[0] == 401, "what is there is not told"
    assert api.get("/healthz")[0] == 200


def test_off_loopback_nothing_is_open(api_with: Callable[..., Api]) -> None:
    """G9: without a token the API is closed, and health and metrics are not."""
    api = api_with(http_host="0.0.0.0")
    status, answer = api.get("/api/hosts")
    assert (status, answer["error"]["code"]) == (401, "unauthorized")
    assert "SLUICE_API_TOKEN" in answer["error"]["remedy"]
    assert api.get("/healthz")[0] == 200
    guarded = api_with(http_host="0.0.0.0", api_read_token=READ)
    assert guarded.get("/api/hosts", **bearer(READ))[0] == 200
    assert guarded.post(DISMISS, **bearer(READ))[0] == 403
    assert guarded.post(DISMISS, **bearer(""))[0] == 401


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "https://evil.test"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
        ({"Sec_Fetch_Site": "cross-site"}, "foreign_origin"),
        ({"Sec_Fetch_Site": "same-site"}, "foreign_origin"),
        ({"Host": "rebound.test"}, "foreign_host"),
    ],
)
def test_a_web_page_cannot_post_to_loopback(api: Api, headers: dict[str, str], code: str) -> None:
    status, answer = api.post(DISMISS, **headers)
    assert (status, answer["error"]["code"]) == (403, code)


def test_a_rebound_name_cannot_read_either(api: Api) -> None:
    assert api.get("/api/status", Host="rebound.test:80")[1]["error"]["code"] == "foreign_host"
    assert api.get("/api/hosts", Host=f"localhost:{api.port}")[0] == 200


def test_the_own_page_may_post(api: Api) -> None:
    own = {"Origin": f"http://127.0.0.1:{api.port}", "Sec_Fetch_Site": "same-origin"}
    assert api.post(DISMISS, **own)[0] == 404


def test_a_form_cannot_pass_for_json(api: Api) -> None:
    """What a page can send without asking first has another content type."""
    status, answer = api.request("POST", "/api/skipped/fill", b'{"ids": [1]}', {"Content_Type": "text/plain"})
    assert (status, answer["error"]["code"]) == (415, "invalid")


def test_an_empty_token_is_no_token() -> None:
    assert token_scope(Settings(), "") is None
    assert token_scope(Settings(api_read_token=READ), READ) == TokenScope.READ
    assert token_scope(Settings(api_token=READ, api_read_token=READ), READ) == TokenScope.ADMIN


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LOCALHOST", True), ("0.0.0.0", False), ("", False)],
)
def test_loopback_addresses_are_recognized(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_metrics_and_health_are_read_under_own_names_only(api_with: Callable[..., Api], path: str) -> None:
    """G9: a rebound name read /metrics; probes and Prometheus ask by an address."""
    for api in (api_with(), api_with(http_host="0.0.0.0", http_names="sluice.example.org")):
        status, answer = api.get(path, Host="rebound.test:8080")
        assert (status, answer["error"]["code"]) == (403, "foreign_host")
    assert status_of(api, path, "sluice.example.org") == status_of(api, path, "10.1.2.3:8080") == 200


def status_of(api: Api, path: str, host: str) -> int:
    """Of an answer that may be no JSON."""
    api.health.connected = True
    asked = urllib.request.Request(api.url + path, headers={"Host": host})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return int(answer.status)
