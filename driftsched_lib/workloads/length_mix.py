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
Tokens = Annotated[float, Field(ge=1, le=MAX_TOKENS)]


class LengthMix(JsonFile):
    """The joint distribution of prompt and output lengths of a trace: both marginals, and their rank correlation.

    Attributes:
        source: where the trace is from, its licence, and whom to cite.
        rate_per_s: mean requests per second.
        arrival_cv: coefficient of variation of the gaps between arrivals.
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
        for name in ("levels", "prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            if len(values) != len(self.levels) or values != sorted(values):
                raise ValueError(f"{name} must be {len(self.levels)} rising numbers")
        if (self.levels[0], self.levels[-1]) != (0.0, 1.0):
            raise ValueError("levels must go from 0 to 1")
        return self

    @classmethod
    def of_trace(cls, chunks: Iterable[pd.DataFrame], source: str, sample: int = 1_000_000) -> Self:
        """Return the mix of a trace, in one pass over the chunks of `read_trace`.

        Parameters:
            sample: lengths that are kept of a longer trace, each as likely as any other (Vitter's reservoir, 1985);
                rate and CV are always those of all requests.

        Raises:
            ParamsError: fewer than two requests, or all at one time.
        """
        rng, kept = np.random.default_rng(0), np.empty((0, 2), np.int32)
        n, squares, first_s, last_s = 0, 0.0, 0.0, 0.0
        for chunk in chunks:
            lengths, times = chunk[["prompt_tokens", "output_tokens"]].to_numpy(np.int32), chunk.arrival_s.to_numpy()
            if n == 0:
                first_s = last_s = times[0]
            squares += float((np.diff(times, prepend=last_s) ** 2).sum())
            room = max(0, sample - len(kept))
            kept = np.concatenate([kept, lengths[:room]])
            places = rng.integers(np.arange(n + room, n + len(chunk)) + 1)
            replaced = places < sample
            kept[places[replaced]] = lengths[room:][replaced]
            n, last_s = n + len(chunk), times[-1]
        if last_s <= first_s:
            raise ParamsError(f"{source}: a mix needs at least two requests, not all at one time")
        gaps, span_s = n - 1, float(last_s - first_s)
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
        """Return `n` prompt lengths and `n` output lengths (tokens)."""
        correlation = 2 * np.sin(np.pi * self.spearman / 6)  # of the normals under a Gaussian copula (Pearson, 1907)
        levels = ndtr(rng.multivariate_normal([0.0, 0.0], [[1.0, correlation], [correlation, 1.0]], n))
        prompts, outputs = self.prompt_tokens, self.output_tokens
        return np.interp(levels[:, 0], self.levels, prompts), np.interp(levels[:, 1], self.levels, outputs)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.requests:,} requests, {self.rate_per_s:g} per second, CV of their gaps "
            f"{self.arrival_cv:g}, rank correlation of lengths {self.spearman:g}"
        ]
        for name in ("prompt_tokens", "output_tokens"):
            at = np.interp([0.01, 0.25, 0.5, 0.75, 0.99, 1.0], self.levels, getattr(self, name))
            lines.append("{}: 1% {:g}, 25% {:g}, median {:g}, 75% {:g}, 99% {:g}, most {:g}".format(name, *at))
        return "\n".join(lines)

    @property
    def mean_output_tokens(self) -> float:
        """Return the mean of the outputs that `draw` gives."""
        return float(np.trapezoid(self.output_tokens, self.levels))
