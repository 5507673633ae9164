"""Two schedulers on the same requests, side by side, as widgets: change one, and pictures and differences follow."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments import results
from driftsched_lib.experiments.engine import load_engine, measure_speed
from driftsched_lib.experiments.metrics import latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.figures.explorer import SideBySide, live_queue
from driftsched_lib.figures.style import POLICY_NAMES
from driftsched_lib.requests import TIERS, Record
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import QueueDepth
from driftsched_lib.studies.compare import intervals
from driftsched_lib.workloads.drift import SCENARIOS

TENANTS = (3, 30, 300)
DPI = 80
LIVE_S = 1.0
"""Seconds between two pictures of a run's queue; the run waits while one is drawn."""


@dataclass(frozen=True)
class Load:
    """The requests, the same for both sides: of the last phase's mix, their lengths drifting as a scenario says.

    More tenants than three have a demand that falls as 1 / k, their tiers in turn.
    """

    load_factor: float = 6.0
    tenants: int = 3
    drift: str = "abrupt"
    seed: int = 1


@dataclass(frozen=True)
class Side:
    """One of the two schedulers."""

    policy: str
    estimator: str = "paper"
    batching: str = "continuous"

    def __str__(self) -> str:
        return f"{POLICY_NAMES[self.policy]}, {self.estimator}, {self.batching}"


def setting(base: Params, load: Load, side: Side) -> Params:
    """The one run of a side on a load, with all else as in `base`."""
    phase = base.workload.phases[-1].model_copy(update={"share": 1.0, "load_factor": load.load_factor, "pause_s": 0.0})
    workload = {"phases": [phase], "drift": load.drift}
    if load.tenants > len(base.workload.tenants):
        tiers = {f"tenant-{i:03}": TIERS[i % len(TIERS)] for i in range(load.tenants)}
        workload |= {"tenants": tiers, "zipf": 1.0}
    return Params.parse(
        base.model_dump()
        | {
            "workload": base.workload.model_copy(update=workload).model_dump(),
            "output_length": "limit",
            "policies": [side.policy],
            "estimators": [side.estimator],
            "batching": [side.batching],
            "calibration": [True],
            "token_counter": ["tokenizer"],
            "seeds": [load.seed],
            "rates": [1.0],
            "queue_depth_interval_s": 0.02,
        },
        "explorer",
    )


@dataclass(frozen=True)
class Served:
    """What one run came to: its completed requests (as of `metrics.latencies`) and its queue over time."""

    params: Params
    done: pd.DataFrame
    depth: pd.DataFrame


def simulate(params: Params, speed: EngineSpeed) -> Served:
    """The first run of simulated parameters."""
    tables, _ = serve_run(params, params.runs()[0], load_engine(params), speed)
    return Served(params, latencies(tables["requests"], speed.idle_ttft_s, speed.idle_tpot_s), tables["queue_depth"])


def paired_differences(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """How much B's E2E is above A's for the same requests, by tier, with 95% intervals; `metrics.latencies` each."""
    both = a[["request_id", "tier", "e2e_s"]].merge(b[["request_id", "e2e_s"]], on="request_id")
    both = both.iloc[both.request_id.astype(int).argsort()]
    e2e_s, rows = both[["e2e_s_y", "e2e_s_x"]].to_numpy(float).T, {}
    for tier in ("all", *TIERS):
        run = e2e_s if tier == "all" else e2e_s[:, both.tier == tier]
        changes = intervals([run], _mean_and_quantiles, lambda b, a: b / a - 1, resamples=400)
        rows[tier] = [f"{change.estimate:+.0%} [{change.low:+.0%}, {change.high:+.0%}]" for change in changes]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "P50", "P99"])


def _mean_and_quantiles(values: np.ndarray) -> np.ndarray:
    return np.stack([values.mean(axis=-1), *np.quantile(values, [0.50, 0.99], axis=-1)])


