"""What the tests of real programs share: the server's API, small web servers to be found, and one line per check."""

import http.server
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Report:
    """One line per check; `failed` counts those that were not as wanted."""

    def __init__(self, program):
        self.program = program
        self.failed = 0

    def check(self, name, got, wanted):
        if got == wanted:
            print(f"ok    {self.program}: {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {self.program}: {name}: got {got!r}, wanted {wanted!r}", flush=True)


def until(what, wanted, seconds):
    """Repeats until the answer is the wanted one; returns the last answer."""
    end = time.monotonic() + seconds
    while (got := what()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    return got


def ask(url, method="GET", body=None):
    """The body of an answer as text; an error raises, unless the other side is not there yet: then None."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{method} {url}: {error.code} {error.read().decode()}") from error
    except OSError:
        return None


class Weft:
    """The server under test."""

    def __init__(self, address):
        self.address = address
        self.base = f"http://{address}:8500/v1"

    def put(self, path, body=""):
        return ask(f"{self.base}{path}", "PUT", body)

    def get(self, path):
        return json.loads(ask(f"{self.base}{path}"))

    def register(self, node, address, service, meta=None, status="passing"):
        """An instance on a node of its own, written into the catalog. Returns what takes it out again."""
        body = {"Node": node, "Address": address, "NodeMeta": meta or {}, "Service": service}
        body["Check"] = {"CheckID": f"{node}-check", "Name": "check", "Status": status, "ServiceID": service["ID"]}
        if self.put("/catalog/register", body) != "true":
            raise RuntimeError(f"registration of {node} was refused")
        return lambda: self.put("/catalog/deregister", {"Node": node})


class Backend:
    """A web server on an address of its own that answers every GET with its name; `/sick` paths follow its health."""

    def __init__(self, name, address, port):
        self.name, self.address, self.port = name, address, port
        self.healthy = True
        backend = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = backend.name.encode()
                self.send_response(200 if backend.healthy or self.path != "/health" else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, port), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Program:
    """A program that runs while the block does; its output goes to a file, whose end a failure shows."""

    def __init__(self, arguments, log):
        self.arguments, self.log = arguments, log

    def __enter__(self):
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(self.arguments, stdout=out, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def tail(self):
        with open(self.log) as log:
            return "".join(log.readlines()[-15:])
