"""The command line: `python -m driftsched_lib COMMAND`, thin over the package."""

import argparse
import sys
import warnings
from pathlib import Path

import yaml

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.validation import PROJECT, YamlLoader, once

COMMANDS = {  # by name: what it does, its argument and its output
    "run": ("serve a grid of runs; a run that is finished in --out is not repeated", "PARAMS.yaml", "DIR"),
    "notebooks": ("run, then notebooks 01 to 03 on it, and a report", "PARAMS.yaml", "DIR"),
    "profile": ("fit a profile for the simulator from a run without preemptions", "RUN", "FILE.json"),
    "pack": ("keep a results folder as one parquet file", "DIR", "FILE.parquet"),
    "trace": ("describe a request trace, and keep its length mix for `lengths` of a phase", "FILE", "FILE.json"),
    "fidelity": ("serve the real runs that notebook 04 compares the simulator with", None, "DIR"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 1 if requests failed, 2 for a fault; a message on stderr says why."""
    sys.path.insert(0, str(Path.cwd()))  # a policy in a file here is named my_module:Class
    options = _parser().parse_args(arguments)
    try:
        return _do(options) or 0
    except DriftSchedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m driftsched_lib", description=__doc__)
    parsers, commands = {}, parser.add_subparsers(dest="command", required=True)
    for name, (help, argument, out) in COMMANDS.items():
        parsers[name] = commands.add_parser(name, help=help)
        if argument is not None:
            parsers[name].add_argument(argument.lower().partition(".")[0], metavar=argument)
        parsers[name].add_argument("--out", required=name != "trace", metavar=out)
    for grid in (parsers["run"], parsers["notebooks"]):
        grid.add_argument("--set", action="append", default=[], type=_pair, metavar="KEY=VALUE")
        grid.add_argument("--jobs", type=int, metavar="N", help="runs at a time in virtual time (default: a core each)")
        grid.add_argument("--backend", choices=["loky", "ray"], default="loky", help="processes here, or a Ray cluster")
    trace = parsers["trace"]
    trace.add_argument("--format", required=True)
    trace.add_argument("--column", action="append", default=[], type=lambda it: _pair(it, str), metavar="FIELD=NAME")
    trace.add_argument("--time-unit", metavar="UNIT", help="of times that are numbers: s, ms, us or ns")
    trace.add_argument("--skip-bad-rows", action="store_true", help="count and show them instead of refusing the trace")
    trace.add_argument("--source", metavar="TEXT", help="whose trace it is, its licence and what to cite")
    parsers["fidelity"].add_argument("--engines", nargs="+", default=["tiny", "llama-130m"], help="or qwen-1.8b")
    return parser


def _pair(text: str, read=lambda text: yaml.load(text, YamlLoader)) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, read(value)
    except (yaml.YAMLError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML: {error}") from None


def _do(options: argparse.Namespace) -> int | None:
    """Do a command, which imports only what it needs, so that help and faults are shown at once; return its status."""
    match options.command:
        case "run" | "notebooks":
            from driftsched_lib.experiments.grid import run_grid
            from driftsched_lib.experiments.params import Params

            params = Params.load(options.params, once("--set", options.set))
            with warnings.catch_warnings(record=True) as caught:  # below the table they are seen
                summary = run_grid(params, options.out, jobs=options.jobs, backend=options.backend)
            print(summary.to_string(max_cols=14))
            sys.stderr.writelines(f"{warning.message}\n" for warning in caught)
            if options.command == "notebooks":
                from driftsched_lib.figures.report import execute_notebooks

                execute_notebooks(options.out)
                print(f"The report is {options.out}/report.html, the executed notebooks and the results lie beside it.")
            return int(summary.failed.any())
        case "profile":
            from driftsched_lib.experiments.profiling import profile_of_run

            profile = profile_of_run(options.run)
            profile.save(options.out)
            print(profile.model_dump_json(indent=2, include={"step", "provenance"}))
        case "pack":
            from driftsched_lib.experiments.results import pack

            pack(options.dir, options.out)
        case "trace":
            from driftsched_lib.workloads.length_mix import LengthMix
            from driftsched_lib.workloads.traces import Faults, read_trace

            faults, on_bad_row = Faults(), "skip" if options.skip_bad_rows else "refuse"
            columns, unit = once("--column", options.column), options.time_unit
            rows = read_trace(options.file, options.format, columns, on_bad_row, faults, time_unit=unit)
            mix = LengthMix.of_trace(rows, options.source or options.file)
            if options.out is not None:
                mix.save(options.out)
            print(mix)
            if str(faults):
                print(faults, file=sys.stderr)
        case "fidelity":
            from driftsched_lib.studies.fidelity import measure

            measure(PROJECT / "params" / "fidelity.yaml", options.out, options.engines)


if __name__ == "__main__":
    sys.exit(main())
