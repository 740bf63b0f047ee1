"""Debian's HAProxy with server-template and resolvers against a server's DNS: SRV and A, over UDP with EDNS and over
TCP, few instances and many; a failed instance is drained. Usage: haproxy.py ADDRESS HAPROXY."""

import pathlib
import socket
import sys
import tempfile
import time

from stage import Backend, Program, Report, Weft, ask, until

address, binary = sys.argv[1:]
weft = Weft(address)
report = Report("HAProxy")
MANY = 60
SOON = 10


def configuration(folder):
    """Backends: `srv` and `plain` (A with a port of its own) of three live instances, `udp` and `tcp` of many."""
    resolvers = "\n".join(
        f"""resolvers {name}
    nameserver weft {transport}{address}:8600
    accepted_payload_size 8192
    resolve_retries 3
    timeout resolve 500ms
    timeout retry 500ms
    hold valid 500ms
    hold nx 500ms
    hold obsolete 0s"""
        for name, transport in (("udp", ""), ("tcp", "tcp@"))
    )
    server = "init-addr none resolve-prefer ipv4"
    return f"""global
    stats socket {folder}/stats level admin
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
{resolvers}
frontend entry-srv
    bind {address}:9201
    default_backend srv
frontend entry-plain
    bind {address}:9202
    default_backend plain
backend srv
    balance roundrobin
    server-template s 10 _hweb._tcp.service.consul resolvers udp {server}
backend plain
    balance roundrobin
    server-template s 10 hweb.service.consul:9102 resolvers udp {server}
backend udp
    server-template s {MANY + 20} _hmany._tcp.service.consul resolvers udp {server}
backend tcp
    server-template s {MANY + 20} hmany.service.consul:80 resolvers tcp {server}
"""


def servers(backend):
    """address:port → weight, of the servers that take traffic."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(folder / "stats"))
        control.sendall(f"show servers state {backend}\n".encode())
        text = b""
        while piece := control.recv(65536):
            text += piece
    lines = text.decode().splitlines()[1:]
    names = lines[0].lstrip("# ").split()
    rows = [dict(zip(names, line.split())) for line in lines[1:] if line]
    # State 2 is running.  Of the administrative states 64 only says that the name came by SRV; any other is maintenance,
    # which is how a record that is gone shows.
    up = [r for r in rows if r["srv_op_state"] == "2" and r["srv_admin_state"] in ("0", "64")]
    return {f"{r['srv_addr']}:{r['srv_port']}": int(r["srv_uweight"]) for r in up}


def addresses(backend):
    return sorted(servers(backend))


def place(number):
    """Where the many instances are."""
    return f"127.1.7.{number + 1}:{8000 + number}"


def weight(number):
    """HAProxy divides a record's weight by 256."""
    return 256 * (1 + number % 5)


def through(port):
    """Who answers twelve requests in a row; a refused one is shown as the error."""
    seen = set()
    for _ in range(12):
        try:
            seen.add(ask(f"http://{address}:{port}/"))
        except RuntimeError as error:
            seen.add(str(error).split(": ")[1][:3])
    return sorted(str(name) for name in seen)


def expect(name, backend, wanted):
    report.check(name, until(lambda: addresses(backend), wanted, SOON), wanted)


# Three live instances, the last on another port, checked by the agent over HTTP.
backends = [Backend(f"hweb-{n}", f"127.0.76.{n}", 9102 if n < 3 else 9103) for n in (1, 2, 3)]


def start(backend):
    check = {"HTTP": f"http://{backend.address}:{backend.port}/health", "Interval": "1s", "Timeout": "1s", "Status": "passing"}
    weft.put("/agent/service/register", {"ID": backend.name, "Name": "hweb", "Address": backend.address,
                                         "Port": backend.port, "Check": check})


start(backends[0])
start(backends[1])

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "haproxy.cfg").write_text(configuration(folder))
    with Program([binary, "-db", "-f", str(folder / "haproxy.cfg")], folder / "log") as program:
        until(lambda: (folder / "stats").exists(), True, SOON)
        time.sleep(0.2)
        if program.process.poll() is not None:
            sys.exit(f"HAProxy ended:\n{program.tail()}")

        one, two, three = (f"{b.address}:{b.port}" for b in backends)
        expect("SRV fills the servers", "srv", [one, two])
        expect("A fills the servers", "plain", [one, two])
        report.check("requests reach both, by SRV", until(lambda: through(9201), ["hweb-1", "hweb-2"], 5), ["hweb-1", "hweb-2"])
        report.check("requests reach both, by A", until(lambda: through(9202), ["hweb-1", "hweb-2"], 5), ["hweb-1", "hweb-2"])

        start(backends[2])
        expect("a new instance joins, with its own port", "srv", [one, two, three])
        report.check("and takes requests", until(lambda: through(9201), ["hweb-1", "hweb-2", "hweb-3"], 5), ["hweb-1", "hweb-2", "hweb-3"])

        backends[0].healthy = False
        expect("an instance that fails its check is drained", "srv", [two, three])
        expect("by A too", "plain", ["127.0.76.2:9102", "127.0.76.3:9102"])
        report.check("no request reaches it", through(9201), ["hweb-2", "hweb-3"])
        backends[0].healthy = True
        expect("and returns with its health", "srv", [one, two, three])

        weft.put("/agent/service/deregister/hweb-3")
        expect("a deregistered instance goes", "srv", [one, two])
        for backend in backends[:2]:
            weft.put(f"/agent/service/deregister/{backend.name}")
        expect("nothing is left", "srv", [])
        report.check("and the proxy says so", through(9201), ["503"])

        # Many instances: more than 512 bytes by far, so EDNS or TCP has to carry them.
        removals = []
        for n in range(MANY):
            service = {"ID": f"hmany-{n}", "Service": "hmany", "Port": 8000 + n, "Weights": {"Passing": weight(n), "Warning": 1}}
            removals.append(weft.register(f"hmany-{n}", f"127.1.7.{n + 1}", service))
        expect(f"{MANY} instances by SRV over UDP with EDNS", "udp", sorted(place(n) for n in range(MANY)))
        weights = servers("udp")
        lightest = min(weights.values(), default=0)
        report.check("weights are taken over", [weights.get(place(n), 0) - lightest for n in range(10)], [0, 1, 2, 3, 4] * 2)
        expect(f"{MANY} instances by A over TCP", "tcp", sorted(f"127.1.7.{n + 1}:80" for n in range(MANY)))
        for remove in removals[MANY // 2:]:
            remove()
        expect("half of them go", "udp", sorted(place(n) for n in range(MANY // 2)))
        for remove in removals[:MANY // 2]:
            remove()
        if report.failed:
            print(program.tail())
sys.exit(1 if report.failed else 0)
