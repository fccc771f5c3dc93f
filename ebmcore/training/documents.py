"""Placeholder until merged."""

import json
from typing import Any


def load_json(text: str, where: object) -> Any:
    return json.loads(text)
