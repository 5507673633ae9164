"""Two schedulers on the same requests, side by side, as widgets."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from driftsched_lib.engines.load import load_engine
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.experiments.speed import measure_speed
from driftsched_lib.figures.explorer import SideBySide, live_queue
from driftsched_lib.figures.style import policy_names
from driftsched_lib.policies import POLICIES
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import QueueDepth
from driftsched_lib.studies.compare import intervals
from driftsched_lib.workloads.drift import SCENARIOS

LIVE_S = 1.0
"""Seconds between two pictures of a run's queue; the run waits while one is drawn."""


@dataclass(frozen=True)
class Load:
    """The requests of both sides: the last phase's mix under a drift scenario.

    More tenants than three have a demand that falls as 1 / k, and take the tiers in turn.
    """

    load_factor: float = 6.0
    tenants: int = 3
    drift: str = "abrupt"
    seed: int = 1


@dataclass(frozen=True)
class Side:
    """One of the two schedulers; a policy or an estimator may be a user's `module:Class`."""

    policy: str
    estimator: str = "paper"
    batching: str = "continuous"


def setting(base: Params, load: Load, side: Side) -> Params:
    """Return the parameters of one side's run, with all else as in `base`."""
    phase = base.workload.phases[-1].model_dump() | {"share": 1.0, "load_factor": load.load_factor, "pause_s": 0.0}
    changes = {"phases": [phase], "drift": load.drift, "output_length": "limit"}
    if load.tenants > len(base.workload.tenants):
        tiers = list(base.tiers)
        changes |= {"tenants": {f"tenant-{i:03}": tiers[i % len(tiers)] for i in range(load.tenants)}, "zipf": 1.0}
    return base.changed(
        **{f"workload__{name}": value for name, value in changes.items()},
        scheduler__policies=[side.policy],
        scheduler__estimators=[side.estimator],
        scheduler__vary_estimates_for=[],
        scheduler__batching=[side.batching],
        scheduler__calibration=[True],
        scheduler__token_counter=["tokenizer"],
        measure__queue_depth_interval_s=0.02,
        seeds=[load.seed],
        rates=[1.0],
    )


@dataclass(frozen=True)
class Served:
    """One run: its completed requests (`metrics.latencies`) and its queue over time."""

    params: Params
    done: pd.DataFrame
    depth: pd.DataFrame


def simulate(params: Params, speed: results.EngineSpeed) -> Served:
    """Serve the first run of simulated parameters."""
    tables, _ = serve_run(params, params.runs()[0], load_engine(params.engine), speed)
    return Served(params, latencies(tables["requests"], speed.idle_ttft_s, speed.idle_tpot_s), tables["queue_depth"])


