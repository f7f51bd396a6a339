"""Fingerprints: the parts of a method's file that count."""

from __future__ import annotations

import pytest

from suite.run import code


@pytest.mark.parametrize("name", code.ABOUT)
def test_a_local_variable_named_as_an_attribute_about_the_method_counts(name: str) -> None:
    text = f"class Mine:\n    {name} = 1\n\n    def score(self):\n        {name} = 2\n        return {name}\n"
    digests = [
        code._source_digest(each.encode()) for each in (text, text.replace("= 1", "= 3"), text.replace("= 2", "= -2"))
    ]
    assert digests[0] == digests[1] != digests[2]
