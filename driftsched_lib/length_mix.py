"""Length mixes of public traces, kept as quantiles: their shape where the traces themselves are not at hand."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import norm, spearmanr

from driftsched_lib.errors import DriftSchedError

LEVELS = (0.0, 0.01, 0.02, *(0.05 * i for i in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)


class LengthMixError(DriftSchedError, ValueError):
    """A length mix that cannot be used; the message names the file and each field."""


class LengthMix(BaseModel):
    """The joint distribution of prompt and output lengths of a trace: both marginals, and their rank correlation.

    Attributes:
        levels, prompt_tokens, output_tokens: probabilities, and the quantiles there (tokens).
        spearman: rank correlation of prompt and output lengths; draws have it through a Gaussian copula.
        arrival_cv: coefficient of variation of the gaps between arrivals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    requests: Annotated[int, Field(ge=1)]
    arrival_cv: Annotated[float, Field(ge=0)]
    spearman: Annotated[float, Field(ge=-1, le=1)]
    levels: Annotated[list[float], Field(min_length=2)]
    prompt_tokens: list[Annotated[float, Field(ge=1)]]
    output_tokens: list[Annotated[float, Field(ge=1)]]

    @model_validator(mode="after")
    def _quantiles(self):
        for name in ("levels", "prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            if len(values) != len(self.levels) or values != sorted(values):
                raise ValueError(f"{name} must be {len(self.levels)} rising numbers")
        if (self.levels[0], self.levels[-1]) != (0.0, 1.0):
            raise ValueError("levels must go from 0 to 1")
        return self

    @classmethod
    def load(cls, path: str | Path) -> "LengthMix":
        """Read a mix; LengthMixError names the file and every field that is missing or wrong."""
        try:
            return cls.model_validate_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise LengthMixError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        raise LengthMixError("\n".join(": ".join(filter(None, (str(path), where, what))) for where, what in faults))

    @classmethod
    def of(cls, prompt_tokens: pd.Series, output_tokens: pd.Series, arrival_s: pd.Series, source: str) -> "LengthMix":
        """The mix of a trace, one value a request in each series."""
        gaps = arrival_s.sort_values().diff().dropna()
        return cls(
            source=source,
            requests=len(arrival_s),
            arrival_cv=round(float(gaps.std() / gaps.mean()), 4),
            spearman=round(float(spearmanr(prompt_tokens, output_tokens).statistic), 4),
            levels=[round(level, 4) for level in LEVELS],
            prompt_tokens=prompt_tokens.quantile(LEVELS).round(1).tolist(),
            output_tokens=output_tokens.quantile(LEVELS).round(1).tolist(),
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`n` pairs: prompt tokens and output tokens."""
        correlation = 2 * np.sin(np.pi * self.spearman / 6)  # of the normals under a Gaussian copula (Pearson, 1907)
        covariance = [[1.0, correlation], [correlation, 1.0]]
        levels = norm.cdf(rng.multivariate_normal([0.0, 0.0], covariance, n))
        prompts, outputs = self.prompt_tokens, self.output_tokens
        return np.interp(levels[:, 0], self.levels, prompts), np.interp(levels[:, 1], self.levels, outputs)

    @property
    def mean_output_tokens(self) -> float:
        """Mean of the outputs that `draw` gives."""
        return float(np.trapezoid(self.output_tokens, self.levels))
