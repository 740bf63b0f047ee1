"""Debian's Prometheus with consul_sd_configs against a server: it finds targets by tag, by the metadata of nodes and
of services and by health, follows every change, and scrapes the server itself. Usage: prometheus.py ADDRESS PROMETHEUS."""

import json
import pathlib
import sys
import tempfile
import urllib.parse

from stage import Backend, Program, Report, Weft, ask, until

address, binary = sys.argv[1:]
weft = Weft(address)
report = Report("Prometheus")
listen = f"{address}:9090"

# Discovery is throttled to one update every 5 s by Prometheus itself.
SOON = 14

# (job, what consul_sd_configs asks for, relabelling)
JOBS = [
    ("by-service", "services: [pweb]", ""),
    ("by-tag", "services: [pweb], tags: [azure]", ""),
    ("by-two-tags", "services: [pweb], tags: [azure, eu]", ""),
    ("by-node-meta", "node_meta: {rack: r7}", ""),
    ("by-service-meta", "services: [pweb]", "{source_labels: [__meta_consul_service_metadata_version], regex: '2', action: keep}"),
    ("healthy", "services: [pweb]", "{source_labels: [__meta_consul_health], regex: critical, action: drop}"),
    ("by-tag-label", "{}", "{source_labels: [__meta_consul_tags], regex: '.*,azure,.*', action: keep}"),
    ("stale", "services: [pweb], allow_stale: true", ""),
]


def configuration():
    jobs = []
    for name, what, relabel in JOBS:
        what = "" if what == "{}" else f", {what}"
        relabel = f"\n  relabel_configs: [{relabel}]" if relabel else ""
        jobs.append(
            f"- job_name: {name}\n  scrape_interval: 1s\n"
            f"  consul_sd_configs: [{{server: '{address}:8500', refresh_interval: 1s{what}}}]{relabel}\n"
        )
    # The server itself, found as the service every cluster has; its metrics are on the HTTP port.
    jobs.append(
        f"- job_name: weft\n  scrape_interval: 1s\n  metrics_path: /v1/agent/metrics\n  params: {{format: [prometheus]}}\n"
        f"  consul_sd_configs: [{{server: '{address}:8500', refresh_interval: 1s, services: [consul]}}]\n"
        "  relabel_configs:\n  - {source_labels: [__address__], regex: '(.*):8300', replacement: '${1}:8500', target_label: __address__}\n"
    )
    return "scrape_configs:\n" + "".join(jobs)


def targets():
    """job → addresses, of what Prometheus holds now."""
    found = {name: [] for name, _, _ in JOBS}
    for target in json.loads(ask(f"http://{listen}/api/v1/targets"))["data"]["activeTargets"]:
        if target["labels"]["job"] in found:
            found[target["labels"]["job"]].append(target["discoveredLabels"]["__address__"])
    return {job: sorted(set(addresses)) for job, addresses in found.items()}


def ready():
    """Before it is, Prometheus answers 503."""
    try:
        return ask(f"http://{listen}/-/ready") is not None
    except RuntimeError:
        return False


def labels_of(instance):
    for target in json.loads(ask(f"http://{listen}/api/v1/targets"))["data"]["activeTargets"]:
        if target["labels"]["job"] == "by-service" and target["discoveredLabels"]["__address__"] == instance:
            return target["discoveredLabels"]
    return {}


def query(expression):
    answer = json.loads(ask(f"http://{listen}/api/v1/query?query={urllib.parse.quote(expression)}"))
    return [row["value"][1] for row in answer["data"]["result"]]


def expect(name, **wanted):
    """Every job's targets; those not named here have none."""
    wanted = {job: wanted.get(job.replace("-", "_"), []) for job, _, _ in JOBS}
    report.check(name, until(targets, wanted, SOON), wanted)


ONE, TWO, THREE = (f"127.0.75.{n}:9101" for n in (1, 2, 3))
for instance in (ONE, TWO, THREE):
    host, port = instance.split(":")
    Backend(instance, host, int(port))


def web(number, tags, version):
    return {"ID": f"pweb-{number}", "Service": "pweb", "Tags": tags, "Port": 9101, "Meta": {"version": version}}


remove_one = weft.register("prom-1", "127.0.75.1", web(1, ["azure", "eu"], "1"), {"rack": "r7"})
remove_two = weft.register("prom-2", "127.0.75.2", web(2, ["green"], "2"))

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "prometheus.yml").write_text(configuration())
    arguments = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address={listen}"]
    with Program(arguments, folder / "log") as program:
        report.check("it starts", until(ready, True, SOON), True)
        expect("targets appear", by_service=[ONE, TWO], by_tag=[ONE], by_two_tags=[ONE], by_node_meta=[ONE],
               by_service_meta=[TWO], healthy=[ONE, TWO], by_tag_label=[ONE], stale=[ONE, TWO])
        labels = labels_of(ONE)
        wanted = {"node": "prom-1", "service": "pweb", "service_id": "pweb-1", "tags": ",azure,eu,", "dc": "dc1",
                  "address": "127.0.75.1", "service_port": "9101", "health": "passing",
                  "metadata_rack": "r7", "service_metadata_version": "1"}
        report.check("labels of a target", {k: labels.get(f"__meta_consul_{k}") for k in wanted}, wanted)
        report.check("the server is scraped", until(lambda: query('up{job="weft"}'), ["1"], SOON), ["1"])
        report.check("and its metrics are kept", until(lambda: query('weft_raft_is_leader{job="weft"}'), ["1"], 5), ["1"])

        # One phase, four changes: a new instance, one that fails, one with other tags, none left on r7 but the new one.
        remove_three = weft.register("prom-3", "127.0.75.3", web(3, ["azure"], "2"), {"rack": "r7"})
        weft.register("prom-2", "127.0.75.2", web(2, ["green"], "2"), status="critical")
        expect("a new one is found, a critical one dropped by its label", by_service=[ONE, TWO, THREE], by_tag=[ONE, THREE],
               by_two_tags=[ONE], by_node_meta=[ONE, THREE], by_service_meta=[TWO, THREE], healthy=[ONE, THREE],
               by_tag_label=[ONE, THREE], stale=[ONE, TWO, THREE])
        weft.register("prom-2", "127.0.75.2", web(2, ["azure"], "1"))
        remove_one()
        expect("a changed one moves, a healthy one returns, a deregistered one goes", by_service=[TWO, THREE],
               by_tag=[TWO, THREE], by_node_meta=[THREE], by_service_meta=[THREE], healthy=[TWO, THREE],
               by_tag_label=[TWO, THREE], stale=[TWO, THREE])
        remove_two()
        remove_three()
        expect("nothing is left")
        if report.failed:
            print(program.tail())
sys.exit(1 if report.failed else 0)
