"""The older worker's paths end on time: notice from 0.3, gone with 1.0; all others stay."""

from __future__ import annotations

import pytest

from worker.dialects.legacy import deprecation
from worker.errors import Gone


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/inference/job-1/stream"])
@pytest.mark.parametrize(
    ("version", "notice", "gone"),
    [
        ("0.1.0", False, False),
        ("0.2.9", False, False),
        ("0.3.0", True, False),
        ("0.10.0", True, False),
        ("1.0.0", True, True),
        ("1.0.0rc1", True, True),
    ],
)
def test_the_alias_ends_release_by_release(path: str, version: str, notice: bool, gone: bool) -> None:
    headers = deprecation.headers(path, version)
    assert bool(headers) == notice
    if notice:
        assert headers["Deprecation"] == "@1795478400"
        assert headers["Sunset"] == "Wed, 24 Nov 2027 00:00:00 GMT"
        assert headers["Link"] == '</v1/jobs>; rel="successor-version"'
        assert deprecation.headers(path, version, "/llm")["Link"] == '</llm/v1/jobs>; rel="successor-version"'
    if gone:
        with pytest.raises(Gone, match="Use /v1/jobs"):
            deprecation.refuse_if_gone(path, version)
    else:
        deprecation.refuse_if_gone(path, version)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/inferences", "/", "/v1/jobs/v1/inference"])
def test_no_other_path_ends(path: str) -> None:
    assert deprecation.headers(path, "9.9") == {}
    deprecation.refuse_if_gone(path, "9.9")
