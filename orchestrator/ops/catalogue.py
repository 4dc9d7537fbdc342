"""Every metric there is: name, kind, labels, what it says, which process has it. docs/metrics.md is printed from here.

Labels take values from closed sets only. Names of tenants and functions are none, unless FOREGLOW_METRICS_FUNCTIONS asks for
so many functions; the rest is `other` then.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from workers.tallies import Histogram

GATEWAY, PLANNER, NODE, FLOW, CONTROL, PAGE = "gateway", "planner", "node", "flow", "control", "page"
ZONE_CACHE, VPC_PROXY = "zone-cache", "vpc-proxy"
PROCESSES = (CONTROL, GATEWAY, PLANNER, NODE, FLOW, PAGE)
"""What every machine that runs all of it has; a zone cache, and the proxy of a private network, are where somebody put them."""


class Family(msgspec.Struct, frozen=True):
    """A counter's samples are called `name`_total, a histogram's `name`_bucket, _sum and _count. Times are seconds."""

    name: str
    kind: str  # counter | gauge | histogram
    processes: Sequence[str]
    help: str
    labels: Sequence[str] = ()


FAMILIES: Mapping[str, Family] = {
    one.name: one
    for one in (
        Family(
            "foreglow_build",
            "gauge",
            (*PROCESSES, ZONE_CACHE, VPC_PROXY),
            "1; the release and the protocol it speaks in the labels.",
            ("version", "protocol"),
        ),
        Family(
            "foreglow_connections", "gauge", (GATEWAY, PLANNER, NODE), "Connections to other processes that are up.", ("peer",)
        ),
        Family("foreglow_connections_wanted", "gauge", (GATEWAY, PLANNER), "Connections that should be up.", ("peer",)),
        Family(
            "foreglow_dropped",
            "counter",
            (GATEWAY, PLANNER),
            "Triggers, records, traces and spans left out, which costs learning and never an invocation.",
            ("what", "reason"),
        ),
        # -- invocations
        Family("foreglow_invocations", "counter", (GATEWAY,), "Invocations that ended, outside and child calls.", ("result",)),
        Family("foreglow_invocation_seconds", "histogram", (GATEWAY,), "From the call to its answer, as the gateway saw it."),
        Family("foreglow_in_flight", "gauge", (GATEWAY,), "Invocations in flight."),
        Family("foreglow_waiting", "gauge", (GATEWAY,), "Invocations that wait for capacity."),
        Family("foreglow_throttled", "counter", (GATEWAY,), "Invocations answered 429.", ("reason",)),
        Family("foreglow_refused", "counter", (GATEWAY,), "Requests that became no invocation, by HTTP status.", ("status",)),
        Family("foreglow_start_seconds", "histogram", (GATEWAY,), "What invocations waited for an instance.", ("kind",)),
        Family(
            "foreglow_start_step_seconds",
            "histogram",
            (GATEWAY,),
            "The same by step; steps that did not happen are not counted.",
            ("kind", "step"),
        ),
        Family(
            "foreglow_function_invocations",
            "counter",
            (GATEWAY,),
            "Invocations of the first FOREGLOW_METRICS_FUNCTIONS functions seen, the rest as `other`; empty by default.",
            ("function", "result"),
        ),
        # -- routes
        Family("foreglow_routes", "gauge", (GATEWAY, PLANNER), "Functions this process knows."),
        Family("foreglow_route_generation", "gauge", (GATEWAY, PLANNER), "Highest generation of a function this process knows."),
        Family("foreglow_route_sequence", "gauge", (GATEWAY, PLANNER), "Number of the last change of routes it applied."),
        Family("foreglow_route_sequence_published", "gauge", (FLOW,), "Number of the last change of routes published."),
        Family(
            "foreglow_route_lag_seconds",
            "gauge",
            (GATEWAY, PLANNER),
            "Since this process last knew that its routes are the newest.",
        ),
        Family("foreglow_route_change_age_seconds", "gauge", (GATEWAY, PLANNER), "Since it last applied a change of routes."),
        Family(
            "foreglow_route_loads", "counter", (GATEWAY, PLANNER), "Times it loaded all routes: at the start and after each gap."
        ),
        # -- prewarming
        Family("foreglow_decisions_made", "counter", (PLANNER,), "Prewarm decisions.", ("trigger",)),
        Family("foreglow_decisions", "counter", (PLANNER,), "Prewarm decisions that ended.", ("outcome",)),
        Family("foreglow_decisions_open", "gauge", (PLANNER, NODE), "Prewarm decisions that have not ended."),
        Family(
            "foreglow_prewarm_lead_seconds",
            "histogram",
            (PLANNER,),
            "From a decision to the invocation that used its instance.",
            ("outcome",),
        ),
        Family(
            "foreglow_prewarm_idle_seconds",
            "histogram",
            (PLANNER,),
            "How long a prewarmed instance stood ready before it was used (hit) or given up (wasted).",
            ("outcome",),
        ),
        Family(
            "foreglow_prewarm_paid_seconds",
            "counter",
            (PLANNER,),
            "Idle instance-seconds that budgets of the priced policy paid.",
        ),
        Family("foreglow_busy_seconds", "counter", (PLANNER,), "Seconds that handlers ran, which fill these budgets."),
        Family("foreglow_versions_resting", "gauge", (PLANNER,), "Versions that are not prepared now: their init kept failing."),
        Family("foreglow_entries_foreseen", "gauge", (PLANNER,), "Entries whose times of being called are known."),
        Family("foreglow_functions_kept_by_price", "gauge", (PLANNER,), "Functions whose idle instances nodes keep by price."),
        Family("foreglow_scaling_ticks", "counter", (PLANNER,), "Ticks of the scaler."),
        Family("foreglow_scaling_cpu_seconds", "counter", (PLANNER,), "CPU of all its ticks."),
        Family(
            "foreglow_scaling_part_seconds",
            "gauge",
            (PLANNER,),
            "CPU of the longest part of a tick: nothing else ran in it.",
        ),
        Family("foreglow_instances_wanted", "gauge", (PLANNER,), "Instances wanted at the last tick, of all versions together."),
        Family("foreglow_instances_short", "gauge", (PLANNER,), "Of these, how many no node had memory for."),
        Family("foreglow_graph_functions", "gauge", (PLANNER,), "Functions in the call graph, all tenants."),
        Family("foreglow_graph_records", "gauge", (PLANNER,), "Edges, and pairs of entry and function, in the call graph."),
        Family("foreglow_traces_learned", "counter", (PLANNER,), "Runs and imported traces learned since the process started."),
        Family("foreglow_traces_waiting", "gauge", (PLANNER,), "Traces from outside that are not complete yet."),
        Family(
            "foreglow_traces_early",
            "counter",
            (PLANNER,),
            "Traces from outside whose root was not waited for, to make room.",
        ),
        Family("foreglow_spans_received", "counter", (PLANNER,), "Spans from outside, sent or imported."),
        Family("foreglow_spans_waiting", "gauge", (PLANNER,), "Spans of traces from outside that are not complete yet."),
        Family("foreglow_spans_exported", "counter", (PLANNER,), "Spans sent to the OTLP endpoint of the settings."),
        # -- nodes
        Family("foreglow_instances", "gauge", (NODE,), "Instances of this node.", ("state",)),
        Family("foreglow_standbys", "gauge", (NODE,), "Clones that wait without code."),
        Family("foreglow_standbys_held", "gauge", (NODE,), "Of these, those that plans hold for a run's branches."),
        Family("foreglow_function_templates", "gauge", (NODE,), "Versions by the state of their function template.", ("state",)),
        Family("foreglow_function_template_bytes", "gauge", (NODE,), "Memory promised to function templates."),
        Family("foreglow_function_template_clones", "counter", (NODE,), "Instances asked of function templates."),
        Family("foreglow_function_template_refusals", "counter", (NODE,), "Function templates that were not made.", ("reason",)),
        Family("foreglow_memory_bytes", "gauge", (NODE,), "Memory of this node: total, and promised to instances.", ("kind",)),
        Family("foreglow_steps_waiting", "gauge", (NODE,), "Clones, unpackings and templates that wait for a core."),
        Family(
            "foreglow_prepare_seconds",
            "histogram",
            (NODE,),
            "What it took to get an instance ready, prewarmed ones too.",
            ("kind",),
        ),
        Family("foreglow_prepare_step_seconds", "histogram", (NODE,), "The same by step.", ("kind", "step")),
        Family("foreglow_prepare_failures", "counter", (NODE,), "Instances that did not become ready.", ("reason",)),
        Family(
            "foreglow_idle_ended",
            "counter",
            (NODE,),
            "Idle instances given up: after the node's keep-alive (lifetime), or earlier, not worth keeping (price), or above "
            "what is wanted under the policy `kpa` (wanted).",
            ("reason",),
        ),
        Family(
            "foreglow_code_requests",
            "counter",
            (NODE,),
            "Versions whose code a start asked for, by the tier it came from; `failed`: it could not be had.",
            ("tier",),
        ),
        Family("foreglow_code_seconds", "histogram", (NODE,), "How long that took.", ("tier",)),
        Family("foreglow_code_ahead", "counter", (NODE,), "Layers brought before a start asked for them."),
        Family("foreglow_code_fetched_bytes", "counter", (NODE,), "Bytes of code brought, unpacked, by source.", ("source",)),
        Family(
            "foreglow_code_faults",
            "counter",
            (NODE,),
            "Questions to a source of code that went wrong: a damaged chunk, or no answer.",
            ("source", "fault"),
        ),
        Family("foreglow_code_bytes", "gauge", (NODE,), "Bytes of layers held in the first tier, in whole blocks."),
        Family("foreglow_code_layers", "gauge", (NODE,), "Layers held in the first tier."),
        Family("foreglow_code_lazy_starts", "counter", (NODE,), "Layers that a start could use before they were whole."),
        Family("foreglow_code_lazy_mounts", "gauge", (NODE,), "Mounts of those, as long as an instance uses one."),
        Family("foreglow_code_evictions", "counter", (NODE,), "Layers that went to make room.", ("reason",)),
        Family("foreglow_code_evicted_bytes", "counter", (NODE,), "Bytes of those."),
        Family(
            "foreglow_function_code_requests",
            "counter",
            (NODE,),
            "foreglow_code_requests of FOREGLOW_METRICS_FUNCTIONS functions, the rest as `other`; empty by default.",
            ("function", "tier"),
        ),
        Family(
            "foreglow_isolation", "gauge", (NODE,), "1; the driver and the isolation in force in the labels.", ("driver", "tier")
        ),
        # -- zone caches
        Family(
            "foreglow_zone_requests",
            "counter",
            (ZONE_CACHE,),
            "Objects (chunks, manifests) asked of tier 2: held, read through, in no layer, refused, not to be had.",
            ("result",),
        ),
        Family("foreglow_zone_served_bytes", "counter", (ZONE_CACHE,), "Bytes of objects sent to nodes."),
        Family("foreglow_zone_fetched_bytes", "counter", (ZONE_CACHE,), "Bytes of objects fetched from the origin."),
        Family("foreglow_zone_bytes", "gauge", (ZONE_CACHE,), "Bytes of objects on its disk."),
        Family("foreglow_zone_evictions", "counter", (ZONE_CACHE,), "Objects that made room for others."),
        Family(
            "foreglow_zone_not_kept", "counter", (ZONE_CACHE,), "Objects served without being kept: the disk did not take them."
        ),
        Family(
            "foreglow_zone_damaged", "counter", (ZONE_CACHE,), "Objects found damaged on the disk, dropped and brought again."
        ),
        Family(
            "foreglow_zone_fill_seconds", "histogram", (ZONE_CACHE,), "One step of filling a layer, about a second each at most."
        ),
        # -- control flow
        Family(
            "foreglow_events",
            "gauge",
            (FLOW,),
            "Events no module has finished: open, or parked after too many tries.",
            ("module", "state"),
        ),
        Family("foreglow_event_age_seconds", "gauge", (FLOW,), "Age of a module's oldest open event.", ("module",)),
        Family("foreglow_queue_length", "gauge", (FLOW,), "Tasks in a Celery queue.", ("queue",)),
        Family("foreglow_queue_unacknowledged", "gauge", (FLOW,), "Tasks taken by a worker and not finished."),
        Family(
            "foreglow_origin_sweeps",
            "counter",
            (FLOW,),
            "Sweeps of a tenant's code in the origin: done, left for later because it was being published, or failed.",
            ("result",),
        ),
        Family("foreglow_origin_freed_objects", "counter", (FLOW,), "Objects taken out of the origin.", ("kind",)),
        Family("foreglow_origin_freed_bytes", "counter", (FLOW,), "Bytes taken out of the origin.", ("kind",)),
        # -- private networks
        Family("foreglow_tunnels", "gauge", (NODE,), "Ways into private networks, by whether they are open.", ("state",)),
        Family("foreglow_tunnel_backend", "gauge", (NODE,), "1; the backend in force in the label.", ("backend",)),
        Family("foreglow_attached", "gauge", (NODE,), "Instances attached to private networks now."),
        Family("foreglow_attach", "counter", (NODE,), "Instances that were to be attached, by how it went.", ("result",)),
        Family("foreglow_attach_seconds", "histogram", (NODE,), "How long attaching one took."),
        Family("foreglow_proxy_nodes", "gauge", (VPC_PROXY,), "Nodes that a proxy carries for, by backend.", ("backend",)),
        Family("foreglow_proxy_streams", "gauge", (VPC_PROXY,), "Connections that the portable backend carries."),
        Family("foreglow_proxy_generation", "gauge", (VPC_PROXY,), "Of the private network's settings in force; 0: none yet."),
        Family(
            "foreglow_proxy_changes_of_role",
            "counter",
            (VPC_PROXY,),
            "Changes between master and backup on the kernel backend: faults of the pair, and advertisements that came late.",
        ),
        Family("foreglow_proxy_asked_in_vain", "counter", (VPC_PROXY,), "Questions to control that it did not answer."),
        Family("foreglow_database_up", "gauge", (FLOW, CONTROL), "1 when the database answers."),
        Family("foreglow_redis_up", "gauge", (FLOW, CONTROL), "1 when Redis answers."),
        Family("foreglow_viewers", "gauge", (PAGE,), "Browsers that watch the page."),
        Family("foreglow_api_requests", "counter", (CONTROL,), "Requests to the management API, by HTTP status.", ("status",)),
        Family(
            "foreglow_up",
            "gauge",
            (CONTROL,),
            "1 for a process of this machine that answers, 0 for one that does not, or that runs elsewhere or tells operators at "
            "an address of its own; only on control's own page.",
            ("process",),
        ),
    )
}

Rows = Iterable[tuple[Sequence[str], float]]


def family(name: str, rows: Rows) -> Metric:
    """Samples of a counter or gauge: label values and the number, in the order of the family's labels."""
    described = FAMILIES[name]
    made: CounterMetricFamily | GaugeMetricFamily
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    made = kind(name, described.help, labels=list(described.labels))
    for labels, value in rows:
        if len(labels) != len(described.labels):
            raise ValueError(f"{name}: {labels!r} are not values of the labels {described.labels!r}")
        made.add_metric(list(labels), value)
    return made


def one(name: str, value: float) -> Metric:
    """A counter or gauge without labels."""
    return family(name, [((), value)])


def histogram(name: str, parts: Iterable[tuple[Sequence[str], Histogram]]) -> Metric:
    """Label values and what fell into them."""
    described = FAMILIES[name]
    made = HistogramMetricFamily(name, described.help, labels=list(described.labels))
    for labels, part in parts:
        seen, buckets = 0, []
        for bound, count in zip((*map(str, part.bounds), "+Inf"), part.counts, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        made.add_metric(list(labels), buckets, part.total)
    return made


def as_markdown() -> str:
    """The table of docs/metrics.md."""
    lines = ["| metric | kind | labels | of | what |", "|---|---|---|---|---|"]
    for found in FAMILIES.values():
        name = f"{found.name}_total" if found.kind == "counter" else found.name
        labels = ", ".join(found.labels)
        lines.append(f"| `{name}` | {found.kind} | {labels} | {', '.join(found.processes)} | {found.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
