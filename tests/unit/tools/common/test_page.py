"""What measurements check before they start."""

from __future__ import annotations

import pytest
from common.page import check_installed

from megatron.ltd.errors import UserError


def test_a_missing_package_is_named_at_the_start() -> None:
    check_installed("scipy", "matplotlib", "sklearn")
    with pytest.raises(UserError, match="the package no-such-package is not installed: pip install no-such-package"):
        check_installed("scipy", "no_such_package")
