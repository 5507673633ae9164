"""Length mixes of public traces, kept as quantiles: their shape where the traces themselves are not at hand."""

from collections.abc import Iterable
from math import sqrt
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, model_validator
from scipy.special import ndtr

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators.base import MAX_TOKENS
from driftsched_lib.validation import JsonFile
from driftsched_lib.workloads.traces import TraceRow

LEVELS = (0.0, 0.01, 0.02, *(0.05 * i for i in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)


class LengthMix(JsonFile):
    """The joint distribution of prompt and output lengths of a trace: both marginals, and their rank correlation.

    Attributes:
        source: where the trace is from, under which licence, and whom to cite.
        rate_per_s: requests a second from the first to the last.
        arrival_cv: coefficient of variation of the gaps between arrivals.
        levels, prompt_tokens, output_tokens: probabilities, and the quantiles there (tokens).
        spearman: rank correlation of prompt and output lengths; draws have it through a Gaussian copula.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    refused = ParamsError

    source: str
    requests: Annotated[int, Field(ge=1)]
    rate_per_s: Annotated[float, Field(gt=0)]
    arrival_cv: Annotated[float, Field(ge=0)]
    spearman: Annotated[float, Field(ge=-1, le=1)]
    levels: Annotated[list[float], Field(min_length=2)]
    prompt_tokens: list[Annotated[float, Field(ge=1, le=MAX_TOKENS)]]
    output_tokens: list[Annotated[float, Field(ge=1, le=MAX_TOKENS)]]

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
    def of(cls, prompt_tokens: pd.Series, output_tokens: pd.Series, arrival_s: pd.Series, source: str) -> "LengthMix":
        """The mix of a trace that is at hand as a table, in order of arrival."""
        return cls.of_trace(map(TraceRow, arrival_s, prompt_tokens, output_tokens), source)

    @classmethod
    def of_trace(cls, rows: Iterable[TraceRow], source: str, sample: int = 1_000_000) -> "LengthMix":
        """The mix of a trace, in one pass over its rows.

        Parameters:
            sample: of a trace with more requests, the lengths of so many are looked at, each as likely as any other
                (Vitter's reservoir, 1985); rate and CV are always those of all.

        Raises:
            ParamsError: fewer than two requests, or all at one time.
        """
        rng, kept = np.random.default_rng(0), []
        n, squares, first_s, last_s = 0, 0.0, 0.0, 0.0
        for n, row in enumerate(rows, start=1):
            if n == 1:
                first_s = last_s = row.arrival_s
            squares += (row.arrival_s - last_s) ** 2
            last_s = row.arrival_s
            if n <= sample:
                kept.append((row.prompt_tokens, row.output_tokens))
            elif (place := int(rng.integers(n))) < sample:
                kept[place] = row.prompt_tokens, row.output_tokens
        if last_s <= first_s:
            raise ParamsError(f"{source}: a mix is of two requests at least, not all at one time")
        gaps, span_s = n - 1, last_s - first_s
        variance = max(0.0, squares - span_s**2 / gaps) / max(1, gaps - 1)
        lengths = pd.DataFrame(kept, columns=["prompt_tokens", "output_tokens"])
        varied = (lengths.nunique() > 1).all()  # ranks of one value have no correlation
        quantiles = lengths.quantile(LEVELS).round(1)
        return cls(
            source=source,
            requests=n,
            rate_per_s=round(gaps / span_s, 4),
            arrival_cv=round(sqrt(variance) * gaps / span_s, 4),
            spearman=round(float(lengths.rank().corr().iloc[0, 1]), 4) if varied else 0.0,
            levels=[round(level, 4) for level in LEVELS],
            prompt_tokens=quantiles.prompt_tokens.tolist(),
            output_tokens=quantiles.output_tokens.tolist(),
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`n` pairs: prompt tokens and output tokens."""
        correlation = 2 * np.sin(np.pi * self.spearman / 6)  # of the normals under a Gaussian copula (Pearson, 1907)
        covariance = [[1.0, correlation], [correlation, 1.0]]
        levels = ndtr(rng.multivariate_normal([0.0, 0.0], covariance, n))
        prompts, outputs = self.prompt_tokens, self.output_tokens
        return np.interp(levels[:, 0], self.levels, prompts), np.interp(levels[:, 1], self.levels, outputs)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.requests:,} requests, {self.rate_per_s:g} a second, CV of their gaps "
            f"{self.arrival_cv:g}, rank correlation of lengths {self.spearman:g}"
        ]
        for name in ("prompt_tokens", "output_tokens"):
            at = np.interp([0.01, 0.25, 0.5, 0.75, 0.99, 1.0], self.levels, getattr(self, name))
            lines.append("{}: 1% {:g}, 25% {:g}, median {:g}, 75% {:g}, 99% {:g}, most {:g}".format(name, *at))
        return "\n".join(lines)

    @property
    def mean_output_tokens(self) -> float:
        """Mean of the outputs that `draw` gives."""
        return float(np.trapezoid(self.output_tokens, self.levels))
