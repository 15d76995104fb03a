"""The base of every component's config: frozen, keyword-only, no unknown keys; defaults stand in the component, once."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen, typed config. Unknown keys are errors, so that a misspelt option is never ignored.

    Example:
        >>> class Optimiser(Config):
        ...     lr: float = 1e-3
        >>> Optimiser(lr=0.1).lr
        0.1
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
