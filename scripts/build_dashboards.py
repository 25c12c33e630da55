#!/usr/bin/env python3
"""Writes the Grafana dashboards of the chart, helm/crescendo/dashboards/*.json, from the panels listed here.

`--check` writes nothing and fails if a file differs. Every query is made of metrics that the processes export; see
tests/chart, which holds them to the sources.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "helm/crescendo/dashboards"
# Only the leader has numbers about jobs; for the moment after a change of leader, those of the new one count.
LED = 'and on (instance) crescendo_leader{namespace=~"$namespace"} == 1'
NS = 'namespace=~"$namespace"'
NODE = 'namespace=~"$namespace", instance=~"$instance"'
WIDTH = 24


def panel(title, *queries, unit="short", kind="timeseries", width=8, height=7, help="", stack=False, least=0):
    """A panel; each query is an expression, or (expression, legend). `least` is where the axis begins, None for anywhere."""
    return dict(
        title=title, queries=queries, unit=unit, kind=kind, width=width, height=height, help=help, stack=stack, least=least
    )


def quantiles(metric, labels, by=""):
    """Median and 99th percentile of a histogram over the last minutes."""
    by = f", {by}" if by else ""
    legend = f"{{{{{by[2:]}}}}} " if by else ""
    rate = f"sum by (le{by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{legend}p{int(q * 100)}") for q in (0.5, 0.99)]


def slots(metric):
    return (f"{metric}{{{NODE}}}", "{{instance}} slot {{slot}}")


def gpus(metric, more=""):
    """One series a GPU; `more` is a label that tells several of one GPU apart."""
    legend = "{{instance}} GPU {{gpu}}" + (f" {{{{{more}}}}}" if more else "")
    return (f"{metric}{{{NODE}}}", legend)


# Of whoever has some: trainers, and curators that draw.
GPUS = ("GPUs", [
    panel("Use", gpus("crescendo_gpu_utilization_ratio"), unit="percentunit"),
    panel("Memory", gpus("crescendo_gpu_memory_used_bytes"), (f"max(crescendo_gpu_memory_total_bytes{{{NODE}}})", "there is"), unit="bytes"),
    panel("Temperature", gpus("crescendo_gpu_temperature_celsius"), unit="celsius"),
    panel("Power", gpus("crescendo_gpu_power_watts"), unit="watt"),
    panel("Clocks", gpus("crescendo_gpu_clock_hertz", more="domain"), unit="hertz"),
    panel("Held down by", (f"sum by (instance, gpu, reason) (crescendo_gpu_throttled{{{NODE}}}) > 0", "{{instance}} GPU {{gpu}} {{reason}}"), stack=True),
    panel("Memory errors", (f"sum by (instance, gpu, kind) (increase(crescendo_gpu_ecc_errors_total{{{NODE}}}[$__rate_interval]))", "{{instance}} GPU {{gpu}} {{kind}}")),
    panel("XID errors", (f"sum by (instance, gpu, xid) (increase(crescendo_gpu_xid_errors_total{{{NODE}}}[$__rate_interval])) > 0", "{{instance}} GPU {{gpu}} XID {{xid}}")),
    panel("NVLinks that are up", gpus("crescendo_gpu_nvlink_links_active"), (f"sum(increase(crescendo_gpu_reading_failures_total{{{NODE}}}[$__rate_interval]))", "failed readings")),
])

DASHBOARDS = {
    "cluster": dict(
        title="Crescendo / cluster",
        variables=["namespace"],
        rows=[
            ("State", [
                panel("Leaders", f"sum(crescendo_leader{{{NS}}})", kind="stat", width=4, height=4,
                      help="1 in health: 0 is nobody, and 2 is a scrape from before a change of leader."),
                panel("Jobs running", f'sum(crescendo_jobs{{{NS}, state="running"}} {LED})', kind="stat", width=4, height=4),
                panel("Jobs queued", f'sum(crescendo_jobs{{{NS}, state="queued"}} {LED})', kind="stat", width=4, height=4),
                panel("Trainers with a session", f'sum(crescendo_node_sessions{{{NS}, kind="trainer"}} {LED})', kind="stat", width=4, height=4),
                panel("Curators with a session", f'sum(crescendo_node_sessions{{{NS}, kind="curator"}} {LED})', kind="stat", width=4, height=4),
                panel("Ranks alive", f"sum(crescendo_trainer_ranks_running{{{NS}}})", kind="stat", width=4, height=4),
            ]),
            ("Jobs", [
                panel("Jobs by state", (f"sum by (state) (crescendo_jobs{{{NS}}} {LED})", "{{state}}"), width=12, stack=True),
                panel("Jobs that wait, by reason", (f"sum by (reason) (crescendo_jobs_waiting{{{NS}}} {LED})", "{{reason}}"), width=12, stack=True),
                panel("Longest wait, by reason", (f"max by (reason) (crescendo_jobs_oldest_wait_seconds{{{NS}}} {LED})", "{{reason}}"), unit="s", width=12,
                      help="Of the job that has waited longest for this reason without a break, from the start of the present leader at most."),
                panel("Slots of queues", (f"sum by (queue, what) (crescendo_queue_slots{{{NS}}} {LED})", "{{queue}} {{what}}"), width=12,
                      help="Sure of, held, borrowed of these, and wanted at least by the jobs that wait."),
                panel("Longest wait, by queue", (f"max by (queue) (crescendo_queue_oldest_wait_seconds{{{NS}}} {LED})", "{{queue}}"), unit="s", width=12,
                      help="Since the job was submitted that holds no slots and was submitted first."),
                panel("Nodes", (f"sum by (kind, state) (crescendo_nodes{{{NS}}} {LED})", "{{kind}} {{state}}"), width=12, stack=True),
                panel("Attempts",
                      (f"sum(increase(crescendo_attempts_placed_total{{{NS}}}[$__rate_interval]))", "placed"),
                      (f"sum(increase(crescendo_attempts_ended_total{{{NS}}}[$__rate_interval]))", "ended without a final checkpoint"), width=12),
                panel("Deletions and webhooks",
                      (f"max(crescendo_deletion_oldest_seconds{{{NS}}} {LED})", "oldest deletion that is not done"),
                      (f"max(crescendo_webhooks_oldest_wait_seconds{{{NS}}} {LED})", "oldest end that a webhook has not been told"), unit="s", width=12),
                panel("Log lines received", (f"sum(rate(crescendo_log_lines_total{{{NS}}}[$__rate_interval]))", "lines"), unit="cps", width=12),
            ]),
            ("Store", [
                panel("Time of calls to the store", *quantiles("crescendo_store_call_seconds", NS, "op"), unit="s"),
                panel("Calls to the store by outcome", (f"sum by (op, outcome) (rate(crescendo_store_call_seconds_count{{{NS}}}[$__rate_interval]))", "{{op}} {{outcome}}"), unit="ops"),
                panel("State dropped and read again", (f"sum by (instance) (increase(crescendo_state_reloads_total{{{NS}}}[$__rate_interval]))", "{{instance}}")),
            ]),
            ("Calls", [
                panel("Calls by method", (f"sum by (method) (rate(crescendo_rpcs_total{{{NS}}}[$__rate_interval]))", "{{method}}"), unit="ops"),
                panel("Calls refused and failed",
                      (f'sum by (code) (rate(crescendo_rpcs_total{{{NS}, code!="ok"}}[$__rate_interval]))', "{{code}}"),
                      (f"sum(rate(crescendo_rpcs_over_limit_total{{{NS}}}[$__rate_interval]))", "over the limit"), unit="ops"),
                panel("99th percentile of a call's time", (f"histogram_quantile(0.99, sum by (le, method) (rate(crescendo_rpc_seconds_bucket{{{NS}}}[$__rate_interval])))", "{{method}}"), unit="s"),
                panel("Time to decide", *quantiles("crescendo_decide_seconds", NS), unit="s", width=12),
                panel("Leader", (f"crescendo_leader{{{NS}}}", "{{instance}}"), width=12),
            ]),
            ("Access", [
                panel("Calls refused for who makes them", (f"sum by (reason) (rate(crescendo_access_refused_total{{{NS}}}[$__rate_interval]))", "{{reason}}"), unit="ops"),
                panel("Connections", (f"crescendo_connections_open{{{NS}}}", "{{instance}}")),
                panel("Connections refused", (f"sum by (reason) (rate(crescendo_connections_refused_total{{{NS}}}[$__rate_interval]))", "{{reason}}"), unit="ops"),
                panel("Time left of certificates", (f"min by (instance, file) (crescendo_tls_certificate_expiry_timestamp_seconds{{{NS}}}) - time()", "{{instance}} {{file}}"), unit="s"),
                panel("Audit log", (f"sum(rate(crescendo_audit_lines_total{{{NS}}}[$__rate_interval]))", "lines"),
                      (f"sum(rate(crescendo_audit_dropped_total{{{NS}}}[$__rate_interval]))", "lost"), unit="ops"),
                panel("Files not reloaded", (f"sum by (instance, source) (increase(crescendo_access_reload_failures_total{{{NS}}}[$__rate_interval]))", "{{instance}} {{source}}"),
                      (f"sum by (instance) (increase(crescendo_tls_reload_failures_total{{{NS}}}[$__rate_interval]))", "{{instance}} TLS")),
                panel("Spans to the collector", (f"sum by (instance) (rate(crescendo_trace_spans_exported_total{{{NS}}}[$__rate_interval]))", "{{instance}}"),
                      (f"sum by (reason) (rate(crescendo_trace_spans_dropped_total{{{NS}}}[$__rate_interval]))", "lost: {{reason}}"), unit="ops"),
            ]),
        ],
    ),
    "job": dict(
        title="Crescendo / job",
        variables=["namespace", ("instance", "crescendo_trainer_ranks_running", "Trainer")],
        note="Metrics carry no job ids. `crescendo get JOB` names the trainers that a job runs on: choose those above.",
        rows=[
            ("Learning", [
                panel("Loss", slots("crescendo_trainer_loss"), width=12, least=None),
                panel("Gradient norm before clipping", slots("crescendo_trainer_grad_norm"), width=12),
                panel("Learning rate", slots("crescendo_trainer_learning_rate"), unit="sci"),
                panel("Step in the stage", slots("crescendo_trainer_step")),
                panel("Steps a second", (f"rate(crescendo_trainer_step{{{NODE}}}[$__rate_interval])", "{{instance}} slot {{slot}}"), unit="ops",
                      help="A new stage, or a step back to a checkpoint, shows as a peak: Prometheus takes it for a restart of the counter."),
            ]),
            ("Speed", [
                panel("Samples a second of the gang", slots("crescendo_trainer_samples_per_second"), width=12, help="The same on every rank of a gang."),
                panel("Share of a step spent waiting for data", slots("crescendo_trainer_data_wait_ratio"), unit="percentunit", width=12),
                panel("Where the time goes", (f"avg by (phase) (rate(crescendo_trainer_phase_seconds_total{{{NODE}}}[$__rate_interval]))", "{{phase}}"), unit="percentunit", width=12, stack=True,
                      help="Share of a rank's time in each phase of its steps, mean over ranks. All-reduces that run beside the backward pass count to that."),
                panel("Seconds a step, by phase", (f"avg by (phase) (rate(crescendo_trainer_phase_seconds_total{{{NODE}}}[$__rate_interval]) / on (instance, slot) group_left () rate(crescendo_trainer_steps_total{{{NODE}}}[$__rate_interval]))", "{{phase}}"), unit="s", width=12, stack=True),
                panel("Arithmetic", slots("crescendo_trainer_operations_per_second"), unit="flops", width=12, help="The least that the steps need: nothing computed twice."),
                panel("Share of the arithmetic peak", slots("crescendo_trainer_peak_ratio"), unit="percentunit", width=12, help="Of dense bfloat16; absent where the device's peak is not known."),
            ]),
            ("Checkpoints and failures", [
                panel("Checkpoints", (f"sum by (outcome) (increase(crescendo_trainer_checkpoints_total{{{NODE}}}[$__rate_interval]))", "{{outcome}}")),
                panel("Time to write a checkpoint", *quantiles("crescendo_trainer_checkpoint_write_seconds", NODE), unit="s"),
                panel("Ranks", (f"sum(crescendo_trainer_ranks_running{{{NODE}}})", "alive"),
                      (f"sum(increase(crescendo_trainer_rank_failures_total{{{NODE}}}[$__rate_interval]))", "failed")),
                panel("Age of the last checkpoint", (f"time() - crescendo_trainer_last_checkpoint_timestamp_seconds{{{NODE}}}", "{{instance}} slot {{slot}}"), unit="s", width=12,
                      help="What would be lost if the rank died now. Only where a gang's first rank lives."),
                panel("Damaged checkpoints", f"sum(crescendo_trainer_checkpoints_damaged_total{{{NODE}}})", kind="stat", width=12),
            ]),
        ],
    ),
    "curation": dict(
        title="Crescendo / curation",
        variables=["namespace", ("instance", "crescendo_curator_stages", "Curator")],
        rows=[
            ("Pairs", [
                panel("Accepted and rejected",
                      (f"sum(rate(crescendo_curator_pairs_accepted_total{{{NODE}}}[$__rate_interval]))", "accepted"),
                      (f"sum(rate(crescendo_curator_pairs_rejected_total{{{NODE}}}[$__rate_interval]))", "rejected"), unit="cps"),
                panel("Rejected by reason", (f"sum by (reason) (rate(crescendo_curator_pairs_rejected_total{{{NODE}}}[$__rate_interval]))", "{{reason}}"), unit="cps", stack=True),
                panel("Share rejected",
                      (f"sum(rate(crescendo_curator_pairs_rejected_total{{{NODE}}}[$__rate_interval])) / (sum(rate(crescendo_curator_pairs_rejected_total{{{NODE}}}[$__rate_interval])) + sum(rate(crescendo_curator_pairs_accepted_total{{{NODE}}}[$__rate_interval])))", "rejected"), unit="percentunit"),
                panel("Similarity of references to targets", (f"sum by (le) (increase(crescendo_curator_similarity_bucket{{{NODE}}}[$__rate_interval]))", "{{le}}"), kind="heatmap", width=12, least=None,
                      help="Cosine by the filter's image encoder, of all pairs that it compared, rejected ones too."),
                panel("Jobs that wait for curation", (f'sum by (reason) (crescendo_jobs_waiting{{{NS}, reason=~"pairs|curators_busy|no_curator"}} {LED})', "{{reason}}"), width=12, stack=True),
            ]),
            ("Units", [
                panel("Units by outcome", (f"sum by (outcome) (increase(crescendo_curator_units_total{{{NODE}}}[$__rate_interval]))", "{{outcome}}"), stack=True),
                panel("Time to make a unit", *quantiles("crescendo_curator_unit_seconds", NODE), unit="s"),
                panel("Stages assigned", (f"crescendo_curator_stages{{{NODE}}}", "{{instance}}")),
                panel("Units still needed", (f"sum(crescendo_curation_backlog_units{{{NS}}} {LED})", "units"), width=12,
                      help="Of the stages that can be curated now, if no pair were rejected."),
            ]),
            ("Serving", [
                panel("Pairs served", (f"sum by (instance) (rate(crescendo_curator_pairs_served_total{{{NODE}}}[$__rate_interval]))", "{{instance}}"), unit="cps"),
                panel("Bytes served", (f"sum by (instance) (rate(crescendo_curator_bytes_served_total{{{NODE}}}[$__rate_interval]))", "{{instance}}"), unit="Bps"),
                panel("Open pair streams", (f"crescendo_curator_pair_streams{{{NODE}}}", "{{instance}}")),
                panel("Time to encode a batch", *quantiles("crescendo_curator_encode_seconds", NODE), unit="s"),
                panel("Shards read", (f"sum by (instance) (rate(crescendo_curator_shards_loaded_total{{{NODE}}}[$__rate_interval]))", "{{instance}}"), unit="cps",
                      help="High while pairs are served slowly: the shards do not fit into the cache."),
                panel("Shards that failed to verify", f"sum(crescendo_curator_shards_damaged_total{{{NODE}}})", kind="stat"),
            ]),
            GPUS,
        ],
    ),
    "node": dict(
        title="Crescendo / node",
        variables=["namespace", ("instance", "crescendo_trainer_ranks_running", "Trainer")],
        rows=[
            ("Ranks", [
                panel("Ranks alive", (f"crescendo_trainer_ranks_running{{{NODE}}}", "{{instance}}")),
                panel("Ranks started", (f"increase(crescendo_trainer_rank_starts_total{{{NODE}}}[$__rate_interval])", "{{instance}}")),
                panel("Ranks failed", (f"increase(crescendo_trainer_rank_failures_total{{{NODE}}}[$__rate_interval])", "{{instance}}")),
                panel("Attempts by how they ended", (f"sum by (outcome) (increase(crescendo_trainer_attempts_total{{{NODE}}}[$__rate_interval]))", "{{outcome}}"), stack=True),
                panel("Step of each slot", slots("crescendo_trainer_step")),
                panel("Waiting for data", slots("crescendo_trainer_data_wait_ratio"), unit="percentunit"),
            ]),
            ("Checkpoints and logs", [
                panel("Time to write a checkpoint", *quantiles("crescendo_trainer_checkpoint_write_seconds", NODE), unit="s"),
                panel("Checkpoints by what became of them", (f"sum by (outcome) (increase(crescendo_trainer_checkpoints_total{{{NODE}}}[$__rate_interval]))", "{{outcome}}")),
                panel("Log lines lost since the start", (f"crescendo_trainer_log_lines_dropped_total{{{NODE}}}", "{{instance}}")),
            ]),
            GPUS,
            ("Scrapes", [
                panel("Answers scrapes", (f'up{{{NODE}}}', "{{instance}}"), width=12),
                panel("Time of a scrape", (f'scrape_duration_seconds{{{NODE}}}', "{{instance}}"), unit="s", width=12),
            ]),
        ],
    ),
}


def target(query, index):
    expression, legend = query if isinstance(query, tuple) else (query, "")
    return {
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "editorMode": "code",
        "expr": expression,
        "legendFormat": legend or "__auto",
        "range": True,
        "refId": chr(ord("A") + index),
    }


def rendered_panel(number, spec, x, y):
    custom = {"fillOpacity": 25 if spec["stack"] else 8, "lineWidth": 1, "showPoints": "never"}
    if spec["stack"]:
        custom["stacking"] = {"group": "A", "mode": "normal"}
    defaults = {"unit": spec["unit"], "custom": custom if spec["kind"] == "timeseries" else {}}
    if spec["least"] is not None:
        defaults["min"] = spec["least"]
    options = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"},
        "heatmap": {"calculate": False, "cellGap": 1, "yAxis": {"axisPlacement": "left"}},
    }[spec["kind"]]
    targets = [target(query, i) for i, query in enumerate(spec["queries"])]
    if spec["kind"] == "heatmap":
        for item in targets:
            item["format"] = "heatmap"
    return {
        "id": number,
        "type": spec["kind"],
        "title": spec["title"],
        "description": spec["help"],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": spec["width"], "h": spec["height"]},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def variable(item):
    if item == "namespace":
        name, metric, label = "namespace", "crescendo_leader", "Namespace"
        query = f"label_values({metric}, namespace)"
    else:
        name, metric, label = item
        query = f'label_values({metric}{{namespace=~"$namespace"}}, {name})'
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also where a series has no such label.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(name, spec):
    panels, number, y = [], 0, 0
    if "note" in spec:
        number += 1
        panels.append({"id": number, "type": "text", "title": "", "gridPos": {"x": 0, "y": 0, "w": WIDTH, "h": 2},
                       "options": {"mode": "markdown", "content": spec["note"]}})
        y = 2
    for title, row in spec["rows"]:
        number += 1
        panels.append({"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y += 1
        x = height = 0
        for item in row:
            if x + item["width"] > WIDTH:
                x, y = 0, y + height
                height = 0
            number += 1
            panels.append(rendered_panel(number, item, x, y))
            x, height = x + item["width"], max(height, item["height"])
        y += height
    datasource = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"crescendo-{name}",
        "title": spec["title"],
        "tags": ["crescendo"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [datasource, *map(variable, spec["variables"])]},
        "links": [{"type": "dashboards", "tags": ["crescendo"], "title": "Crescendo", "asDropdown": True, "keepTime": True, "includeVars": False}],
        "annotations": {"list": []},
        "panels": panels,
    }


def main():
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, spec in DASHBOARDS.items():
        path, text = FOLDER / f"{name}.json", json.dumps(dashboard(name, spec), indent=2) + "\n"
        if check:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.relative_to(FOLDER.parent.parent.parent)))
        else:
            path.write_text(text)
    extra = [path.name for path in FOLDER.glob("*.json") if path.stem not in DASHBOARDS]
    if stale or extra:
        sys.exit(f"error: {', '.join(stale + extra)}: not as scripts/build_dashboards.py writes it; run it")


if __name__ == "__main__":
    main()