class Explorer:
    """The widgets: change one, and pictures and differences follow.

    Parameters:
        params: of the real engine; a load's and a side's settings replace its own.  Policies and estimators in it are
            offered beside the built-in ones, so that a user's own can be explored.
        profile: of the same engine, for the simulator.
        out: the folder for saved settings (`*.yaml`) and real runs (`real/`).

    Raises:
        ParamsError: the profile cannot be read, or does not fit the parameters.
    """

    def __init__(self, params: Params, profile: str, out: str | Path):
        self.real, self.out = params, Path(out)
        self.simulated = params.changed(engine__kind="simulated", engine__args={}, engine__profile=profile)
        probe = setting(self.simulated, Load(), Side("fifo"))
        self.speed = measure_speed(probe, load_engine(probe.engine, log_steps=True))  # one load factor, one rate
        self.engine, self.engine_speed = None, None
        self.served: dict[str, Served] = {}
        self.figure = SideBySide(2)
        self.load_controls = _load_controls(Load())
        self.side_controls = {name: self._side_controls(Side(policy)) for name, policy in (("A", "fifo"), ("B", "sjf"))}
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", width="max-content"))
        self.table, self.message = widgets.HTML(), widgets.HTML()
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="100%", display="none"))
        self.live = widgets.Image(format="png", layout=widgets.Layout(display="none"))
        columns = widgets.HBox(list(map(self._column, self.side_controls)))
        loads = widgets.HBox(list(self.load_controls.values()))
        self.widget = widgets.VBox([loads, columns, self.message, self.progress, self.live, self.table, self.image])
        for controls in (self.load_controls, *self.side_controls.values()):
            for control in controls.values():
                control.observe(self._changed, names="value")
        self.update()
        gc.freeze()  # else each collection looks through all that was imported, up to a fifth of a second

    @property
    def load(self) -> Load:
        """The requests, as the controls say."""
        return Load(**{name: control.value for name, control in self.load_controls.items()})

    def side(self, name: str) -> Side:
        """Return one side, as its controls say."""
        return Side(**{key: control.value for key, control in self.side_controls[name].items()})

    def update(self) -> None:
        """Simulate what has changed, and draw."""
        for name in self.side_controls:
            params = setting(self.simulated, self.load, self.side(name))
            if name not in self.served or self.served[name].params != params:
                self.served[name] = simulate(params, self.speed)
        self.message.value = ""
        self.image.value = self.picture()
        self.table.value = _html(self.differences(), "E2E, B against A")

    def picture(self) -> bytes:
        """Return both sides, simulated, as a PNG."""
        sides = {name: self.side(name) for name in self.served}
        names = policy_names(side.policy for side in sides.values())
        titles = {name: f"{name}: {names[s.policy]}, {s.estimator}, {s.batching}" for name, s in sides.items()}
        return _png(self.figure.draw({titles[name]: (run.done, run.depth) for name, run in self.served.items()}))

    def differences(self) -> pd.DataFrame:
        """Return how much B's E2E is above A's for the same requests, by tier, with 95% intervals."""
        a, b = (self.served[name].done for name in "AB")
        both = a[["request_id", "tier", "e2e_s"]].merge(b[["request_id", "e2e_s"]], on="request_id")
        both = both.iloc[both.request_id.astype(int).argsort()]
        e2e_s, rows = both[["e2e_s_y", "e2e_s_x"]].to_numpy(float).T, {}
        for tier in ("all", *(tier for tier in self.real.tiers if (both.tier == tier).any())):
            run = e2e_s if tier == "all" else e2e_s[:, both.tier == tier]
            changes = intervals([run], _mean_and_quantiles, lambda b, a: b / a - 1, resamples=400)
            rows[tier] = [f"{change.estimate:+.0%} [{change.low:+.0%}, {change.high:+.0%}]" for change in changes]
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "P50", "P99"])

    def save(self, name: str) -> Path:
        """Write a side's setting for the real engine, a file for `python -m driftsched_lib run`; return its path."""
        path = self.out / f"{self._name(name)}.yaml"
        with results.writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        params = setting(self.real, self.load, self.side(name))
        results.write_text(path, yaml.safe_dump(params.model_dump(), sort_keys=False))
        self._say(f"saved: python -m driftsched_lib run {path} --out {self.out / 'grids' / path.stem}")
        return path

    def run_on_vllm(self, name: str) -> pd.DataFrame:
        """Serve a side on the real engine with a live picture of its queue; return E2E by tier, simulated and real (s).

        The engine stays for the next run.  Interrupt the kernel to stop a run: the engine is then loaded anew.

        Raises:
            ParamsError: the engine cannot be loaded.
            RunError: it failed.
        """
        params = setting(self.real, self.load, self.side(name))
        self.progress.max, self.progress.value = params.requests, 0
        try:
            if self.engine is None:
                self._say("Loading vLLM and measuring its speed, half a minute ...")
                self.engine = load_engine(params.engine)
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
        both = pd.concat({"simulated": self.served[name].done, "real": done}, names=["engine"])
        table = both.groupby(["tier", "engine"], sort=False).e2e_s.quantile([0.50, 0.99]).unstack([2, 1])
        table.columns = [f"P{q * 100:.0f}, {engine}" for q, engine in table.columns]
        table = table.reindex([tier for tier in params.tiers if tier in table.index]).round(2)
        self._say(f"{name} on real vLLM, kept in {folder}:", _html(table, "E2E (s)"))
        return table

    def _column(self, name: str) -> widgets.Widget:
        run = _button(f"Run {name} on real vLLM", "play", lambda: self._try(lambda: self.run_on_vllm(name)))
        save = _button(f"Save {name} as YAML", "save", lambda: self._try(lambda: self.save(name)))
        controls = self.side_controls[name].values()
        return widgets.VBox([widgets.HTML(f"<b>{name}</b>"), *controls, widgets.HBox([run, save])])

    def _side_controls(self, side: Side) -> dict[str, widgets.Widget]:
        policies = [*POLICIES, *(p.name for p in self.real.scheduler.policies if p.name not in POLICIES)]
        estimators = [*ESTIMATORS, *(e.name for e in self.real.scheduler.estimators if e.name not in ESTIMATORS)]
        named = [(name, policy) for policy, name in policy_names(policies).items()]
        return {
            "policy": widgets.Dropdown(options=named, value=side.policy, description="policy"),
            "estimator": widgets.Dropdown(options=estimators, value=side.estimator, description="estimator"),
            "batching": widgets.ToggleButtons(options=["static", "continuous"], value=side.batching),
        }

    def _changed(self, change: object) -> None:
        shown = self._try(self.update)
        self.image.layout.display = self.table.layout.display = None if shown else "none"  # no stale picture

    def _try(self, action: Callable[[], object]) -> bool:
        """Return whether it was done; else say why, since nobody sees what a callback raises."""
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

    def _count(self, record: object) -> None:
        self.progress.value += 1

    def _watch(self) -> Callable[[float, Scheduler], None]:
        """Return a monitor that draws the queue about once in `LIVE_S`."""
        depth, drawn_s = QueueDepth(0.1), -LIVE_S

        def watch(now: float, scheduler: Scheduler) -> None:
            nonlocal drawn_s
            depth(now, scheduler)
            if now >= drawn_s + LIVE_S:
                self.live.value = _png(live_queue(pd.DataFrame(depth.rows, columns=["time_s", *scheduler.depth])))
                drawn_s = now

        return watch

    def _say(self, text: str, html: str = "") -> None:
        self.message.value = escape(text) + html


