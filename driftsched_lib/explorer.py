"""Two schedulers on the same requests, side by side, as widgets."""

import time
from collections import namedtuple
from html import escape
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.experiments.speed import measure_speed
from driftsched_lib.figures.explorer import SideBySide, live_queue
from driftsched_lib.figures.style import policy_names
from driftsched_lib.policies import POLICIES
from driftsched_lib.serving import QueueDepth
from driftsched_lib.studies.compare import intervals, mean, quantile
from driftsched_lib.workloads.drift import SCENARIOS

Served = namedtuple("Served", "params done depth")  # of one run; `done` is of `metrics.latencies`


class Choice(NamedTuple):
    """One scheduler and its requests; more tenants than three have a demand that falls as 1 / k, the tiers in turn."""

    policy: str
    estimator: str = "paper"
    batching: str = "continuous"
    load_factor: float = 6.0
    tenants: int = 3
    drift: str = "abrupt"
    seed: int = 1


def setting(base: Params, choice: Choice) -> Params:
    """Return the parameters of one run, with all else as in `base`."""
    phase = base.workload.phases[-1].model_dump() | {"share": 1.0, "load_factor": choice.load_factor, "pause_s": 0.0}
    changes = {"workload__phases": [phase], "workload__drift": choice.drift, "workload__output_length": "limit"}
    if choice.tenants > len(base.workload.tenants):
        tenants = {f"tenant-{i:03}": list(base.tiers)[i % len(base.tiers)] for i in range(choice.tenants)}
        changes |= {"workload__tenants": tenants, "workload__zipf": 1.0}
    changes |= {"scheduler__policies": [choice.policy], "scheduler__estimators": [choice.estimator]}
    changes |= {"scheduler__batching": [choice.batching], "scheduler__token_counter": ["tokenizer"]}
    changes |= {"scheduler__calibration": [True], "scheduler__vary_estimates_for": []}
    return base.changed(**changes, measure__queue_depth_interval_s=0.02, seeds=[choice.seed], rates=[1.0])


def simulate(params: Params, speed: results.EngineSpeed, real=None) -> Served:
    """Serve the first run of simulated parameters; a real engine, if it is there, gives its limits and tokenizer."""
    engine = load_engine(params.engine)
    if real is not None:
        profile = engine.profile.model_copy(update={"limits": real.limits})
        engine = SimulatedEngine(profile, lambda one: (len(real.tokenizer.encode(one.prompt)), one.fixed_output_tokens))
        engine.count_tokens = real.count_tokens
    tables, _ = serve_run(params, params.runs()[0], engine, speed)
    return Served(params, latencies(tables["requests"], speed.idle_ttft_s, speed.idle_tpot_s), tables["queue_depth"])


