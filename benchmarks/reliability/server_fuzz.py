"""Every route of the server with what its own description allows and what it doesn't, made by schemathesis."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks
from tests import served
from tests.served import picture, serving

from opencoca.search.index import Index
from opencoca.serve.settings import Limits

CHECKS = [
    not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


def fuzzed(trials: int) -> Counter[str]:
    """How often which status was the answer, or which check failed."""
    outcomes: Counter[str] = Counter()
    model = served.predictor()
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        folder = Path(root, "pictures")
        folder.mkdir()
        for i in range(8):
            (folder / f"{i}.png").write_bytes(picture(i))
        index = Index.make(folder, model, "tiny", index=Path(root, "index"), captions=True)
        client = stack.enter_context(serving(model, index, limits=Limits(idle_s=1)))
        schema = openapi.from_dict(client.ask("GET", "/openapi.json").json())
        base = f"http://127.0.0.1:{client.port}"
        routes = [(path, method) for path in schema for method in schema[path]]
        modes = list(itertools.product(routes, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)))
        few = [route for route in modes if route[0][1].lower() == "get" and "{" not in route[0][0]]  # nothing to vary
        rules = settings(
            max_examples=max(1, trials // (len(modes) - len(few))),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )
        for route in modes:
            (path, method), mode = route

            @settings(rules, max_examples=2 if route in few else rules.max_examples)
            @given(case=schema[path][method].as_strategy(generation_mode=mode))
            def ask(case) -> None:
                try:
                    answer = case.call_and_validate(base_url=base, checks=CHECKS)
                    outcomes[str(answer.status_code)] += 1
                except FailureGroup as failed:
                    outcomes[f"failed: {case.method} {case.path}: {failed.exceptions[0].title}"] += 1  # type: ignore[attr-defined]

            with contextlib.suppress(Unsatisfiable):  # nothing that the description forbids can be sent
                ask()
    return outcomes
