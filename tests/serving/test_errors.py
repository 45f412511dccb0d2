"""The error tree: every class survives pickling, is documented and can be shown."""

from __future__ import annotations

import pickle

import pytest

from serving import errors
from serving.errors import FerryError

ALL_ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, FerryError)]


@pytest.mark.parametrize("error_class", ALL_ERRORS)
def test_errors_survive_pickling(error_class: type[FerryError]) -> None:
    arguments = ("what", "do") + (("field",) if error_class is errors.ConfigError else ())
    error = error_class(*arguments)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy)) == (error_class, vars(error))
    assert errors.describe(copy) == "error: what\n  remedy: do"
    assert error_class.__name__ in str(errors.__doc__)
