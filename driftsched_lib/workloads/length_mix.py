"""Length mixes of public traces, kept as quantiles: their shape where the traces themselves are not at hand."""

from collections.abc import Iterable
from math import sqrt
from typing import Annotated, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from scipy.special import ndtr

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators.base import MAX_TOKENS
from driftsched_lib.validation import JsonFile

LEVELS = (0.0, 0.01, 0.02, *(0.05 * i for i in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)
LENGTHS = ["prompt_tokens", "output_tokens"]
Tokens = Annotated[float, Field(ge=1, le=MAX_TOKENS)]


class LengthMix(JsonFile):
    """The joint distribution of prompt and output lengths of a trace: both marginals, and their rank correlation.

    Attributes:
        source: where the trace is from, its licence, and whom to cite.
        rate_per_s, arrival_cv: mean requests per second, and coefficient of variation of the gaps between arrivals.
        levels, prompt_tokens, output_tokens: probabilities, and the quantiles there (tokens).
        spearman: rank correlation of prompt and output lengths; draws have it through a Gaussian copula.
    """

    source: str
    requests: Annotated[int, Field(ge=1)]
    rate_per_s: Annotated[float, Field(gt=0)]
    arrival_cv: Annotated[float, Field(ge=0)]
    spearman: Annotated[float, Field(ge=-1, le=1)]
    levels: Annotated[list[float], Field(min_length=2)]
    prompt_tokens: list[Tokens]
    output_tokens: list[Tokens]

    @model_validator(mode="after")
    def _quantiles(self) -> Self:
        for name in ("levels", *LENGTHS):
            values = getattr(self, name)
            if len(values) != len(self.levels) or values != sorted(values):
                raise ValueError(f"{name} must be {len(self.levels)} rising numbers")
        if (self.levels[0], self.levels[-1]) != (0.0, 1.0):
            raise ValueError("levels must go from 0 to 1")
        return self

    @classmethod
    def of_trace(cls, chunks: Iterable[pd.DataFrame], source: str, sample: int = 200_000) -> Self:
        """Return the mix of a trace, in one pass over the chunks of `read_trace`.

        Of a longer trace, the lengths are those of a random `sample`; rate and CV are always those of all requests.
        Raises ParamsError for fewer than two requests, or all at one time.
        """
        rng, lengths, last, n, span_s, squares = np.random.default_rng(0), None, [], 0, 0.0, 0.0
        for chunk in chunks:
            gaps_s = np.diff(chunk.arrival_s, prepend=last)
            last, n = chunk.arrival_s.iloc[-1:], n + len(chunk)
            span_s, squares = span_s + gaps_s.sum(), squares + (gaps_s**2).sum()
            lengths = pd.concat([lengths, chunk[LENGTHS].assign(dice=rng.random(len(chunk)))])
            if len(lengths) > 2 * sample:
                lengths = lengths.nsmallest(sample, "dice")
        if span_s <= 0:
            raise ParamsError(f"{source}: a mix needs at least two requests, not all at one time")
        gaps, lengths = n - 1, lengths.nsmallest(sample, "dice")[LENGTHS]
        variance = max(0.0, squares - span_s**2 / gaps) / max(1, gaps - 1)
        varied = (lengths.nunique() > 1).all()  # ranks of one value have no correlation
        return cls(
            source=source,
            requests=n,
            rate_per_s=round(gaps / span_s, 4),
            arrival_cv=round(sqrt(variance) * gaps / span_s, 4),
            spearman=round(float(lengths.rank().corr().iloc[0, 1]), 4) if varied else 0.0,
            levels=[round(level, 4) for level in LEVELS],
            **lengths.quantile(LEVELS).round(1).to_dict("list"),
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return `n` prompt lengths and `n` output lengths (tokens)."""
        correlation = 2 * np.sin(np.pi * self.spearman / 6)  # of the normals under a Gaussian copula (Pearson, 1907)
        levels = ndtr(rng.multivariate_normal([0.0, 0.0], [[1.0, correlation], [correlation, 1.0]], n))
        return tuple(np.interp(levels[:, i], self.levels, getattr(self, name)) for i, name in enumerate(LENGTHS))

    def __str__(self) -> str:
        quantiles = "{}: 1% {:g}, 25% {:g}, median {:g}, 75% {:g}, 99% {:g}, most {:g}"
        at = {name: np.interp([0.01, 0.25, 0.5, 0.75, 0.99, 1.0], self.levels, getattr(self, name)) for name in LENGTHS}
        head = f"{self.source}: {self.requests:,} requests, {self.rate_per_s:g} per second, CV of their gaps "
        head += f"{self.arrival_cv:g}, rank correlation of lengths {self.spearman:g}"
        return "\n".join([head, *(quantiles.format(name, *values) for name, values in at.items())])

    @property
    def mean_output_tokens(self) -> float:
        """Return the mean of the outputs that `draw` gives."""
        return float(np.trapezoid(self.output_tokens, self.levels))
