"""How the embedded model was trained, and what it learnt."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from driftsched_lib.figures.style import COLORS, legend_below
from driftsched_lib.requests import CATEGORIES
from driftsched_lib.studies.compare import select


def training_curve(log: pd.DataFrame) -> Figure:
    """Loss over steps.

    Parameters:
        log: `tiny_model.TRAINING_LOG`.
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot(log.step, log.loss, linewidth=1)
    axis.set_xlabel(f"step ({log.seconds.iloc[-1] / 60:.0f} minutes in all)")
    axis.set_ylabel("loss (nats a token)")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    return figure


def corpus_lengths(lengths: pd.DataFrame) -> Figure:
    """Share of answers at most that long, corpus and generated, a panel a category.

    Parameters:
        lengths: from `tiny_model.generated_lengths`.
    """
    figure, axes = plt.subplots(1, len(CATEGORIES), figsize=(11, 3), sharey=True)
    for axis, category in zip(axes, CATEGORIES, strict=True):
        rows = select(lengths, category=category)
        for column, label, color in (
            ("corpus_tokens", "corpus", "#999999"),
            ("generated_tokens", "generated", COLORS[0]),
        ):
            sns.ecdfplot(rows[column], ax=axis, label=label, color=color)
        axis.set_title(category, loc="left")
        axis.set_xlabel("answer (tokens)")
    axes[0].set_ylabel("share of answers")
    legend_below(figure, axes[0])
    return figure


def topic_lengths(lengths: pd.DataFrame) -> Figure:
    """Mean generated against mean corpus length by topic, each relative to its category's mean."""
    columns = ["corpus_tokens", "generated_tokens"]
    relative = lengths[columns] / lengths.groupby(["category", "style"])[columns].transform("mean")
    means = relative.groupby(lengths.topic).mean()
    figure, axis = plt.subplots(figsize=(4, 3.6))
    axis.scatter(means.corpus_tokens, means.generated_tokens, s=18)
    ends = [means.min().min(), means.max().max()]
    axis.plot(ends, ends, color="black", linewidth=1)
    axis.set_title(f"{len(means)} topics, correlation {means.corr().iloc[0, 1]:.2f}", loc="left")
    axis.set_xlabel("corpus, relative length")
    axis.set_ylabel("generated, relative length")
    return figure
