"""The commands of private networks, against an API that answers as the contract says."""

import json
from pathlib import Path
from typing import Any

from doubles.canned_api import Api, described, version


def network(name: str = "shop", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "number": 7,
        "cidrs": ["10.0.0.0/16"],
        "rules": ["tcp:10.0.1.0/24:5432"],
        "address": "10.0.0.10",
        "resolver": "",
        "generation": 3,
        "created": 1.0,
        "proxies": [{"name": "shop-1", "address": "p:8706", "role": "primary"}],
        "functions": ["order"],
        "tunnels": [
            {"node": "n1", "backend": "kernel", "ready": True, "generation": 3, "reason": "by shop-1", "attached": 4},
            {"node": "n2", "backend": "none", "ready": False, "generation": 0, "reason": "no user namespaces", "attached": 0},
        ],
        "away": ["n3"],
        **more,
    }


def test_a_private_network_is_made_and_what_comes_next_is_said(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/vpcs", network(), 201)
    api.on("GET", "/v1/tenant", {"name": "acme"})
    rule = "tcp:10.0.1.0/24:5432"
    code, out, _ = foreglow("vpc", "create", "shop", "--cidr", "10.0.0.0/16", "--rule", rule, "--address", "10.0.0.10")
    assert code == 0
    assert "foreglow node-token --role vpc-proxy --vpc acme/shop" in out
    sent = json.loads(api.asked[0][2])
    assert sent == {"name": "shop", "cidrs": ["10.0.0.0/16"], "rules": [rule], "address": "10.0.0.10", "resolver": ""}


def test_what_is_not_given_stays_when_a_private_network_is_changed(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/vpcs/shop", network())
    api.on("PUT", "/v1/vpcs/shop", network(rules=["tcp:10.0.1.5/32:1"]))
    code, out, _ = foreglow("vpc", "change", "shop", "--rule", "tcp:10.0.1.5/32:1")
    assert (code, "tcp:10.0.1.5/32:1" in out) == (0, True)
    sent = json.loads(api.asked[1][2])
    assert sent == {"cidrs": ["10.0.0.0/16"], "rules": ["tcp:10.0.1.5/32:1"], "address": "10.0.0.10", "resolver": ""}


def test_a_private_network_is_shown_with_each_nodes_way_there(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/vpcs/shop", network())
    api.on("GET", "/v1/vpcs", {"vpcs": [network(proxies=[])]})
    code, out, _ = foreglow("vpc", "describe", "shop")
    assert code == 0
    for said in ("number 7", "10.0.0.10", "shop-1", "primary", "kernel", "no user namespaces", "did not answer: n3", "order"):
        assert said in out, said
    code, out, _ = foreglow("vpc", "list")
    assert (code, "none" in out, "10.0.0.0/16" in out) == (0, True, True)


def test_a_refusal_of_a_private_network_names_its_field(api: Api, foreglow: Any) -> None:
    problem = {"title": "Bad Request", "status": 400, "detail": "0.0.0.0/0 is everything there is", "field": "cidrs"}
    api.on("POST", "/v1/vpcs", problem, 400)
    code, _, err = foreglow("vpc", "create", "all", "--cidr", "0.0.0.0/0")
    assert (code, "everything there is" in err) == (1, True)
    api.on("DELETE", "/v1/vpcs/shop", {"title": "Conflict", "status": 409, "detail": "used by 1 functions (order)"}, 409)
    code, _, err = foreglow("vpc", "remove", "shop")
    assert (code, "order" in err) == (1, True)


def test_a_function_says_in_which_network_it_is(api: Api, foreglow: Any) -> None:
    inside = version(
        2,
        vpc="shop",
        egress="internet",
        conditions=[
            {"name": "network", "status": "true", "reason": "acme/shop is reached by 1 of 1 nodes: n1 (kernel)", "since": 1.0}
        ],
    )
    api.on("GET", "/v1/functions/a", described("a", inside))
    api.on("GET", "/v1/instances", {"instances": [], "templates": [], "away": []})
    code, out, _ = foreglow("describe", "a")
    assert (code, "in private network shop, reaches the internet" in out, "n1 (kernel)" in out) == (0, True, True)


def test_a_proxys_token_says_for_which_network(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/join-tokens", {"token": "fgj_x.y", "role": "vpc-proxy", "expires": 1.0}, 201)
    code, out, _ = foreglow("node-token", "--role", "vpc-proxy", "--vpc", "acme/shop")
    assert (code, out.strip()) == (0, "fgj_x.y")
    assert json.loads(api.asked[0][2])["vpc"] == "acme/shop"


def test_a_proxy_that_is_nowhere_says_what_to_do(foreglow: Any, tmp_path: Path) -> None:
    code, _, err = foreglow("vpc", "proxy", "--vpc", "acme/shop", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "new"))
    assert (code, "foreglow join" in err) == (1, True)
