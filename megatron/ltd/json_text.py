"""JSON out of files that others wrote. No torch."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that ``text`` is. Raises ``json.JSONDecodeError`` for everything else.

    Python's parser raises other errors too: for values nested in more levels than it can follow, for whole numbers of
    thousands of digits, and for bytes that are no text.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("values in values in values without end", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
