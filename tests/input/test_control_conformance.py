"""The management API against its own OpenAPI document: every operation, good and bad input, in sequences along its links.

A real platform answers. `FULL=1` sends 100,000 requests, otherwise 5,000. Failures are collected, so that one run shows all.
"""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeVar

import pytest
import requests
import schemathesis
from doubles.archives import archives, good
from doubles.platforms import Platform
from doubles.profiles import API_CASES, SEED
from doubles.wires import Keeping, bent
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

CALL_S = 30.0  # on a machine with much else to do
READY_S = 120.0
SHARE_IN_SEQUENCES = 0.2
STEPS = 8
ATTEMPTS = 200
BENT = 2  # of each request that was made; making one costs several times what sending it does
SETTLE_S, SETTLES = 2.0, 15
SENT_AGAIN = 2
BUSY_S, BUSY_TIMES = 1.0, 15  # control says 503 and Retry-After where another process did not answer it in time
RANDOM_BYTES = "Invalid syntax: random bytes"
WRONG_NO_MORE = re.compile(r"\s*- (header: violates `required` \(was Authorization\)|body: .*)$")
AIMED = 0.5
OWN_TENANT = "default"
GROWTH_MB, GROWTH_DESCRIPTORS = 96.0, 64
QUIET = settings(phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
LEFT_TO_OTHERS = [
    checks.ignored_auth,  # sends each request twice more; test_without_a_key does it once for each operation
    checks.object_level_authorization,
]
RULES_BESIDE_THE_SCHEMA = {
    "POST /v1/packages": "the bytes must be a zip",
    "PUT /v1/functions/{name}": "the package must be there and hold the handler",
    "POST /v1/vpcs": "CIDRs, rules and addresses are read as such",
    "PUT /v1/vpcs/{name}": "likewise",
    "POST /v1/join-tokens": "a proxy names its private network, others none",
    "PUT /v1/functions/{name}/aliases/{alias}": "a ramp must rise, a share needs a second version",
    "POST /v1/traces/import": "the text must be CSV with the right columns",
}

schemathesis.openapi.media_type("application/zip", archives())
Answer = TypeVar("Answer", requests.Response, schemathesis.Response)


class Explorer:
    """Sends cases and keeps what was wrong, once for each kind of it, with the command that shows it again."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.session = Keeping()
        self.wrong: dict[tuple[str, str], str] = {}
        self.headers = {"Authorization": f"Bearer {platform.key}"}
        self.schema = schemathesis.openapi.from_dict(self._get("/openapi.json").json())
        self.operations = [found.ok() for found in self.schema.get_all_operations()]
        self.key_id = next(key["key_id"] for key in self._get("/v1/keys").json()["keys"] if key["name"] == "admin")
        self.sent = 0
        self.statuses: dict[str, Counter[int]] = {}
        self._random = Random(SEED)

    def _get(self, path: str) -> requests.Response:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, **how: Any) -> requests.Response:
        how = {"headers": self.headers, "timeout": CALL_S, **how}
        return self._patiently(lambda: self.session.request(method, self.platform.control + path, **how))

    def _patiently(self, send: Callable[[], Answer]) -> Answer:
        """What is answered once nobody is busy any more. Where that goes on it is a fault; after one there is no more waiting."""
        answer = send()
        for _ in range(BUSY_TIMES):
            if answer.status_code != 503 or "retry-after" not in answer.headers or self.wrong:
                break
            time.sleep(BUSY_S)
            answer = send()
        return answer

    def prepare(self) -> None:
        """What the examples of the document name is there, and ran: `checkout`, of the package of the links."""
        zipped = {**self.headers, "Content-Type": "application/zip"}
        made = self._ask("POST", "/v1/packages", data=good(), headers=zipped)
        wanted = {"package": made.json()["digest"], "handler": "shop:handle", "calls": ["checkout"]}
        assert self._ask("PUT", "/v1/functions/checkout", json=wanted).status_code == 202
        deadline = time.monotonic() + READY_S
        while self._invoke().status_code != 200:
            assert time.monotonic() < deadline, f"{self._invoke().text}\n{self.platform.logs()}"
            time.sleep(0.1)

    def _invoke(self) -> requests.Response:
        url = self.platform.functions + "/function/checkout"
        return self.session.post(url, json={}, headers=self.headers, timeout=CALL_S)

    def aim(self, case: schemathesis.Case) -> None:
        """Names at random are nobody's: every other request is about a function that is there."""
        if "name" in (case.path_parameters or {}) and self._random.random() < AIMED:
            case.path_parameters["name"] = "checkout"

    def spare(self, case: schemathesis.Case) -> None:
        """Nobody may saw off the branch all this sits on: the tenant and the key it is done with."""
        for name, value in (case.path_parameters or {}).items():
            if value == self.key_id or (value == OWN_TENANT and case.path.startswith("/v1/tenants/")):
                case.path_parameters[name] = "nobody"

    def held(self) -> dict[str, tuple[float, int]]:
        """What the platform holds with `checkout` alone: the node has descriptors for each instance, and some asked for many that
        stay."""
        for function in self._get("/v1/functions?limit=1000").json()["functions"]:
            assert self._ask("DELETE", f"/v1/functions/{function['name']}").status_code == 204
        self.prepare()
        self._ask("POST", "/v1/cool", json={})
        found = self.platform.held()
        for _ in range(SETTLES):
            before = found
            time.sleep(SETTLE_S)
            found = self.platform.held()
            if found.keys() == before.keys() and all(number >= before[name][1] for name, (_, number) in found.items()):
                break  # nothing lets go any more
        return found

    def call(self, case: schemathesis.Case, recorder: Any = None) -> schemathesis.Response | None:
        self.sent += 1
        self.spare(case)
        try:
            how = {"session": self.session, "headers": self.headers, "timeout": CALL_S}
            answer = self._patiently(lambda: case.call(base_url=self.platform.control, **how))
        except requests.RequestException as error:
            self._note(case.operation.label, f"no answer: {type(error).__name__}", f"{error}\n{_shown(case)}")
            return None
        self.statuses.setdefault(case.operation.label, Counter())[answer.status_code] += 1
        self.check(case, answer, recorder)
        return answer

    def check(self, case: schemathesis.Case, answer: schemathesis.Response, recorder: Any = None) -> None:
        left_out = list(LEFT_TO_OTHERS)
        if case.operation.label in RULES_BESIDE_THE_SCHEMA:
            left_out.append(checks.positive_data_acceptance)
        if set(case.query or {}) - {one.name for one in case.operation.query}:
            left_out.append(checks.negative_data_rejection)  # parameters nobody knows are ignored, as HTTP has it
        if answer.status_code == 421:
            left_out.append(checks.negative_data_rejection)  # a header at random was a Host that is not ours: refused as well
        try:
            case.validate_response(answer, headers=self.headers, excluded_checks=left_out, recorder=recorder)
        except FailureGroup as group:
            for failure in group.exceptions:
                if RANDOM_BYTES in str(getattr(failure, "message", "")) and _is_object(answer.request.body):
                    continue  # bytes at random that happen to be what was wanted, or were left as they were
                if _made_good(str(getattr(failure, "message", "")), case, answer):
                    continue
                told = f"{answer.status_code} {answer.text[:300]!r} {getattr(failure, 'message', failure)}"
                self._note(case.operation.label, getattr(failure, "title", type(failure).__name__), f"{told}\n{_shown(case)}")

    def bend(self, label: str, request: requests.PreparedRequest) -> None:
        """The same request, wrong on the wire. Whatever comes back is sound."""
        self.sent += 1
        wrong = bent(request, self._random)
        for left in reversed(range(SENT_AGAIN + 1)):
            try:
                answer = self._patiently(lambda: self.session.send(wrong, timeout=CALL_S, allow_redirects=False))
                break
            except requests.RequestException as error:
                # who closes before all was read resets, and a reset that is quicker than the reader takes the answer with it
                if not left:
                    self._note(label, f"no answer, bent: {type(error).__name__}", f"{error}\n{_wire(wrong)}")
                    return
        problem = unsound(answer, str(wrong.method))
        if problem:
            self._note(label, problem, f"{answer.status_code} {answer.text[:300]!r}\n{_wire(wrong)}")

    def _note(self, label: str, what: str, told: str) -> None:
        self.wrong.setdefault((label, what), told)

    def report(self) -> str:
        return "\n\n".join(f"{label}: {what}\n{told}" for (label, what), told in self.wrong.items())


def unsound(answer: requests.Response, method: str) -> str:
    """What is wrong with an answer whatever was asked; empty when nothing is."""
    if answer.status_code >= 500:
        return f"status {answer.status_code}"
    if answer.status_code < 400 or method == "HEAD":
        return ""
    if answer.status_code == 400 and answer.content == b"Invalid HTTP request received.":
        return ""  # the parser's own answer to what is no HTTP
    if answer.headers.get("content-type") != "application/problem+json":
        return "an error that is no problem document"
    problem = answer.json()
    return "" if problem["status"] == answer.status_code and problem["title"] and problem["detail"] else "an empty problem"


def _is_object(body: bytes | str | None) -> bool:
    try:
        return isinstance(json.loads(body or b""), dict)
    except ValueError:
        return False


def _made_good(told: str, case: schemathesis.Case, answer: schemathesis.Response) -> bool:
    """Whether all that was to be wrong is the key, which is sent with every request, and a body that the schema takes."""
    _, said, wrong = told.partition("Invalid component:")
    if not said or not all(WRONG_NO_MORE.match(line) for line in wrong.splitlines() if line.strip()):
        return False
    with contextlib.suppress(ValueError):
        sent = json.loads(answer.request.body or b"null")
        return any(body.is_valid(sent) for body in case.operation.body)
    return False


def _shown(case: schemathesis.Case) -> str:
    return case.as_curl_command()[:1500]


def _wire(request: requests.PreparedRequest) -> str:
    return f"{request.method} {request.url} {dict(request.headers)} {(request.body or b'')[:300]!r}"[:1500]


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """On a platform of its own: it removes what it finds. That has to end well after all of it."""
    platform = Platform(tmp_path_factory.mktemp("explored"), FOREGLOW_PREWARM_INSTANCES="8", FOREGLOW_STANDBYS="1")
    try:
        yield Explorer(platform)
    finally:
        code = platform.stop()
    assert code == 0, platform.logs()
    assert not (platform.state / "addresses.json").exists()


def once(explorer: Explorer, operation: Any, examples: int, edges: bool, variant: int) -> None:
    """Edge values first, then `examples` at random, each followed by bent ones."""
    modes, configured = list(GenerationMode), explorer.schema.config.generation
    if edges:
        for case in explorer.schema.iter_coverage_cases(operation, generation_modes=modes, generation_config=configured):
            explorer.call(case)
    for mode in modes:
        with contextlib.suppress(Unsatisfiable):  # nothing of the operation can be wrong
            at_random(explorer, operation, mode, max(1, examples // (2 * (1 + BENT))), SEED + variant)


def at_random(explorer: Explorer, operation: Any, mode: GenerationMode, examples: int, from_seed: int) -> None:
    @seed(from_seed)
    @settings(QUIET, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            explorer.aim(case)
        answer = explorer.call(case)
        if answer is not None:
            for _ in range(BENT):
                explorer.bend(operation.label, answer.request)

    attempt()


def sequences(explorer: Explorer, count: int) -> None:
    """Along the links: what an answer gave goes into the next request."""

    class Sequence(explorer.schema.as_state_machine()):  # type: ignore[misc]
        def call(self, case: schemathesis.Case, **_: Any) -> schemathesis.Response:
            answer = explorer.call(case, self.recorder)
            if answer is None:
                raise AssertionError(explorer.report())
            return answer

        def validate_response(self, *_: Any, **__: Any) -> None:
            """Done with the call."""

    until = explorer.sent + count
    for attempt in range(ATTEMPTS):
        if explorer.sent >= until:
            break
        steps = settings(QUIET, max_examples=max(1, (until - explorer.sent) // STEPS), stateful_step_count=STEPS)
        with contextlib.suppress(Flaky):  # the platform remembers: the same steps need not give the same answers again
            seed(SEED + attempt)(Sequence).run(settings=steps)


def test_every_operation_keeps_its_document(explorer: Explorer) -> None:
    print(f"seed {SEED}, {API_CASES} requests to {len(explorer.operations)} operations")
    began, warm = time.monotonic(), {}
    rounds = 3  # memory is looked at after the first: caches are filled by then
    for round_ in range(rounds):
        until = API_CASES * (1 - SHARE_IN_SEQUENCES) * (round_ + 1) / rounds
        for index, operation in enumerate(explorer.operations):
            if index % 5 == 0:
                explorer.prepare()
            examples = max(4, int((until - explorer.sent) / (len(explorer.operations) - index)))
            once(explorer, operation, examples, edges=round_ == 0, variant=round_)
        if round_ == 0:
            sequences(explorer, int(API_CASES * SHARE_IN_SEQUENCES / 2))
            warm = explorer.held()
    sequences(explorer, API_CASES - explorer.sent)
    took = time.monotonic() - began
    print(f"{explorer.sent} requests in {took:.0f} s, {explorer.sent / took:.0f} a second")
    print(json.dumps({label: dict(counts) for label, counts in explorer.statuses.items()}))
    assert not explorer.wrong, explorer.report()
    grown(warm, explorer.held())
    assert explorer._get("/readyz").status_code == 200


def grown(before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]]) -> None:
    """Fails when a process holds much more than before, or is not the one it was."""
    print(json.dumps({"before": before, "after": after}))
    assert before.keys() == after.keys()
    for name, (megabytes, descriptors) in after.items():
        assert megabytes - before[name][0] < GROWTH_MB, f"{name} grew from {before[name][0]:.0f} to {megabytes:.0f} MB"
        assert descriptors - before[name][1] < GROWTH_DESCRIPTORS, f"{name}: {before[name][1]} descriptors, now {descriptors}"


def test_without_a_key_no_operation_tells_anything(explorer: Explorer) -> None:
    document = explorer._get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "security" in operation:
                url = explorer.platform.control + path.replace("{", "").replace("}", "")
                for headers in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic bm86bm8="}):
                    answer = requests.request(method, url, headers=headers, timeout=CALL_S)
                    assert answer.status_code == 401, f"{method} {path}"
                    assert unsound(answer, method) == ""
                    assert answer.headers["www-authenticate"] == "Bearer"
