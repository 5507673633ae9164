"""The command line: `python -m driftsched_lib COMMAND`, thin over the package."""

import argparse
import sys
from typing import get_args

import yaml

from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.experiments.parallel import Backend
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.traces import FIELDS, FORMATS, Faults, read_trace


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status, 2 for a fault that a message on stderr explains."""
    parser = argparse.ArgumentParser(prog="python -m driftsched_lib", description=__doc__)
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="serve a grid of runs and write a results folder")
    run.set_defaults(command=_run)
    notebooks = commands.add_parser("notebooks", help="the same, then execute notebooks 01 to 03 on it, and a report")
    notebooks.set_defaults(command=_notebooks)
    for command in (run, notebooks):
        command.add_argument("params", metavar="PARAMS.yaml")
        command.add_argument("--out", required=True, metavar="DIR", help="a finished run in it is not repeated")
        command.add_argument(
            "--set", action="append", default=[], type=_override, metavar="KEY=VALUE", help="override a parameter"
        )
    run.add_argument("--jobs", type=int, metavar="N", help="simulated runs at a time (default: one a core)")
    run.add_argument(
        "--backend", choices=get_args(Backend), default="loky", help="where: processes here, or a Ray cluster"
    )
    profile = commands.add_parser("profile", help="fit an engine profile for the simulator from a finished run")
    profile.set_defaults(command=_profile)
    profile.add_argument("run", metavar="RUN", help="a run's folder, of a run without preemptions")
    profile.add_argument("--out", required=True, metavar="FILE.json")
    lengths = commands.add_parser("lengths", help="keep what natural outputs came to, to pin them there in other runs")
    lengths.set_defaults(command=_lengths)
    lengths.add_argument("runs", metavar="DIR", help="a results folder with one run a seed")
    lengths.add_argument("--out", required=True, metavar="FILE.parquet")
    trace = commands.add_parser("trace", help="say what a request trace is like, and keep its shape for other loads")
    trace.set_defaults(command=_trace)
    trace.add_argument("file", metavar="FILE")
    trace.add_argument("--format", required=True, choices=FORMATS)
    trace.add_argument(
        "--column",
        action="append",
        default=[],
        type=_pair,
        metavar="FIELD=NAME",
        help=f"what a column of a csv or parquet is called; FIELD: {', '.join(FIELDS)}",
    )
    trace.add_argument("--skip-bad-rows", action="store_true", help="count and show them, where they are else refused")
    trace.add_argument("--source", metavar="TEXT", help="whose trace it is, its licence and what to cite")
    trace.add_argument("--out", metavar="FILE.json", help="for `lengths` of a phase in the parameters")
    fidelity = commands.add_parser("fidelity", help="serve the real runs that notebook 04 lays the simulator beside")
    fidelity.set_defaults(command=_fidelity)
    fidelity.add_argument("--out", required=True, metavar="DIR", help="a finished run in it is not repeated")
    fidelity.add_argument(
        "--engines",
        nargs="+",
        default=["tiny", "llama-130m"],
        metavar="ENGINE",
        help="tiny, llama-130m (the default: both), or, on a GPU, qwen-1.8b",
    )
    soak = commands.add_parser("soak", help="serve millions of requests on a faulty simulated engine, a line a policy")
    soak.set_defaults(command=_soak)
    soak.add_argument("--requests", type=int, default=10_000_000, metavar="N", help="for each policy (10 million)")
    soak.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), metavar="POLICY")
    bench = commands.add_parser("bench", help="print the benchmarks' ratios")
    bench.set_defaults(command=_bench)

    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except DriftSchedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _override(text: str) -> tuple[str, object]:
    key, value = _pair(text)
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML") from None


def _run(options: argparse.Namespace) -> None:
    params = Params.load(options.params, dict(options.set))
    from driftsched_lib.experiments.grid import run_grid

    print(run_grid(params, options.out, jobs=options.jobs, backend=options.backend).to_string(max_cols=14))


def _notebooks(options: argparse.Namespace) -> None:
    params = Params.load(options.params, dict(options.set))
    from driftsched_lib.experiments.grid import run_grid
    from driftsched_lib.figures.report import execute_notebooks

    run_grid(params, options.out)
    execute_notebooks(options.out)
    print(f"The report is {options.out}/report.html, the executed notebooks and the results lie beside it.")


def _profile(options: argparse.Namespace) -> None:
    from driftsched_lib.engines.fit import profile_of_run
    from driftsched_lib.experiments.results import writing

    profile = profile_of_run(options.run)
    with writing(options.out):
        profile.save(options.out)
    print(profile.model_dump_json(indent=2, include={"step", "provenance"}))


def _lengths(options: argparse.Namespace) -> None:
    from driftsched_lib.studies.recorded import record_lengths

    record_lengths(options.runs).to_parquet(options.out, index=False, compression="zstd")


def _trace(options: argparse.Namespace) -> None:
    from driftsched_lib.workloads.length_mix import LengthMix

    faults = Faults()
    on_bad_row = "skip" if options.skip_bad_rows else "refuse"
    rows = read_trace(options.file, options.format, dict(options.column), on_bad_row, faults)
    mix = LengthMix.of_trace(rows, options.source or options.file)
    if options.out is not None:
        mix.save(options.out)
    print(mix)
    if faults.count:
        print(faults, file=sys.stderr)


def _fidelity(options: argparse.Namespace) -> None:
    from driftsched_lib.studies.fidelity import ENGINES, measure

    if unknown := [engine for engine in options.engines if engine not in ENGINES]:
        raise ParamsError(f"--engines: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    measure(PROJECT / "params" / "fidelity.yaml", options.out, options.engines)


def _soak(options: argparse.Namespace) -> None:
    from soak import check, soak

    for policy in options.policies:
        done = soak(policy, options.requests)
        print(done, flush=True)
        check(done)


def _bench(options: argparse.Namespace) -> None:
    from benchmarks.goals import main

    main()


if __name__ == "__main__":
    sys.exit(main())
