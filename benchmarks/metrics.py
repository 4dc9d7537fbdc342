"""Every metric the benchmarks print: name, unit, meaning, budget. A name that is not here cannot be printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True)
class Metric:
    """`budget` is what docs/specification.md promises on 2 shared cores; None: printed for comparison, nothing promised."""

    name: str
    topic: str
    unit: str
    meaning: str
    budget: float | None = None
    better: Better = Better.LOWER

    def met(self, value: float) -> bool | None:
        """Whether `value` is within the budget; None without a budget."""
        if self.budget is None:
            return None
        return value <= self.budget if self.better is Better.LOWER else value >= self.budget


_WARM = "a warm echo of a unique token through the gateway with its key, calls recorded, wrk as client, only 200s counted"
_FIRST = "from connecting to the last byte of the answer on a new connection, code in tier 1, prewarm off"
_CSE = "N = 2, 3, 5, 7, 12 cold functions, first request, init a wait of 150 ms, work a sleep of 10 ms"

_PAGE = "the live page in chromium with a graph of 1,000 functions and 5,000 calls, learned from imported traces"
_SCALING = "the page's view Scaling with 1,000 functions of which each has an instance"

_BROUGHT = (
    "a package that nobody has here yet, layer and bytecode together of that size, to the point where a function may "
    "start: its files on "
    "this node's disk, verified, detached as a mount; tier 1 of the node in this process"
)
_FRONTIER = "workflows under Azure's load of 2019, virtual clock"
_LIVE = "two workflows, each run from cold on real sandboxes and again in a replay"
_VM = "driver microvm, tcg"
_RELEASE = "a path of two under 50 calls a second, its entry (init 150 ms) goes 0 -> 30 -> 100 % to a new version"
_TUNNEL = "a node, two tenants with the same addresses, Redis, in network namespaces of one machine"
_REPLAYED = "Azure's load of 2019, 250 functions over 8 hours on one node, Zipf-sized packages, virtual clock"

_NEIGHBOUR = "a cold request to a function whose init takes nothing, no template, no standby"
_LARGE = "in a graph of 100,000 functions (1,060 workflows of 100 stages)"

_PLACED = "10,000 nodes 90 % full, mixed shapes; bookkeeping, one end for each placement and 5 % refusals counted"
_SCALED = "10,000 nodes that start to scale at one moment, virtual clock"
_STEP = "step from 1 to 50 concurrent requests of 400 ms"
_KEPT = "Azure's load of 2019, 250 functions, virtual clock"

_ALL = (
    Metric("warm.p50_ms", "warm", "ms", f"{_WARM}: median latency at one connection", 1.0),
    Metric("warm.p99_ms", "warm", "ms", f"{_WARM}: 99th percentile of latency at one connection", 5.0),
    Metric("warm.rps", "warm", "1/s", f"{_WARM}: answers a second at 8 connections", 4000.0, Better.HIGHER),
    Metric(
        "warm.cpu_us",
        "warm",
        "us",
        f"{_WARM}: user and kernel CPU of gateway, node and instances, divided by the answers, at 8 connections",
        400.0,
    ),
    Metric("warm.cpu_gateway_us", "warm", "us", "the gateway's part of warm.cpu_us"),
    Metric("warm.cpu_node_us", "warm", "us", "the node's part of warm.cpu_us, without the sandboxes"),
    Metric("warm.cpu_instances_us", "warm", "us", "the instances' part of warm.cpu_us"),
    Metric("warm.cpu_rest_us", "warm", "us", "CPU of planner, control, flow and Valkey in the same run, outside warm.cpu_us"),
    Metric("warm.cpu_client_us", "warm", "us", "CPU of wrk per answer in the same run, outside warm.cpu_us"),
    Metric(
        "process.cold.p50_ms", "cold", "ms", f"no instance, no standby: echo cloned from its template on demand; {_FIRST}", 8.0
    ),
    Metric("process.cold.p99_ms", "cold", "ms", "99th percentile of the same requests"),
    Metric(
        "process.cold.step_ms",
        "cold",
        "ms",
        "mean of one step of the same requests, as Server-Timing tells; rest: all outside the steps",
    ),
    Metric(
        "process.standby.p50_ms", "cold", "ms", f"no instance, a standby is waiting: echo specialised on demand; {_FIRST}", 3.0
    ),
    Metric("process.standby.p99_ms", "cold", "ms", "99th percentile of the same requests"),
    Metric("process.standby.step_ms", "cold", "ms", "as process.cold.step_ms"),
    Metric(
        "process.rested.p50_ms",
        "cold",
        "ms",
        "a warm echo by the same client after the same pause: what a request costs that starts nothing, on a machine that rested",
    ),
    Metric("process.start_ms", "cold", "ms", "only for what cannot scale to zero: start of the server until its first answer"),
    Metric(
        "imports400.p50_ms",
        "cold",
        "ms",
        "cold start of a function with about 400 ms of CPU-bound imports (benchmarks/functions/imports400), "
        f"from its function template; {_FIRST}",
        15.0,
    ),
    Metric("imports400.without.p50_ms", "cold", "ms", "the same without function templates"),
    Metric("imports400.without.step_ms", "cold", "ms", "as process.cold.step_ms"),
    Metric("imports400.step_ms", "cold", "ms", "as process.cold.step_ms"),
    Metric(
        "imports400.bare_ms",
        "cold",
        "ms",
        "the same imports in a plain interpreter, from inside it: what the function itself costs",
    ),
    Metric(
        "process.standby.mb",
        "cold",
        "MB",
        "slope of used memory from 10 to 100 standbys: proportional set size of the node and all below it, and the kernel's part",
        3.0,
    ),
    Metric(
        "process.standby.pss_mb",
        "cold",
        "MB",
        "the same slope without what the kernel holds for them",
    ),
    Metric(
        "microvm.cold.p50_ms",
        "microvm",
        "ms",
        f"{_VM}: no instance, no standby: echo in a microVM cloned from its template on demand, no private network; {_FIRST}",
        180.0,
    ),
    Metric("microvm.cold.p99_ms", "microvm", "ms", "99th percentile of the same requests"),
    Metric("microvm.cold.step_ms", "microvm", "ms", "as process.cold.step_ms"),
    Metric(
        "microvm.standby.p50_ms",
        "microvm",
        "ms",
        f"{_VM}: no instance, a paused standby is waiting: echo specialised on demand, no private network; {_FIRST}",
        15.0,
    ),
    Metric("microvm.standby.p99_ms", "microvm", "ms", "99th percentile of the same requests"),
    Metric("microvm.standby.step_ms", "microvm", "ms", "as process.cold.step_ms"),
    Metric("microvm.warm.p50_ms", "microvm", "ms", f"{_VM}: a warm echo by the same client after the same pause"),
    Metric(
        "microvm.clones_per_s",
        "microvm",
        "1/s",
        f"{_VM}: standbys made a second (cloned, exercised, paused) while the pool fills from 4 to 100, nothing else to do",
        better=Better.HIGHER,
    ),
    Metric(
        "microvm.standby.mb",
        "microvm",
        "MB",
        f"{_VM}: slope of used memory from 10 to 100 standbys: proportional set size of the node and all below it, and the "
        "kernel's part",
        35.0,
    ),
    Metric(
        "microvm.standby.part_mb",
        "microvm",
        "MB",
        f"{_VM}: what a standby has for itself (anonymous memory of its QEMU), by what it is for: translated code, guest (pages "
        "it wrote), QEMU's own, programs (relocated data of the binary and its libraries); mean",
    ),
    Metric("microvm.standby.pss_mb", "microvm", "MB", "the same slope without what the kernel holds for them"),
    Metric(
        "microvm.full.beside_mb",
        "microvm",
        "MB",
        f"{_VM}: what an instance of 128 MB takes beside what its function holds, when that is 100 MB and much of the standard "
        "library has run in it: proportional set size of its QEMU less these 100 MB",
    ),
    Metric(
        "microvm.up_s",
        "microvm",
        "s",
        f"{_VM}: from starting `foreglow up` on an empty folder, its guest image there, until it serves",
    ),
    Metric(
        "chain.cse.mean",
        "chain",
        "cold starts",
        f"{_CSE}, prewarm path: (end to end - fully warm end to end) / one cold start, mean over N",
        1.1,
    ),
    Metric("chain.cse.slope", "chain", "1/stage", "growth of the same per stage, by least squares over N", 0.02),
    Metric("chain.cse", "chain", "cold starts", "the same for one N"),
    Metric("chain.off.cse", "chain", "cold starts", "the same for one N with prewarm off: what the path pays without a plan"),
    Metric(
        "chain.one_cold_ms", "chain", "ms", "one cold start as it is divided by: first request less warm request of a path of one"
    ),
    Metric("chain.prepare_cpu_ms", "chain", "ms", "CPU of node and instances in the first request of a path of one"),
    Metric(
        "chain.cpu.excess_ratio",
        "chain",
        "ratio",
        "the same path with CPU-bound init: (end to end - fully warm end to end) / max(one cold start, all prepare CPU / cores)",
    ),
    Metric("chain.first_ms", "chain", "ms", "first request of a cold path of N, end to end"),
    Metric("chain.warm_ms", "chain", "ms", "the same path fully warm, end to end"),
    Metric(
        "chain.predicted.slowdown_p50",
        "chain",
        "ratio",
        "the entry prewarmed too: median of first requests / median of fully warm ones, interleaved",
        1.03,
    ),
    Metric("chain.predicted.slowdown_p99", "chain", "ratio", "the same at the 99th percentile", 1.10),
    Metric(
        "chain.predicted.aa_p50",
        "chain",
        "ratio",
        "warm against warm in the same rounds: the ratio noise alone gives, at the median",
    ),
    Metric("chain.predicted.aa_p99", "chain", "ratio", "the same at the 99th percentile"),
    Metric(
        "page.first_picture_s",
        "page",
        "s",
        f"{_PAGE}: from going to the page, signed in, with an empty cache, until all of it is on the screen; median",
        3.0,
    ),
    Metric(
        "code.tier1_1mb.p50_ms", "code", "ms", "a held package of 1 MB: its folders found and detached as mounts; median", 1.0
    ),
    Metric(
        "code.tier2_1mb.p50_ms", "code", "ms", f"{_BROUGHT}; 1 MB from a zone cache over mutual TLS on the loopback; median", 5.0
    ),
    Metric("code.bring_ms", "code", "ms", f"{_BROUGHT}; one size from one tier, added_ms to each question; median"),
    Metric("code.part_ms", "code", "ms", "one step of bringing 1 MB from tier 2, each done alone and after the other; median"),
    Metric("code.unzip_ms", "code", "ms", "the same package, without bytecode, out of its zip onto the same disk; median"),
    Metric(
        "code.copy_ms", "code", "ms", "the same package, without bytecode, copied from folder to folder on the same disk; median"
    ),
    Metric(
        "code.origin_share",
        "code",
        "ratio",
        f"starts that asked the origin, of all: {_REPLAYED}, but each start made for real by tier 1 on a real zone cache, "
        f"packages a "
        "thousandth of their size; tier 2 is up and was filled at publish time",
        0.001,
    ),
    Metric("code.first_answer_ms", "code", "ms", "a cold start through the gateway, its code from one of the tiers; median"),
    Metric("code.step_ms", "code", "ms", "the same requests' Server-Timing of code: until fetched, attached, locked; median"),
    Metric(
        "code.lazy.first_answer_ms",
        "code",
        "ms",
        "benchmarks/lazy_start.py: first answer of a function that imports 5 % of a 200 MB package, from the origin, "
        "without gateway; "
        "median",
    ),
    Metric("code.lazy.chunks", "code", "chunks", "what was brought until that answer; median"),
    Metric(
        "code.replay.start_hit", "code", "ratio", f"starts that found their code in tier 1: {_REPLAYED}", better=Better.HIGHER
    ),
    Metric("code.replay.call_hit", "code", "ratio", "calls that waited for no code, of all: the same", better=Better.HIGHER),
    Metric("code.replay.moved_mb", "code", "MB", "what came to the node in these 8 hours, ahead of need or not: the same"),
    Metric(
        "code.replay.outage_share",
        "code",
        "ratio",
        "starts that would ask the origin were tier 2 away for 5 minutes of the 8 hours, the mean over all such 5 "
        "minutes: the same",
    ),
    Metric(
        "code.planned_tier1_share",
        "code",
        "ratio",
        "starts of stages that a plan had ordered: share whose code was all in tier 1 when the call came; Train-Ticket's "
        "runs and the "
        "planner's own plans beside Azure's load, virtual clock, 25 % of all code in tier 1, GDSF, a run each minute",
        0.99,
        Better.HIGHER,
    ),
    Metric("code.replay.planned", "code", "ratio", "the same for other bounds, loads and settings", better=Better.HIGHER),
    Metric("release.cold_requests", "release", "requests", f"{_RELEASE}: gated, calls that waited for an instance of it", 0),
    Metric("release.p99_ms", "release", "ms", "of all calls of the gated windows, the 99th percentile"),
    Metric("release.p99_ratio", "release", "ratio", "the same / that of windows without a release, taken in turns"),
    Metric("release.p99_excess", "release", "ratio", "its upper bound / max(1.05, that of release.still_p99_ratio)", 1),
    Metric("release.mean_ratio", "release", "ratio", "as release.p99_ratio, of the means"),
    Metric("release.ungated_cold_requests", "release", "requests", f"{_RELEASE}: ungated, calls that waited for one of it"),
    Metric("release.ungated_p99_ms", "release", "ms", "as release.p99_ms, ungated"),
    Metric("release.ungated_p99_ratio", "release", "ratio", "as release.p99_ratio, ungated"),
    Metric("release.ungated_p99_excess", "release", "ratio", "as release.p99_excess, ungated"),
    Metric("release.still_p99_ms", "release", "ms", "as release.p99_ms, of windows without a release"),
    Metric("release.still_p99_ratio", "release", "ratio", "99th percentiles of two sorts of windows without a release (A/A)"),
    Metric("burst.alone_p50_ms", "burst", "ms", f"{_NEIGHBOUR}, nothing beside it: median"),
    Metric("burst.alone_p95_ms", "burst", "ms", "the same at the 95th percentile"),
    Metric("burst.beside_p50_ms", "burst", "ms", f"{_NEIGHBOUR}, sent as soon as 12 prewarms are ordered: median"),
    Metric("burst.beside_p95_ms", "burst", "ms", "the same at the 95th percentile"),
    Metric("burst.slowdown_p50", "burst", "ratio", "beside / alone, medians, taken in turns"),
    Metric("burst.slowdown_p95", "burst", "ratio", "beside / alone at the 95th percentile"),
    Metric(
        "planner.plan100_ms",
        "planner",
        "ms",
        f"predict and plan, policy priced, an entry with 100 downstream functions, {_LARGE}; median",
        5.0,
    ),
    Metric("planner.plan_ms", "planner", "ms", "the same with generic standbys weighed too, by policy path, and a revision"),
    Metric("planner.plan_cpu_ms", "planner", "ms", "CPU of the same"),
    Metric(
        "planner.observe_us",
        "planner",
        "us",
        f"one call of a run of ten, three deep: assembled from records and learned, {_LARGE}; median",
        50.0,
    ),
    Metric("planner.assemble_us", "planner", "us", "the assembling part of the same"),
    Metric(
        "replay.waste_ratio",
        "replay",
        "ratio",
        f"{_FRONTIER}: least waste (prewarm, pool and keep-alive) with which the priced policy's median slowdown is within "
        "5 % of whole path's, / whole path's waste, both kept 10 minutes by default; the worst workload",
        0.35,
    ),
    Metric("replay.waste_ratio.one", "replay", "ratio", "the same of one workload, with what both come to"),
    Metric(
        "replay.waste_ratio.mean",
        "replay",
        "ratio",
        "the same where the mean of the added time, not the median slowdown, is within 5 % of whole path's; whole path kept as "
        "said",
    ),
    Metric(
        "replay.stage_cold_ratio",
        "replay",
        "ratio",
        f"{_FRONTIER}: calls below the entries that waited over 1 ms, of all, after 100 traces of each entry; priced, "
        "all defaults",
        0.01,
    ),
    Metric("replay.stage_cold_ratio.one", "replay", "ratio", "the same of one workload and policy, with the waste it takes"),
    Metric(
        "replay.calibration_error",
        "replay",
        "ratio",
        f"{_FRONTIER}: prequential, 10 bins of equal mass: distance of the probability said at the start of a run from what came",
        0.02,
    ),
    Metric("replay.added_ms", "replay", "ms", f"{_FRONTIER}: what a run takes longer than warm, mean; one policy at one setting"),
    Metric("live.added_ms", "live", "ms", f"{_LIVE}: what the run from cold takes longer than the same run warm, median"),
    Metric("live.idle_s", "live", "s", f"{_LIVE}: instances ready for the run and unused, until its end, median of their sum"),
    Metric(
        "live.stages_waited",
        "live",
        "ratio",
        f"{_LIVE}: calls below the entry that found no ready instance and waited over 1 ms, of all",
    ),
    Metric("live.difference_ms", "live", "ms", "live.added_ms of the sandboxes less that of a replay of the same runs"),
    Metric(
        "page.filter_ms", "page", "ms", f"{_PAGE}: from a change of the filter until its picture is on the screen; median", 300.0
    ),
    Metric("page.first_charts_s", "page", "s", f"{_SCALING}: the same until the first 24 charts are on the screen; median"),
    Metric("page.filter_charts_ms", "page", "ms", f"{_SCALING}: from a change of the filter until its charts are; median"),
    Metric("tunnel.attach.p50_ms", "tunnels", "ms", f"{_TUNNEL}: a wired sandbox attached, nothing else going on: median", 0.5),
    Metric("tunnel.attach.p99_ms", "tunnels", "ms", f"{_TUNNEL}: the same, 99th percentile", 5.0),
    Metric(
        "tunnel.busy.p50_ms",
        "tunnels",
        "ms",
        f"{_TUNNEL}: the same at 50 attaches a second, each sandbox made, wired and ended: median",
    ),
    Metric("tunnel.busy.p99_ms", "tunnels", "ms", f"{_TUNNEL}: the same at 50 attaches a second, 99th percentile"),
    Metric("tunnel.wire.p50_ms", "tunnels", "ms", f"{_TUNNEL}: what is done ahead of need for a sandbox: median"),
    Metric("tunnel.detach.p50_ms", "tunnels", "ms", f"{_TUNNEL}: detaching: median"),
    Metric("tunnel.first_reply.p50_ms", "tunnels", "ms", f"{_TUNNEL}: from the attach to the first answer of Redis: median"),
    Metric(
        "tunnel.first_reply.p99_ms", "tunnels", "ms", f"{_TUNNEL}: from the attach to the first answer of Redis: 99th percentile"
    ),
    Metric(
        "tunnel.slow.p50_ms",
        "tunnels",
        "ms",
        f"{_TUNNEL}: the same with all of it done at the call, the tunnel, the wiring, the attach: median",
    ),
    Metric("tunnel.slow.p99_ms", "tunnels", "ms", f"{_TUNNEL}: the same with all of it done at the call: 99th percentile"),
    Metric(
        "tunnel.registration.p50_ms", "tunnels", "ms", f"{_TUNNEL}: from naming a Vpc to a tunnel that a proxy answers in: median"
    ),
    Metric(
        "tunnel.kernel.rtt_added_us",
        "tunnels",
        "us",
        f"{_TUNNEL}, kernel: PING of Redis through the tunnel less over a direct veth, medians, turns; node and private network"
        " on a core each, or anywhere; cores awake, or idle",
        30.0,
    ),
    Metric("tunnel.portable.rtt_added_us", "tunnels", "us", f"{_TUNNEL}, portable: the same", 80.0),
    Metric(
        "tunnel.gbps", "tunnels", "Gb/s", f"{_TUNNEL}: iperf3, one stream to the server, median of turns", better=Better.HIGHER
    ),
    Metric(
        "tunnel.kernel.throughput_share",
        "tunnels",
        "ratio",
        f"{_TUNNEL}, kernel: that of a direct veth in the same turns: median of ratios",
        0.7,
        Better.HIGHER,
    ),
    Metric("tunnel.portable.throughput_share", "tunnels", "ratio", f"{_TUNNEL}, portable: the same", better=Better.HIGHER),
    Metric(
        "tunnel.failover_s",
        "tunnels",
        "s",
        f"{_TUNNEL}: the longest time without an answer while connections are made without end and the primary goes",
        1.0,
    ),
    Metric(
        "tunnel.crossed",
        "tunnels",
        "attempts",
        f"{_TUNNEL}: of 10,000 attempts of a hostile function how many got an answer from what it must not reach",
        0.0,
    ),
    Metric("place.10k.p99_ms", "scaling", "ms", f"{_PLACED}: 99th percentile of one, wall time", 1.0),
    Metric("place.rate", "scaling", "1/s", f"{_PLACED}: placements a second of CPU", 50_000.0, Better.HIGHER),
    Metric("place.lost_s", "scaling", "s", f"{_PLACED}: CPU until 1,000 nodes that vanish at once are forgotten"),
    Metric("place.memory_mb", "scaling", "MB", "memory of the process that holds 10,000 nodes and 1,000,000 functions"),
    Metric("scale.fleet95_s", "scaling", "s", f"{_SCALED}: until 95 % of the instances needed are ready"),
    Metric("scale.fleet.messages", "scaling", "messages", f"{_SCALED}: messages to and from the planner until all are ready"),
    Metric("scale.fleet.decision_us", "scaling", "us", f"{_SCALED}: CPU of the planner's decisions per order"),
    Metric("scale.downstream_lag_ticks", "scaling", "ticks", f"{_SCALED}: from an entry's tick to its last stage's", 0.0),
    Metric("scale.step95_s", "scaling", "s", f"{_STEP}: until 95 % of 50 instances are ready", 2.0),
    Metric("scale.step.cold", "scaling", "requests", f"{_STEP}: cold requests sent after the first tick"),
    Metric("scale.step.p99_ms", "scaling", "ms", f"{_STEP}: 99th percentile of latency after the first tick"),
    Metric("scale.tick_ms", "scaling", "ms", "CPU of one tick of a planner's scaler, 10,000 versions with traffic on 100 nodes"),
    Metric("scale.quiet_tick_ms", "scaling", "ms", "The same where 100 of the versions have traffic and the others instances"),
    Metric("keep.cold_ratio", "keeping", "share", f"{_KEPT}: calls that found no idle instance"),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
TOPICS = (
    "warm",
    "cold",
    "microvm",
    "chain",
    "burst",
    "release",
    "page",
    "code",
    "replay",
    "live",
    "planner",
    "tunnels",
    "scaling",
    "keeping",
)


def of_topic(topic: str) -> list[Metric]:
    return [metric for metric in _ALL if metric.topic == topic]
