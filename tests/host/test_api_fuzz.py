"""2,000 calls that schemathesis makes up from the served OpenAPI document, right and wrong ones: no answer is a 500.

Each answer's status, content type and body must also be what the document says of it.
"""

from __future__ import annotations

from collections import Counter
from itertools import count, product
from typing import Any

import hypothesis
import pytest
from a2v.tests.host.comfy import Comfy
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CASES, AT_ONCE = 2000, 25


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_thousand_made_up_calls(server: Comfy) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/fal/openapi.json")
    checks = schemathesis.checks
    conforms = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    modes = schemathesis.GenerationMode
    seen: Counter[int] = Counter()

    def call(operation: Any, mode: Any, seed: int) -> None:
        @hypothesis.seed(seed)
        @settings(
            max_examples=AT_ONCE,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            answer = case.call(base_url=server.url, timeout=120)
            seen[answer.status_code] += 1
            assert answer.status_code != 500, f"{case.as_curl_command()}\n{answer.text}"
            case.validate_response(answer, checks=conforms)

        check()

    left = list(product((found.ok() for found in document.get_all_operations()), (modes.POSITIVE, modes.NEGATIVE)))
    assert len(left) > 40
    for seed in count():
        for operation, mode in list(left):
            try:
                call(operation, mode, seed)
            except Unsatisfiable:  # what takes nothing cannot be asked wrongly
                assert mode == modes.NEGATIVE
                left.remove((operation, mode))
        if sum(seen.values()) >= CASES:
            break
    assert {200, 404, 422} <= seen.keys(), seen