class Explorer:
    """The widgets.

    Parameters:
        params: of the real engine; a load's and a side's settings replace its own.
        profile: of the same engine, for the simulator.
        out: the folder for saved settings (`*.yaml`), real runs (`real/`), and, as a saved setting is said to be run,
            grids (`grids/`).

    Raises:
        ParamsError: the profile cannot be read, or does not fit the parameters.
    """

    def __init__(self, params: Params, profile: str, out: str | Path):
        self.real = params
        self.out = Path(out)
        self.simulated = params.model_copy(update={"engine": "simulated", "engine_args": {}, "profile": profile})
        probe = setting(self.simulated, Load(), Side("fifo"))
        # Once, so that a load factor is the same arrival rate whoever asks.
        self.speed = measure_speed(probe, load_engine(probe, log_steps=True))
        self.engine, self.engine_speed = None, None
        self.served: dict[str, Served] = {}
        self.figure = SideBySide(2)
        self.load_controls = _load_controls()
        self.side_controls = {"A": _side_controls(Side("fifo")), "B": _side_controls(Side("sjf"))}
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", width="max-content"))
        self.table = widgets.HTML()
        self.message = widgets.HTML()
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="100%", display="none"))
        self.live = widgets.Image(format="png", layout=widgets.Layout(display="none"))
        self.widget = widgets.VBox(
            [
                widgets.HBox(list(self.load_controls.values())),
                widgets.HBox(list(map(self._column, self.side_controls))),
                self.message,
                self.progress,
                self.live,
                self.table,
                self.image,
            ]
        )
        for control in (
            *self.load_controls.values(),
            *(c for side in self.side_controls.values() for c in side.values()),
        ):
            control.observe(self._changed, names="value")
        self.update()
        gc.freeze()  # or each collection looks through all that was imported, a fifth of a second now and then

    def _column(self, name: str) -> widgets.Widget:
        buttons = [
            _button(f"Run {name} on real vLLM", "play", lambda: self._say_errors_of(lambda: self.run_on_vllm(name))),
            _button(f"Save {name} as YAML", "save", lambda: self._say_errors_of(lambda: self.save(name))),
        ]
        return widgets.VBox([widgets.HTML(f"<b>{name}</b>"), *self.side_controls[name].values(), widgets.HBox(buttons)])

    @property
    def load(self) -> Load:
        """The requests, as the controls say."""
        return Load(**{name: control.value for name, control in self.load_controls.items()})

    def side(self, name: str) -> Side:
        """One side, as its controls say."""
        return Side(**{key: control.value for key, control in self.side_controls[name].items()})

    def update(self) -> None:
        """Simulate what has changed, and draw."""
        for name in self.side_controls:
            params = setting(self.simulated, self.load, self.side(name))
            if name not in self.served or self.served[name].params != params:
                self.served[name] = simulate(params, self.speed)
        self.message.value = ""
        self.image.value = self.picture()
        self.table.value = _html(self.differences().rename_axis("E2E, B against A"))

    def picture(self) -> bytes:
        """Both sides, simulated, as a PNG."""
        runs = {f"{name}: {self.side(name)}": (run.done, run.depth) for name, run in self.served.items()}
        return _png(self.figure.draw(runs))

    def differences(self) -> pd.DataFrame:
        """B's E2E against A's; see `paired_differences`."""
        return paired_differences(self.served["A"].done, self.served["B"].done)

    def save(self, name: str) -> Path:
        """Write a side's setting for the real engine, a file for `python -m driftsched_lib run`; where it is."""
        path = self.out / f"{self._name(name)}.yaml"
        with results.writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        params = setting(self.real, self.load, self.side(name))
        results.write_text(path, yaml.safe_dump(params.model_dump(), sort_keys=False))
        self._say(f"saved: python -m driftsched_lib run {path} --out {self.out / 'grids' / path.stem}")
        return path

    def run_on_vllm(self, name: str) -> pd.DataFrame:
        """Serve a side on the real engine, with a live picture of its queue; E2E by tier, simulated and real (s).

        The engine stays for the next time, the run in a folder of `out`.  To stop a run, interrupt the kernel: the
        requests in it go with the engine, which is loaded anew the next time.

        Raises:
            ParamsError: the engine cannot be loaded.
            RunError: it failed.
        """
        params = setting(self.real, self.load, self.side(name))
        self.progress.max, self.progress.value = params.requests, 0
        try:
            if self.engine is None:
                self._say("Loading vLLM and measuring its speed, half a minute ...")
                self.engine = load_engine(params)
                self.engine_speed = measure_speed(params, self.engine)
            self._say(f"{name} on real vLLM ...")
            self.progress.layout.display = self.live.layout.display = None
            run, speed = params.runs()[0], self.engine_speed
            tables, manifest = serve_run(params, run, self.engine, speed, self._count, self._watch())
        except BaseException:
            engine, self.engine = self.engine, None
            if engine is not None:
                engine.close()
            raise
        folder = self.out / "real" / self._name(name)
        results.write_run(folder, tables, manifest)
        done = latencies(tables["requests"], speed.idle_ttft_s, speed.idle_tpot_s)
        both = {"simulated": self.served[name].done, "real": done}
        table = pd.concat(both, names=["engine"]).groupby(["tier", "engine"], sort=False).e2e_s.quantile([0.50, 0.99])
        table = table.unstack([1, 2]).sort_index(axis=1, level=1, sort_remaining=False)
        table.columns = [f"P{q * 100:.0f}, {engine}" for engine, q in table.columns]
        table = table.reindex([tier for tier in TIERS if tier in table.index]).rename_axis("E2E (s)")
        self._say(f"{name} on real vLLM, kept in {folder}:", table.round(2))
        return table

    def _changed(self, change: object) -> None:
        shown = self._say_errors_of(self.update)
        self.image.layout.display = self.table.layout.display = None if shown else "none"  # no stale picture

    def _say_errors_of(self, action: Callable[[], object]) -> bool:
        """Whether it was done; what a callback raises is seen by nobody, so it is said."""
        try:
            action()
        except KeyboardInterrupt:
            self._say("stopped; press again")
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            return True
        return False

    def _name(self, name: str) -> str:
        load = self.load
        run = setting(self.real, load, self.side(name)).runs()[0]
        return f"{run.name}_{load.drift}_load{load.load_factor:g}_{load.tenants}tenants"

    def _count(self, record: Record) -> None:
        self.progress.value += 1

    def _watch(self) -> Callable[[float, Scheduler], None]:
        """What draws the queue, about once in `LIVE_S`."""
        depth, drawn_s = QueueDepth(0.1), -LIVE_S

        def watch(now: float, scheduler: Scheduler) -> None:
            nonlocal drawn_s
            depth(now, scheduler)
            if now >= drawn_s + LIVE_S:
                self.live.value = _png(live_queue(pd.DataFrame(depth.rows, columns=["time_s", *TIERS])))
                drawn_s = now

        return watch

    def _say(self, text: str, table: pd.DataFrame | None = None) -> None:
        self.message.value = escape(text) + ("" if table is None else _html(table))


