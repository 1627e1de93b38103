"""The engine's part of the report of bench/gpu_check.sh: goals, tables and a picture from the lines of gpu_engine.py.

Decides the goals of an engine, what a share of a floor and a peer's ratio are (above 1: quire is faster), and that
figures taken on anything but a GPU meet no goal. Makes what it can of whatever lines there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Line = dict[str, Any]
PHASES = ("python", "import", "load", "first_token")


class EngineLines:
    """Figures by case, those of peers by case and peer."""

    def __init__(self, lines: list[Line]) -> None:
        self.cases = {line["case"]: line for line in lines if line["kind"] == "engine"}
        self.traces = {line["case"]: line for line in lines if line["kind"] == "engine_trace"}
        self.loads = {line["case"]: line for line in lines if line["kind"] == "engine_load"}
        self.peers: dict[str, dict[str, Line]] = {}
        for line in lines:
            if line["kind"] == "engine_peer":
                self.peers.setdefault(line["case"], {})[line["peer"]] = line
        self.peer_names = list(dict.fromkeys(line["peer"] for line in lines if line["kind"] == "engine_peer"))
        self.devices = sorted(
            {line["device"] for line in lines if line["kind"].startswith("engine") and "device" in line}
        )
        self.is_measured = "cuda" in self.devices

    def of(self, workload: str) -> list[Line]:
        return [line for line in self.cases.values() if line["workload"] == workload]

    def measured(self, case: str) -> Line | None:
        line = self.cases.get(case, self.traces.get(case))
        return line if line is not None and line.get("device") == "cuda" else None


def share_of_floor(line: Line) -> float | None:
    if line.get("floor_ms"):
        return line["floor_ms"] / line["ms"]
    return line["floor_seconds"] / line["seconds"] if line.get("floor_seconds") else None


def idle_share(line: Line) -> float | None:
    """As the engine counted it, else between the steps of a trace."""
    counters = line.get("counters", {})
    if counters.get("step_seconds", 0) > 0 and "device_idle_seconds" in counters:
        return counters["device_idle_seconds"] / counters["step_seconds"]
    return line.get("idle_between_steps_share")


# Goals ---------------------------------------------------------------------------------------------------------------


def goals(lines: EngineLines) -> list[Line]:
    def goal(name: str, wanted: str, value: float | None, is_met: bool, got: str) -> Line:
        state = "not measured" if value is None else "met" if is_met else "not met"
        return {"goal": name, "wanted": wanted, "value": value, "state": state, "got": got}

    def latency(model: str, name: str, wanted: float) -> Line:
        line = lines.measured(f"decode/{model}/b1")
        ms = line["ms"] if line else None
        got = f"{ms:.2f} ms" if ms is not None else "-"
        if line and (share_of_floor(line) or 0) > 1.1:
            ms, got = None, f"- ({got} is less than its bytes take: a wrong measurement)"
        return goal(
            f"{name} bf16, batch 1, 1,024 tokens", f"at most {wanted} ms a token", ms, (ms or 1e9) <= wanted, got
        )

    def throughput(case: str, name: str, wanted: float) -> Line:
        line = lines.measured(case)
        value = line["tok_s"] if line else None
        got = f"{value:,.0f} tok/s" if value is not None else "-"
        family = case.rsplit("/", 1)[0]
        smaller = [
            other
            for other in lines.of("throughput")
            if other["case"].startswith(family) and lines.measured(other["case"])
        ]
        if value is None and smaller:
            got = f"- ({smaller[-1]['tok_s']:,.0f} tok/s at {smaller[-1]['case'].split('/')[-1]})"
        return goal(name, f"at least {wanted:,.0f} output tok/s", value, (value or 0) >= wanted, got)

    start = lines.measured("startup/llama-8b")
    seconds = start["seconds"] if start else None
    idle = [lines.measured(case) for case in ("decode/llama-8b/b1", "trace/llama-8b/b1")]
    shares = [share for line in idle if line and (share := idle_share(line)) is not None]
    share = shares[0] if shares else None
    slept = lines.measured("sleep/qwen3-8b/level1")
    slow = max(slept["sleep_seconds"], slept["wake_weights_seconds"] + slept["wake_cache_seconds"]) if slept else None
    left = slept["left_bytes"] / 2**20 if slept else None
    return [
        latency("llama-8b", "Llama 8B", 3.9),
        latency("llama-1b", "Llama 1B", 0.72),
        throughput("throughput/qwen3-8b/n256_i1024_o1024", "Qwen3-8B, 256 x 1,024 in, 1,024 out", 9800),
        throughput("throughput/qwen3-0.6b/nano_n256", "Qwen3-0.6B, nano-vllm's 256 requests", 28000),
        goal(
            "start to first token, Llama 8B in the page cache", "at most 3 s", seconds, (seconds or 1e9) <= 3,
            f"{seconds:.2f} s" if seconds is not None else "-",
        ),
        goal(
            "GPU idle between steps, Llama 8B, batch 1", "at most 1%", share, share is not None and share <= 0.01,
            f"{share:.1%}" if share is not None else "-",
        ),
        goal(
            "sleep and wake-up of level 1, Qwen3-8B", "at most 0.45 s each", slow, (slow or 1e9) <= 0.45,
            f"{slow:.2f} s" if slow is not None else "-",
        ),
        goal(
            "GPU memory left in sleep, Qwen3-8B", "at most 300 MiB", left, left is not None and left <= 300,
            f"{left:,.0f} MiB" if left is not None else "-",
        ),
    ]  # fmt: skip


# Tables --------------------------------------------------------------------------------------------------------------

Table = tuple[str, list[str], list[list[str]]]  # heading, columns, rows


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def figures(lines: EngineLines) -> Table:
    head = ["case", "figure", "tok/s", "floor", "of floor", *(f"ours over {peer}" for peer in lines.peer_names)]
    rows = []
    for case, line in lines.cases.items():
        if line["workload"] not in ("decode", "throughput"):
            continue
        is_decode = line["workload"] == "decode"
        value, floor = (line["ms"], line["floor_ms"]) if is_decode else (line["seconds"], line["floor_seconds"])
        unit = "ms" if is_decode else "s"
        note = f" ({line['method']})" if line.get("method", "difference") != "difference" else ""
        theirs = lines.peers.get(case, {})
        rows.append([
            case, f"{value:.3f} {unit}{note}", f"{line['tok_s']:,.0f}",
            "-" if floor is None else f"{floor:.3f} {unit}", number(share_of_floor(line), ".0%"),
            *(number(line["tok_s"] / theirs[peer]["tok_s"]) if peer in theirs else "-" for peer in lines.peer_names),
        ])  # fmt: skip
    return "Decode and throughput", head, rows


def startups(lines: EngineLines) -> Table:
    rows = []
    for line in lines.of("startup"):
        phases = line["phases"]
        more = {**{k: v for k, v in phases.items() if k not in PHASES}, **line["reported"]}
        rows.append([
            line["model"], f"{line['seconds']:.3f}", *(number(phases.get(name), ".3f") for name in PHASES),
            ", ".join(f"{name} {value:.3f}" for name, value in more.items()),
        ])  # fmt: skip
    head = ["start of a process, s", "to the first token", *PHASES, "inside and besides"]
    return "Start", head, rows


def traces(lines: EngineLines) -> Table:
    rows = []
    for case, line in lines.traces.items():
        untraced = line.get("untraced_step_us")
        rows.append([
            case, line["source"], f"{line['step_us']:,.0f}", number(untraced, ",.0f"),
            number(line.get("idle_share"), ".1%"), number(line.get("idle_between_steps_share"), ".1%"),
            number(line.get("kernels_a_step"), ".0f"),
        ])  # fmt: skip
    head = ["trace", "from", "us a step", "untraced", "GPU idle", "of it between steps", "kernels a step"]
    return "Steps", head, rows


def kernels(lines: EngineLines) -> Table:
    traced = [line for line in lines.traces.values() if "kernel_us" in line]
    rows = [
        [line["case"], f"`{name}`", f"{us:.1f}", f"{us / line['step_us']:.1%}"]
        for line in traced
        for name, us in line["kernel_us"].items()
    ]
    return "Kernels of a step", ["trace", "kernel", "us a step", "of the step"], rows


def shares(lines: EngineLines) -> Table:
    """What the engine says of its own steps, where it says something."""
    rows = []
    for case, line in lines.cases.items():
        counters = line.get("counters", {})
        whole, steps = counters.get("step_seconds", 0.0), counters.get("num_steps", 0)
        if whole <= 0 or steps <= 0:
            continue
        seconds = [counters.get(f"{name}_seconds") for name in ("host", "device", "device_idle")]
        parts = [None if part is None else part / whole for part in seconds]
        rows.append([
            case, f"{whole / steps * 1e6:,.0f}", *(number(part, ".1%") for part in parts),
        ])  # fmt: skip
    return "Host and device", ["case", "us a step", "host", "device", "device idle"], rows


def others(lines: EngineLines) -> Table:
    rows = []
    for line in lines.of("memory"):
        mb = {key: line[key] / 1e6 for key in ("planned_bytes", "growth_bytes")}
        text = (
            f"{line['given_back']:.1%} given back of what opening took; {mb['growth_bytes']:.1f} MB more after two more"
        )
        rows.append([line["case"], f"{text} (planned: {mb['planned_bytes']:,.0f} MB)"])
    for line in lines.of("sleep"):
        wake = line["wake_weights_seconds"] + line["wake_cache_seconds"]
        text = (
            f"asleep in {line['sleep_seconds']:.3f} s (the first time {line['first_sleep_seconds']:.3f} s), awake in "
            f"{wake:.3f} s; {line['left_bytes'] / 2**20:,.0f} of {line['open_bytes'] / 2**20:,.0f} MiB left, host "
            f"memory {line['host_asleep_bytes'] / 2**20:,.0f} MiB more asleep, "
            f"{line['host_awake_bytes'] / 2**20:,.0f} awake"
        )
        rows.append([line["case"], text])
    for line in lines.of("invariant"):
        text = f"{line['ms_on']:.3f} ms on, {line['ms_off']:.3f} ms off: {line['ratio']:.3f} times"
        rows.append([line["case"], text])
    for case, line in lines.loads.items():
        inside = line["info"].get("load_seconds", 0.0)
        rows.append([case, f"LLM() took {line['seconds']:.2f} s, {inside:.2f} s of it for weights ({line['weights']})"])
    return "Memory, invariance, loading", ["case", ""], rows


def tables(lines: EngineLines) -> list[Table]:
    made = [figures(lines), startups(lines), traces(lines), shares(lines), kernels(lines), others(lines)]
    return [table for table in made if table[2]]


def text(lines: EngineLines) -> str:
    """Markdown; empty without lines."""
    made = tables(lines)
    if not made:
        return ""
    out = f"\n## Engine on {', '.join(lines.devices)}\n\n"
    out += (
        "The floor of a step is max(bytes / copy bandwidth, flops / rate of a large product) of its matrices, and of "
        "its attention; that of a workload adds the flops of its prompts. A ratio above 1: quire is faster.\n"
    )
    for heading, head, rows in made:
        out += f"\n### {heading}\n\n"
        out += "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"
    return out


# Picture -------------------------------------------------------------------------------------------------------------


def draw_roofline(axes: Any, lines: EngineLines, kernel_cases: list[Line], gb_s: float, tflop_s: float) -> None:
    """Kernels and whole decode steps: flops a byte, and what they reached."""
    families = dict.fromkeys(line["case"].split("/")[0] for line in kernel_cases)
    for family in families:
        found = [line for line in kernel_cases if line["case"].split("/")[0] == family and line.get("tflop_s")]
        points = [(line["flops"] / line["bytes"], line["tflop_s"]) for line in found if line.get("bytes")]
        if points:
            axes.plot(*zip(*points), ".", alpha=0.5, label=f"{family} (kernels)")
    for model in dict.fromkeys(line["model"] for line in lines.of("decode")):
        steps = [line for line in lines.of("decode") if line["model"] == model]
        points = [(line["flops"] / line["bytes"], line["flops"] / line["ms"] * 1e-9) for line in steps]
        axes.plot(*zip(*points), "o-", label=f"{model}, steps by batch")
    if gb_s > 0:
        xs = sorted([2.0**i / 4 for i in range(16)] + [tflop_s / gb_s * 1e3])
        axes.plot(xs, [min(x * gb_s * 1e-3, tflop_s or 1e9) for x in xs], "k--", linewidth=1, label="copy, matmul")
    axes.set(title="roofline", xlabel="flops a byte", ylabel="TFLOP/s", xscale="log", yscale="log")


def draw_latency(axes: Any, lines: EngineLines) -> None:
    for i, model in enumerate(dict.fromkeys(line["model"] for line in lines.of("decode"))):
        steps = sorted(
            (line for line in lines.of("decode") if line["model"] == model), key=lambda x: x["shape"]["batch"]
        )
        color = f"C{i}"
        axes.plot([s["shape"]["batch"] for s in steps], [s["ms"] for s in steps], "o-", color=color, label=model)
        floors = [(s["shape"]["batch"], s["floor_ms"]) for s in steps if s.get("floor_ms")]
        if floors:
            axes.plot(*zip(*floors), "--", color=color, linewidth=1, label=f"{model}, floor")
        for marker, peer in zip("x+1234", lines.peer_names):
            theirs = [(s["shape"]["batch"], lines.peers.get(s["case"], {}).get(peer, {}).get("ms")) for s in steps]
            theirs = [point for point in theirs if point[1]]
            if theirs:
                axes.plot(*zip(*theirs), marker + ":", color=color, label=f"{model}, {peer}")
    axes.set(title="a decode step", xlabel="sequences", ylabel="ms", yscale="log")
    batches = sorted({line["shape"]["batch"] for line in lines.of("decode")})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, list(map(str, batches)))


def draw_timeline(axes: Any, lines: EngineLines) -> None:
    """Spans of some steps where there is a trace of the GPU, else the gaps between tokens at the caller."""
    traced = next((line for line in lines.traces.values() if line.get("spans", {}).get("device")), None)
    arrivals = next((line for line in lines.traces.values() if line.get("token_us")), None)
    if traced is not None:
        for row, spans in enumerate(traced["spans"].values()):
            axes.broken_barh(
                [(b, max(0.2, e - b)) for b, e, _ in spans], (row - 0.35, 0.7), color=f"C{row}", linewidth=0
            )
        axes.set_yticks(range(len(traced["spans"])), list(traced["spans"]))
        axes.set(title=f"three steps of {traced['case']}, traced", xlabel="us")
        axes.invert_yaxis()
    elif arrivals is not None:
        times = arrivals["token_us"]
        axes.plot([after - before for before, after in zip(times, times[1:])], ".-")
        axes.set(title=f"{arrivals['case']}: between the tokens of one stream", xlabel="token", ylabel="us")
        axes.set_ylim(bottom=0)


def draw_start(axes: Any, lines: EngineLines) -> None:
    for row, line in enumerate(lines.of("startup")):
        left = 0.0
        for i, phase in enumerate(PHASES):
            seconds = line["phases"].get(phase, 0.0)
            axes.barh(row, seconds, 0.5, left=left, color=f"C{i}", label=phase if row == 0 else None)
            if seconds > 0.08 * line["seconds"]:
                axes.text(
                    left + seconds / 2, row, f"{seconds:.2f}", ha="center", va="center", color="white", fontsize=8
                )
            left += seconds
    axes.set_yticks(range(len(lines.of("startup"))), [line["model"] for line in lines.of("startup")])
    axes.set_ylim(-1.5, max(1, len(lines.of("startup"))) + 0.2)
    axes.set(title="from the start of a process to the first token", xlabel="s")


def draw(lines: EngineLines, kernel_cases: list[Line], ceilings: tuple[float, float], name: str, path: Path) -> None:
    """Needs matplotlib. Nothing is drawn without figures."""
    if not lines.cases and not lines.traces:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    draw_roofline(axes[0, 0], lines, kernel_cases, *ceilings)
    draw_latency(axes[0, 1], lines)
    draw_timeline(axes[1, 0], lines)
    draw_start(axes[1, 1], lines)
    for each in axes.flat:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
        if each.get_legend_handles_labels()[0]:
            each.legend(frameon=False, fontsize=7)
    figure.suptitle(name if lines.is_measured else f"{name}: a test of the report, times without meaning")
    figure.savefig(path, dpi=110, metadata={"Software": None})