def _load_controls(load: Load) -> dict[str, widgets.Widget]:
    slider = {"min": -1, "max": 4, "base": 2, "step": 0.25, "readout_format": ".2f", "continuous_update": False}
    controls = {
        "load_factor": widgets.FloatLogSlider(**slider),
        "tenants": widgets.Dropdown(options=(3, 30, 300)),
        "drift": widgets.Dropdown(options=list(SCENARIOS)),
        "seed": widgets.IntSlider(min=1, max=30, continuous_update=False),
    }
    for name, value in asdict(load).items():
        controls[name].value, controls[name].description = value, name.replace("_", " ")
    return controls


def _button(text: str, icon: str, action: Callable[[], object]) -> widgets.Button:
    button = widgets.Button(description=text, icon=icon, layout=widgets.Layout(width="auto"))
    button.on_click(lambda clicked: action())
    return button


def _mean_and_quantiles(values: np.ndarray) -> np.ndarray:
    return np.stack([values.mean(axis=-1), *np.quantile(values, [0.50, 0.99], axis=-1)])


def _html(table: pd.DataFrame, corner: str) -> str:
    style = [{"selector": "th, td", "props": "text-align: right; padding: 0 1em"}]
    return table.rename_axis(columns=corner).style.set_table_styles(style).format(precision=2).to_html()


def _png(figure: Figure) -> bytes:
    image = BytesIO()
    figure.set_dpi(80)
    FigureCanvasAgg(figure).print_png(image, pil_kwargs={"compress_level": 1})  # savefig lays out, and draws twice
    return image.getvalue()
