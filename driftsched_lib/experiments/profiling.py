"""From a finished run to the profile of the engine that served it."""

from pathlib import Path

from driftsched_lib.engines.fit import fit_engine
from driftsched_lib.engines.profile import EngineLimits, Profile, Provenance
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import StoredRun, load_run
from driftsched_lib.experiments.run import requests_of

TOKENS_PER_WORD = 1.45  # of the project's prompts by the embedded tokenizer: where the load gave all prompt lengths


def profile_of_run(run: StoredRun | str | Path) -> Profile:
    """Return the profile of a finished run's engine; ParamsError if there is no run, or its costs cannot be told."""
    run = run if isinstance(run, StoredRun) else load_run(run)
    settings, params = run.manifest["run"], Params.parse(run.manifest["params"], run.name)
    try:
        steps, requests = run.table("steps"), run.table("requests")
        if steps.empty and settings["engine"] != "server":
            raise ValueError("the run kept no steps")
        if run.manifest["engine_limits"] is None:
            raise ValueError("its server does not tell its limits, as vLLM's does")
        limits = EngineLimits(**run.manifest["engine_limits"])
        step, fit_error, launch_bound = fit_engine(steps, requests, limits.async_scheduling)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"{run.name}: no profile can be fitted: {error}") from error
    done = requests[requests.outcome == "completed"]
    served = requests_of(params, settings["seed"])
    texts = {request.request_id: len(request.prompt.split()) for request in served if request.prompt_tokens is None}
    words = done.request_id.map(texts)
    per_word = done.prompt_tokens[words > 0].sum() / words.sum() if words.any() else TOKENS_PER_WORD
    counts_words = settings["token_counter"] == "whitespace"
    return Profile(
        step=step,
        limits=limits,
        tokens_per_prompt_word=float(per_word),
        words_per_output_token=float(done.output_words.sum() / done.output_tokens.sum()) if counts_words else None,
        launch_bound=launch_bound,
        provenance=Provenance(
            measured=True,
            model=settings["model"],
            hardware=", ".join(f"{name} {value}" for name, value in run.manifest["hardware"].items()),
            date=run.manifest["started"][:10],
            versions=run.manifest["versions"],
            fit=fit_error,
        ),
    )
