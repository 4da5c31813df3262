"""Names of all result slots, derived from ``key_added`` in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Slot names of one analysis."""

    key_added: str = "agl"
    """Prefix of every slot, and the name of the prediction layer and of the ``uns`` entry."""

    def __post_init__(self) -> None:
        if not isinstance(self.key_added, str) or not self.key_added.isidentifier():
            msg = f"key_added={self.key_added!r} is not a plain name; use letters, digits and underscores, e.g. 'agl'."
            raise ValueError(msg)

    @property
    def layer(self) -> str:
        return self.key_added

    @property
    def uns(self) -> str:
        return self.key_added

    @property
    def features(self) -> str:
        return f"{self.key_added}_features"

    @property
    def split(self) -> str:
        return f"{self.key_added}_split"

    @property
    def oof(self) -> str:
        return f"{self.key_added}_oof"

    @property
    def fold(self) -> str:
        return f"{self.key_added}_fold"

    @property
    def prediction_table(self) -> str:
        """Table of the predictions where they are no layer."""
        return f"{self.key_added}_prediction"

    @property
    def oof_table(self) -> str:
        """As :attr:`prediction_table`, out of fold."""
        return f"{self.key_added}_oof_prediction"

    @property
    def role(self) -> str:
        return f"{self.key_added}_role"

    @property
    def prior_rank(self) -> str:
        return f"{self.key_added}_prior_rank"

    @property
    def weight(self) -> str:
        return f"{self.key_added}_weight"

    @property
    def selected(self) -> str:
        return f"{self.key_added}_selected"

    @property
    def paper_target(self) -> str:
        return f"{self.key_added}_paper_target"

    def metric(self, name: str) -> str:
        """Column of ``var`` that holds a test metric."""
        return f"{self.key_added}_{name}"

    @property
    def lower(self) -> str:
        """Layer of the lower bounds of intervals, beside the predictions."""
        return f"{self.key_added}_lower"

    @property
    def upper(self) -> str:
        return f"{self.key_added}_upper"

    @property
    def distance(self) -> str:
        return f"{self.key_added}_distance"

    def held_out(self, name: str) -> str:
        """Column of ``var`` that holds a score of a gene on held-out spots of a model's training."""
        return f"{self.key_added}_held_out_{name}"

    def predictable(self, name: str) -> str:
        """Column of ``var`` that holds a score of a gene on held-out spots of this table."""
        return f"{self.key_added}_predictable_{name}"
