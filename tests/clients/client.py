"""py-consul against a server: register, watch, lock, recurse, transact. Usage: client.py ADDRESS."""

import base64
import sys
import threading
import time

import consul

c = consul.Consul(host=sys.argv[1], port=8500)
failed = 0


def check(name, got, wanted):
    """One line per check; equality decides."""
    global failed
    if got == wanted:
        print(f"ok    py-consul: {name}")
    else:
        failed += 1
        print(f"FAIL  py-consul: {name}: got {got!r}, wanted {wanted!r}")


def until(what, wanted, seconds=10):
    """Repeats until the answer is the wanted one; returns the last answer."""
    end = time.monotonic() + seconds
    while (got := what()) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return got


def in_background(call):
    """Runs the call in a thread; the returned function waits for its result."""
    box = []
    thread = threading.Thread(target=lambda: box.append(call()), daemon=True)
    thread.start()
    time.sleep(0.2)  # let the request arrive before what it waits for

    def result():
        thread.join(15)
        return box[0] if box else "no answer within 15 s"

    return result


def passing(name):
    return [entry["Service"]["ID"] for entry in c.health.service(name, passing=True)[1]]


# A service with a TTL check; a watcher sees it come, become healthy and go.
index, _ = c.health.service("pyweb")
watch = in_background(lambda: c.health.service("pyweb", index=index, wait="10s"))
c.agent.service.register("pyweb", service_id="pyweb-1", port=8080, tags=["v1"], check=consul.Check.ttl("30s"))
index, seen = watch()
check("a watcher sees the registration", [entry["Service"]["ID"] for entry in seen], ["pyweb-1"])
check("a TTL check begins critical", passing("pyweb"), [])
c.agent.check.ttl_pass("service:pyweb-1", "beating")
check("and passes when it beats", until(lambda: passing("pyweb"), ["pyweb-1"]), ["pyweb-1"])
checks = c.agent.checks()
check("with the note as its output", checks["service:pyweb-1"]["Output"], "beating")
check("the agent lists the service", c.agent.services()["pyweb-1"]["Port"], 8080)
check("the catalog has its tag", c.catalog.services()[1]["pyweb"], ["v1"])
index, _ = c.health.service("pyweb", passing=True)
watch = in_background(lambda: c.health.service("pyweb", passing=True, index=index, wait="10s"))
c.agent.check.ttl_fail("service:pyweb-1", "broken")
_, seen = watch()
check("a watcher sees it fail", seen, [])
c.agent.service.deregister("pyweb-1")
check("the catalog forgets it", until(lambda: c.catalog.service("pyweb")[1], []), [])

# Keys.
check("put", c.kv.put("py/a", "one"), True)
check("get", c.kv.get("py/a")[1]["Value"], b"one")
check("a missing key", c.kv.get("py/none")[1], None)
check("bytes survive", (c.kv.put("py/bytes", bytes(range(256))), c.kv.get("py/bytes")[1]["Value"])[1], bytes(range(256)))
check("flags", (c.kv.put("py/flags", "x", flags=42), c.kv.get("py/flags")[1]["Flags"])[1], 42)
check("recurse", sorted(k["Key"] for k in c.kv.get("py/", recurse=True)[1]), ["py/a", "py/bytes", "py/flags"])
check("keys", c.kv.get("py/", keys=True)[1], ["py/a", "py/bytes", "py/flags"])
check("keys with a separator", c.kv.get("", keys=True, separator="/")[1].count("py/"), 1)
check("cas 0 on an existing key", c.kv.put("py/a", "x", cas=0), False)
modify = c.kv.get("py/a")[1]["ModifyIndex"]
check("cas with its index", c.kv.put("py/a", "two", cas=modify), True)
check("cas with an old index", c.kv.put("py/a", "three", cas=modify), False)
index, _ = c.kv.get("py/a")
watch = in_background(lambda: c.kv.get("py/a", index=index, wait="10s"))
c.kv.put("py/a", "four")
check("a watched key wakes", watch()[1]["Value"], b"four")

# A lock by session.
first = c.session.create("py-first", lock_delay=0, ttl=30, behavior="release")
second = c.session.create("py-second", lock_delay=0)
check("acquire", c.kv.put("py/lock", "first", acquire=first), True)
check("it is exclusive", c.kv.put("py/lock", "second", acquire=second), False)
check("the holder is named", c.kv.get("py/lock")[1]["Session"], first)
check("renew", c.session.renew(first)["ID"], first)
check("release", c.kv.put("py/lock", "", release=first), True)
check("then the other gets it", c.kv.put("py/lock", "second", acquire=second), True)
c.session.destroy(second)
check("a destroyed session lets go", c.kv.get("py/lock")[1].get("Session"), None)
check("sessions are listed", first in [s["ID"] for s in c.session.list()[1]], True)
c.session.destroy(first)

# A transaction.
value = base64.b64encode(b"in txn").decode()
answer = c.txn.put([{"KV": {"Verb": "set", "Key": "py/txn", "Value": value}}, {"KV": {"Verb": "get", "Key": "py/txn"}}])
check("txn", [base64.b64decode(r["KV"]["Value"]) for r in answer["Results"] if r["KV"]["Value"]], [b"in txn"])
try:
    c.txn.put([{"KV": {"Verb": "check-index", "Key": "py/txn", "Index": 1}}])
    check("a txn in conflict is refused", "accepted", "refused")
except consul.ConsulException as error:
    check("a txn in conflict is refused", "409" in str(error) or "index" in str(error), True)

check("delete the tree", c.kv.delete("py/", recurse=True), True)
check("nothing is left", c.kv.get("py/", recurse=True)[1], None)
check("status", c.status.leader().endswith(":8300"), True)
sys.exit(1 if failed else 0)
