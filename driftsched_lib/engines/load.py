"""From parameters to an engine."""

from pydantic import ValidationError

from driftsched_lib.engines.openai_server import OpenAIServer
from driftsched_lib.engines.params import EngineParams
from driftsched_lib.engines.profile import EngineLimits, Profile
from driftsched_lib.engines.replicas import ROUTERS, ReplicatedEngine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import ParamsError
from driftsched_lib.validation import faults, in_project


def load_engine(params: EngineParams, log_steps: bool = False, length_scale: float = 1.0):
    """Return the engine of these parameters; a model's folder and a profile's file are looked for in the project first.

    Parameters:
        log_steps: let a simulated engine keep its steps; a real one does.
        length_scale: of the load.  Real vLLM in virtual time is slowed by its inverse, to the seconds of whole lengths.

    Raises ParamsError if it cannot be loaded with these arguments.
    """
    try:
        profile = None if params.profile is None else Profile.load(in_project(params.profile))
    except ParamsError as error:
        raise ParamsError(f"engine.profile: {error}") from None
    if params.kind == "simulated":
        return _simulated_engine(params, profile, log_steps)
    if params.server is not None:
        return OpenAIServer(params.server, params.model, params.temperature)
    from driftsched_lib.engines.vllm import VllmEngine  # takes seconds to import

    try:
        args = {name: in_project(value) if name == "tokenizer" else value for name, value in params.args.items()}
        slowed = profile and profile.slowed(1 / length_scale)
        return VllmEngine(in_project(params.model), args, params.temperature, slowed)
    except (ValueError, OSError) as error:
        raise ParamsError(f"engine.model {params.model!r} with these args cannot be loaded: {error}") from error


def _simulated_engine(params: EngineParams, profile: Profile, log_steps: bool) -> SimulatedEngine | ReplicatedEngine:
    try:
        profile = profile.with_limits(**params.args)
    except ValidationError as error:
        wrong = "; ".join(faults(error, EngineLimits))
        raise ParamsError(f"engine.args: they replace the profile's limits: {wrong}") from None
    replicas = [SimulatedEngine(profile, log_steps=log_steps) for _ in range(params.replicas)]
    if params.replicas == 1:
        return replicas[0]
    return ReplicatedEngine(replicas, ROUTERS[params.router], params.max_outstanding)