def _load_controls() -> dict[str, widgets.Widget]:
    plain = Load()
    return {
        "load_factor": widgets.FloatLogSlider(
            plain.load_factor,
            min=-1,
            max=4,
            base=2,
            step=0.25,
            description="load factor",
            readout_format=".2f",
            continuous_update=False,
        ),
        "tenants": widgets.Dropdown(options=TENANTS, value=plain.tenants, description="tenants"),
        "drift": widgets.Dropdown(options=list(SCENARIOS), value=plain.drift, description="drift"),
        "seed": widgets.IntSlider(plain.seed, min=1, max=30, description="seed", continuous_update=False),
    }


def _side_controls(side: Side) -> dict[str, widgets.Widget]:
    return {
        "policy": widgets.Dropdown(
            options=[(name, policy) for policy, name in POLICY_NAMES.items()], value=side.policy, description="policy"
        ),
        "estimator": widgets.Dropdown(options=list(ESTIMATORS), value=side.estimator, description="estimator"),
        "batching": widgets.ToggleButtons(options=["static", "continuous"], value=side.batching),
    }


def _button(text: str, icon: str, action: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(description=text, icon=icon, layout=widgets.Layout(width="auto"))
    button.on_click(lambda clicked: action())
    return button


def _html(table: pd.DataFrame) -> str:
    return table.reset_index().to_html(border=0, index=False)


def _png(figure: Figure) -> bytes:
    image = BytesIO()
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(image, pil_kwargs={"compress_level": 1})  # savefig lays out, and draws twice
    return image.getvalue()
