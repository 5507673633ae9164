"""From parameters to an engine."""

from pydantic import ValidationError

from driftsched_lib.engines.openai_server import OpenAIServer
from driftsched_lib.engines.params import EngineParams
from driftsched_lib.engines.profile import EngineLimits, Profile
from driftsched_lib.engines.replicas import ROUTERS, ReplicatedEngine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import ParamsError
from driftsched_lib.validation import faults, in_project


def load_engine(params: EngineParams, log_steps: bool = False):
    """Return the engine of these parameters; a model's folder and a profile's file are looked for in the project first.

    Parameters:
        log_steps: let a simulated engine keep its steps; a real one does.

    Raises ParamsError if it cannot be loaded with these arguments.
    """
    if params.kind == "simulated":
        return _simulated_engine(params, log_steps)
    if params.server is not None:
        return OpenAIServer(params.server, params.model, params.temperature)
    from driftsched_lib.engines.vllm import VllmEngine  # takes seconds to import

    try:
        args = {name: in_project(value) if name == "tokenizer" else value for name, value in params.args.items()}
        return VllmEngine(in_project(params.model), args, params.temperature)
    except (ValueError, OSError) as error:
        raise ParamsError(f"engine.model {params.model!r} with these args cannot be loaded: {error}") from error


def _simulated_engine(params: EngineParams, log_steps: bool) -> SimulatedEngine | ReplicatedEngine:
    try:
        profile = Profile.load(in_project(str(params.profile))).with_limits(**params.args)
    except ParamsError as error:
        raise ParamsError(f"engine.profile: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(faults(error, EngineLimits))
        raise ParamsError(f"engine.args: they replace the profile's limits: {wrong}") from None
    replicas = [SimulatedEngine(profile, log_steps=log_steps) for _ in range(params.replicas)]
    if params.replicas == 1:
        return replicas[0]
    return ReplicatedEngine(replicas, ROUTERS[params.router], params.max_outstanding)
