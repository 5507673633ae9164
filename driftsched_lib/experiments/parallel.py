"""Many independent tasks through joblib: processes of this machine, or a Ray cluster; the dead are replaced."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from driftsched_lib.errors import DriftSchedError

Backend = Literal["loky", "ray"]
MAX_DEATHS = 3
"""So many times in a row may workers die without a single task finished in between."""

SPREAD = {"scheduling_strategy": "SPREAD", "num_cpus": 0.01}
"""How workers are placed on a Ray cluster.  Those that ask for no CPU may all be put on one node; for those that ask
for a whole one joblib waits for ever once the node that had it is gone."""


def finish_all(
    function: Callable[..., Any], tasks: Sequence[tuple], jobs: int = -1, backend: Backend = "loky"
) -> Iterator[Any]:
    """Yield `function(*task)` for each task, as they finish; a task whose worker died is done again.

    Parameters:
        jobs: workers; -1 for one a core, or for as many as the cluster has.
        backend: processes here (`loky`), or the Ray cluster that RAY_ADDRESS names, a local one without it (`ray`, in
            the extra of that name).

    Raises:
        DriftSchedError: workers die and nothing gets done, or Ray is not installed.
        Whatever `function` raises.
    """
    worker_died: tuple[type[Exception], ...] = (TerminatedWorkerError,)
    options, placement = {"return_as": "generator_unordered"}, {}
    if backend == "ray":
        worker_died += _register_ray()
        options = {}  # it gives a list, when all is done
        placement = {"ray_remote_args": SPREAD}
    left, deaths = dict(enumerate(tasks)), 0
    while left:
        try:
            with parallel_config(backend, n_jobs=jobs, **placement), Parallel(batch_size=1, **options) as workers:
                at_once = len(tasks) if options else 4 * effective_n_jobs(jobs)
                while left:
                    part = list(islice(left.items(), at_once))
                    for number, result in workers(delayed(_numbered)(number, function, task) for number, task in part):
                        del left[number]
                        deaths = 0
                        yield result
        except worker_died as error:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise DriftSchedError(
                    f"workers died {deaths} times in a row and nothing got done: is there memory for so many at once? "
                    f"({error})"
                ) from error


def _numbered(number: int, function: Callable[..., Any], task: tuple) -> tuple[int, Any]:
    return number, function(*task)


def _register_ray() -> tuple[type[Exception], ...]:
    """Make Ray known to joblib, and return what it raises when a worker dies."""
    try:
        import ray.exceptions
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise DriftSchedError(f"backend: Ray is not installed; it is in the extra driftsched[ray] ({error})") from None
    register_ray()
    names = (
        "RayActorError",
        "WorkerCrashedError",
        "ObjectLostError",  # of it is OwnerDiedError
        "NodeDiedError",
        "LocalRayletDiedError",
        "OutOfMemoryError",
    )
    return tuple(getattr(ray.exceptions, name) for name in names)
