"""Tables that the file of a model holds."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def numeric_table(split: dict[str, Any]) -> pd.DataFrame:
    """Table from its JSON, where a column of nothing but NaN is a column of nulls."""
    return pd.DataFrame({name: pd.to_numeric(column) for name, column in pd.DataFrame(**split).items()})


def scores_in(card: Mapping[str, Any], genes: list[str]) -> pd.DataFrame:
    """Held-out scores that a card holds, a row per gene; empty where it holds none."""
    columns = card.get("scores", {}).get("columns", {})
    index = pd.Index(genes if columns else [], name="gene")
    return pd.DataFrame(columns, index=index).astype(float)
