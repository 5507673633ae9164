"""The command line: `python -m driftsched_lib COMMAND`, thin over the package."""

import argparse
import sys
from pathlib import Path

import yaml

from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.validation import PROJECT


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status, 2 for a fault that a message on stderr explains."""
    parser = argparse.ArgumentParser(prog="python -m driftsched_lib", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, function, help: str, *positional: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        added.set_defaults(command=function)
        for argument in positional:
            added.add_argument(argument.lower().partition(".")[0], metavar=argument)
        return added

    run = command("run", _run, "serve a grid of runs and write a results folder", "PARAMS.yaml")
    run.add_argument("--jobs", type=int, metavar="N", help="simulated runs at a time (default: one per core)")
    run.add_argument("--backend", choices=["loky", "ray"], default="loky", help="processes here, or a Ray cluster")
    notebooks = command("notebooks", _notebooks, "run, then notebooks 01 to 03 on it, and a report", "PARAMS.yaml")
    for grid in (run, notebooks):
        grid.add_argument("--out", required=True, metavar="DIR", help="a finished run in it is not repeated")
        grid.add_argument("--set", action="append", default=[], type=_override, metavar="KEY=VALUE")
    profile = command("profile", _profile, "fit a profile for the simulator from a run without preemptions", "RUN")
    profile.add_argument("--out", required=True, metavar="FILE.json")
    pack = command("pack", _pack, "keep a results folder as one parquet file", "DIR")
    pack.add_argument("--out", required=True, metavar="FILE.parquet")
    trace = command("trace", _trace, "describe a request trace, and keep its length mix for other loads", "FILE")
    trace.add_argument("--format", required=True)
    trace.add_argument("--column", action="append", default=[], type=_pair, metavar="FIELD=NAME")
    trace.add_argument("--skip-bad-rows", action="store_true", help="count and show them instead of refusing the trace")
    trace.add_argument("--source", metavar="TEXT", help="whose trace it is, its licence and what to cite")
    trace.add_argument("--out", metavar="FILE.json", help="for `lengths` of a phase in the parameters")
    fidelity = command("fidelity", _fidelity, "serve the real runs that notebook 04 compares the simulator with")
    fidelity.add_argument("--out", required=True, metavar="DIR", help="a finished run in it is not repeated")
    fidelity.add_argument("--engines", nargs="+", default=["tiny", "llama-130m"], metavar="ENGINE")

    sys.path.insert(0, str(Path.cwd()))  # a policy in a file here is named my_module:Class
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
    from driftsched_lib.experiments.grid import run_grid
    from driftsched_lib.experiments.params import Params

    params = Params.load(options.params, dict(options.set))
    print(run_grid(params, options.out, jobs=options.jobs, backend=options.backend).to_string(max_cols=14))


def _notebooks(options: argparse.Namespace) -> None:
    from driftsched_lib.experiments.grid import run_grid
    from driftsched_lib.experiments.params import Params
    from driftsched_lib.figures.report import execute_notebooks

    run_grid(Params.load(options.params, dict(options.set)), options.out)
    execute_notebooks(options.out)
    print(f"The report is {options.out}/report.html, the executed notebooks and the results lie beside it.")


def _profile(options: argparse.Namespace) -> None:
    from driftsched_lib.experiments.profiling import profile_of_run
    from driftsched_lib.experiments.results import writing

    profile = profile_of_run(options.run)
    with writing(options.out):
        profile.save(options.out)
    print(profile.model_dump_json(indent=2, include={"step", "provenance"}))


def _pack(options: argparse.Namespace) -> None:
    from driftsched_lib.experiments.results import pack

    pack(options.dir, options.out)


def _trace(options: argparse.Namespace) -> None:
    from driftsched_lib.workloads.length_mix import LengthMix
    from driftsched_lib.workloads.traces import Faults, read_trace

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


if __name__ == "__main__":
    sys.exit(main())