class Explorer:
    """The widgets: change one, and pictures and differences follow.

    `params` are of the real engine; `profile` says what an iteration costs there and on the simulator.  Policies and
    estimators of `params` are offered, too.  `out` gets saved settings (`*.yaml`) and real runs (`real/`).
    """

    def __init__(self, params: Params, profile: str, out: str | Path):
        self.out, vllm = Path(out), params.engine.kind == "vllm"
        self.real = params.changed(engine__profile=profile) if vllm else params
        self.simulated = params.changed(engine__kind="simulated", engine__args={}, engine__profile=profile)
        probe = setting(self.simulated, Choice("fifo"))
        self.speed = measure_speed(probe, load_engine(probe.engine, log_steps=True))  # one load factor, one rate
        self.engine, self.engine_speed, self.known = None, None, {}
        self.served, self.figure = {}, SideBySide(2, params.tiers)
        late, wide, hidden = {"continuous_update": False}, {"width": "100%"}, {"width": "100%", "display": "none"}
        self.load_controls = {
            "load_factor": widgets.FloatLogSlider(6.0, min=-1, max=4, base=2, step=0.25, readout_format=".2f", **late),
            "tenants": widgets.Dropdown(options=(3, 30, 300)),
            "drift": widgets.Dropdown(options=list(SCENARIOS), value="abrupt"),
            "seed": widgets.IntSlider(1, min=1, max=30, **late),
        }
        self.side_controls = {"A": self._side("fifo"), "B": self._side("sjf")}
        self.image, self.table, self.message = widgets.Image(format="png", layout=wide), widgets.HTML(), widgets.HTML()
        self.live, self.progress = widgets.Image(format="png", layout=hidden), widgets.IntProgress(layout=hidden)
        rows = [widgets.HBox([*self.load_controls.values()]), widgets.HBox([*map(self._column, self.side_controls)])]
        self.widget = widgets.VBox([*rows, self.message, self.progress, self.live, self.table, self.image])
        for controls in (self.load_controls, *self.side_controls.values()):
            for name, control in controls.items():
                control.description = name.replace("_", " ")
                control.observe(self._changed, names="value")
        self.update()

    def update(self) -> None:
        """Simulate what has changed, and draw."""
        for name in self.side_controls:
            params = setting(self.simulated, self._chosen(name))
            if name not in self.served or self.served[name].params != params:
                self.served[name] = simulate(params, self.speed, **self.known)
        self.message.value, self.image.value = "", self.picture()
        self.table.value = _html(self.differences(), "E2E, B against A")

    def picture(self) -> bytes:
        """Return both sides, simulated, as a PNG."""
        names, runs = policy_names(self._chosen(name).policy for name in self.served), {}
        for name, side in ((name, self._chosen(name)) for name in self.served):
            runs[f"{name}: {names[side.policy]}, {side.estimator}, {side.batching}"] = self.served[name][1:]
        return _png(self.figure.draw(runs))

    def differences(self) -> pd.DataFrame:
        """Return how much B's E2E is above A's for the same requests, by tier, with 95% intervals."""
        a, b = (self.served[name].done[["request_id", "tier", "e2e_s"]] for name in "AB")
        both = a.merge(b, on=["request_id", "tier"]).sort_values("request_id", key=lambda ids: ids.astype(int))
        stats, rows = {"mean": mean, "P50": quantile(0.50), "P99": quantile(0.99)}, {}
        for tier in ("all", *(tier for tier in self.real.tiers if tier in set(both.tier))):
            pair = both[(both.tier == tier) | (tier == "all")][["e2e_s_y", "e2e_s_x"]].to_numpy(float).T
            changes = intervals([pair], lambda x: np.stack([f(x) for f in stats.values()]), lambda b, a: b / a - 1, 400)
            rows[tier] = [f"{change:+.0%}" for change in changes]
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(stats))

    def save(self, name: str) -> Path:
        """Write a side's setting for the real engine, a file for `python -m driftsched_lib run`; return its path."""
        path = self.out / f"{self._name(name)}.yaml"
        results.write_text(path, yaml.safe_dump(setting(self.real, self._chosen(name)).model_dump(), sort_keys=False))
        self._say(f"saved: python -m driftsched_lib run {path} --out {self.out / 'grids' / path.stem}")
        return path

    def run_on_vllm(self, name: str) -> pd.DataFrame:
        """Serve a side on the real engine with a live picture of its queue; return E2E by tier, simulated and real (s).

        The simulator takes vLLM's limits, speed and tokenizer.  So both agree to the digit: lengths are pinned, and
        estimates learn from tokens, not from sampled words.  The engine stays; after an interrupt it is loaded anew.
        """
        params = setting(self.real, self._chosen(name))
        self.progress.max, self.progress.value = params.requests, 0
        self.depth, self.drawn_s = QueueDepth(0.1), 0.0
        try:
            if self.engine is None:
                self._say("Loading vLLM and measuring its speed, half a minute ...")
                self.engine = load_engine(params.engine)
                self.engine_speed = measure_speed(params, self.engine)
                if params.engine.profile is not None:
                    self.known, self.speed, self.served = {"real": self.engine}, self.engine_speed, {}
                    self.update()
            self._say(f"{name} on real vLLM ...")
            self.progress.layout.display = self.live.layout.display = None
            served = serve_run(params, params.runs()[0], self.engine, self.engine_speed, self._count, self._watch)
        except BaseException:
            engine, self.engine = self.engine, None
            if engine is not None:
                engine.close()
            raise
        folder = self.out / "real" / self._name(name)
        results.write_run(folder, *served)
        done = latencies(served[0]["requests"], self.engine_speed.idle_ttft_s, self.engine_speed.idle_tpot_s)
        e2e_s = {"simulated": self.served[name].done.groupby("tier").e2e_s, "real": done.groupby("tier").e2e_s}
        table = pd.DataFrame({f"P{q}, {side}": e2e_s[side].quantile(q / 100) for q in (50, 99) for side in e2e_s})
        table = table.reindex([tier for tier in params.tiers if tier in table.index]).round(2)
        self._say(f"{name} on real vLLM, kept in {folder}:", _html(table, "E2E (s)"))
        return table

    def _chosen(self, name: str) -> Choice:
        controls = self.side_controls[name] | self.load_controls
        return Choice(**{key: control.value for key, control in controls.items()})

    def _name(self, name: str) -> str:
        side = self._chosen(name)
        return f"{setting(self.real, side).runs()[0].name}_{side.drift}_load{side.load_factor:g}_{side.tenants}tenants"

    def _column(self, name: str) -> widgets.Widget:
        real, save = f"Run {name} on real vLLM", f"Save {name} as YAML"
        buttons = []
        for text, icon, action in ((real, "play", self.run_on_vllm), (save, "save", self.save)):
            buttons.append(widgets.Button(description=text, icon=icon, layout=widgets.Layout(width="auto")))
            buttons[-1].on_click(lambda clicked, action=action: self._try(action, name))
        rows = [widgets.HTML(f"<b>{name}</b>"), *self.side_controls[name].values(), widgets.HBox(buttons)]
        return widgets.VBox(rows, layout=widgets.Layout(flex="1"))

    def _side(self, policy: str) -> dict[str, widgets.Widget]:
        offered = self.real.scheduler
        policies = policy_names([*POLICIES, *(component.name for component in offered.policies)]).items()
        estimators = list(dict.fromkeys([*ESTIMATORS, *(component.name for component in offered.estimators)]))
        return {
            "policy": widgets.Dropdown(options=[(name, key) for key, name in policies], value=policy),
            "estimator": widgets.Dropdown(options=estimators, value="paper"),
            "batching": widgets.ToggleButtons(options=["static", "continuous"], value="continuous"),
        }

    def _changed(self, change: object) -> None:
        self.image.layout.display = self.table.layout.display = None if self._try(self.update) else "none"  # none stale

    def _try(self, action, *arguments: str) -> bool:
        """Return whether it was done; else say why, since nobody sees what a callback raises."""
        try:
            action(*arguments)
            return True
        except KeyboardInterrupt:
            self._say("stopped; press again")
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        return False

    def _say(self, text: str, html: str = "") -> None:
        self.message.value = escape(text) + html

    def _count(self, record: object) -> None:
        self.progress.value += 1

    def _watch(self, now: float, scheduler) -> None:
        self.depth(now, scheduler)
        if time.monotonic() >= self.drawn_s + 1.0:  # the run waits while a picture is drawn
            self.drawn_s = time.monotonic()
            self.live.value = _png(live_queue(pd.DataFrame(self.depth.rows, columns=["time_s", *scheduler.depth])))


def _html(table: pd.DataFrame, corner: str) -> str:
    style = table.rename_axis(index=None, columns=corner).style.format(precision=2)
    return style.set_table_styles([{"selector": "th, td", "props": "text-align: right; padding: 0 1em"}]).to_html()


def _png(figure) -> bytes:
    figure.set_dpi(80)
    FigureCanvasAgg(figure).print_png(image := BytesIO(), pil_kwargs={"compress_level": 1})  # savefig draws twice
    return image.getvalue()
