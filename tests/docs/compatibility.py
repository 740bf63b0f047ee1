"""The compatibility page's tables: Consul's endpoints beside the route table and the list of known differences.

Nothing here is judged: whether a route is there says the code, how it differs says tests/differential/differences.conf,
whose entries are proven by the comparison with a running Consul."""

import fnmatch
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ENDPOINTS = HERE / "consul-endpoints.txt"
DIFFERENCES = HERE.parent / "differential/differences.conf"

# Headers that come and go with the status: nobody looks for them by themselves.
COMPANIONS = ("Content-Type", "X-Consul-Index", "X-Consul-Knownleader", "X-Consul-Lastcontact", "X-Consul-*")

# An entry that concerns more endpoints than this is about all of them.
MANY = 12


class Endpoint:
    def __init__(self, family, text):
        request, _, mark = (part.strip() for part in text.partition("|"))
        self.family, self.mark = family, mark
        self.method, self.path = request.split(" ")
        self.shown = request
        self.differences = {}

    @property
    def prefix(self):
        return self.path.removesuffix("…")

    @property
    def takes_name(self):
        return self.path.endswith("…")

    def meets(self, method, pattern):
        """Whether a request, or a pattern of requests, is for this endpoint."""
        if method not in ("*", self.method):
            return False
        if fnmatch.fnmatchcase(self.path, pattern):
            return True
        return self.takes_name and pattern.startswith(self.prefix)


def endpoints():
    family, found, own = "", [], set()
    for line in ENDPOINTS.read_text().splitlines():
        if re.fullmatch(r"# [A-Z][\w ]{0,30}", line):
            family = line[2:]
        elif line.startswith("own "):
            own.add(line[4:])
        elif line and not line.startswith("#"):
            found.append(Endpoint(family, line))
    return found, own


def places(at):
    """What of the answer an entry is about, as far as a reader would look for it."""
    path = at.split(" ")[0]
    kind, _, rest = path.partition(".")
    if kind.startswith("body") and re.fullmatch(r"[A-Za-z][\w-]*", leaf := path.split(".")[-1]) and leaf != "body":
        return leaf
    if kind == "headers" and rest not in COMPANIONS:
        return rest
    return ""


def differences():
    """(steps, what is said of them) of every entry that gives a reason of its own."""
    entries = []
    for line in DIFFERENCES.read_text().splitlines():
        if line.startswith("["):
            entries.append(([], [], []))
        elif line.startswith("step: "):
            entries[-1][0].append(line[6:])
        elif line.startswith("at: "):
            entries[-1][1].append(places(line[4:]))
        elif line.startswith("reason: "):
            # The page stands for itself: no references to notes.
            reason = re.sub(r" ?\((?:CONSUL\.md|DESIGN|FEATURES|[A-H]\.\d+\))[^)]*\)?", "", line[8:])
            reason = re.sub(r"\([A-H]\.\d+, ", "(", reason)
            entries[-1][2].append(re.sub(r",? ?(?:CONSUL\.md|DESIGN) [\w.]+", "", reason))
    for steps, at, (reason,) in entries:
        if re.match(r"follows from|as above|our words|the same in", reason):
            continue
        names = [f"`{name}`" for name in dict.fromkeys(at) if name]
        shown = f" ({', '.join(names)})" if 0 < len(names) <= 6 else ""
        yield steps, reason[0].upper() + reason[1:].rstrip(".") + shown + "."


def compared():
    """What the case files ask for: (method, path without its parameters)."""
    asked = set()
    for case in sorted(DIFFERENCES.parent.glob("cases/*.case")):
        for line in case.read_text().splitlines():
            line = line.removeprefix("WATCH ")
            line = re.sub(r"^FILTER ", "GET ", line)
            if match := re.match(r"([A-Z]+) (/[^\s?]*)", line):
                asked.add((match[1], match[2]))
    return asked


def example(step):
    """The step, where it is short and stands for itself."""
    text = step.replace("`", "'")
    if "*" in text or len(text) > 90:
        return ""
    return f"`{text}`: "


def concerned(step, known):
    """The endpoints a step is for; nothing when it is for all of them."""
    method, _, rest = step.partition(" ")
    pattern = re.split(r"[ ?]", rest, maxsplit=1)[0]
    met = [endpoint for endpoint in known if endpoint.meets(method, pattern)]
    if "*" not in pattern and len(met) > 1:
        longest = max(len(endpoint.prefix) for endpoint in met)
        met = [endpoint for endpoint in met if len(endpoint.prefix) == longest]
    return met if len(met) <= MANY else []


def sort_differences(known):
    """Hangs every difference where it belongs; returns those of everything, of DNS and of commands."""
    common = {"everywhere": {}, "dns": {}, "commands": {}}
    for steps, reason in differences():
        for step in steps:
            kind = step.split(" ")[0]
            if kind in ("DIG", "PACKET"):
                common["dns"].setdefault(reason, example(step))
            elif kind == "CLI":
                common["commands"].setdefault(reason, example(step.removeprefix("CLI ")))
            elif kind == "JOIN":
                continue
            else:
                met = concerned(step, known)
                for endpoint in met:
                    # Below its endpoint an example needs only what is behind the path, if that takes no name.
                    rest = step if endpoint.takes_name else re.sub(r"^\S+ [^\s?]*", "", step).strip()
                    endpoint.differences.setdefault(reason, example(rest) if rest else "")
                if not met:
                    common["everywhere"].setdefault(reason, example(step))
    # What holds everywhere need not be said again.
    for endpoint in known:
        for reason in common["everywhere"]:
            endpoint.differences.pop(reason, None)
    return common


def state(endpoint, there, asked):
    if there and not any(endpoint.meets(method, path) for method, path in asked):
        return "there; not compared"
    if there:
        return "differs" if endpoint.differences else "same"
    kind, _, why = endpoint.mark.partition(": ")
    if kind not in ("later", "no") or not why:
        sys.exit(f"{ENDPOINTS.name}: {endpoint.shown} has no route and no mark that says why")
    return f"comes {why}" if kind == "later" else f"not planned: {why}"


def sentences(reasons):
    return "\n".join(f"- {shown}{reason}" for reason, shown in reasons.items())


def tables(routes):
    """The page's generated part; `routes` are (method, path) of the route table, names as `…`."""
    known, own = endpoints()
    there = {f"{method} {path}" for method, path in routes}
    listed = {endpoint.shown for endpoint in known}
    if unlisted := sorted(there - listed - own):
        sys.exit(f"{ENDPOINTS.name} knows nothing of: {', '.join(unlisted)}; if Consul has it, add it, else as `own`")
    if gone := sorted(own - there):
        sys.exit(f"{ENDPOINTS.name}: no such route: {', '.join(gone)}")
    common = sort_differences(known)
    asked = compared()
    states = {endpoint.shown: state(endpoint, endpoint.shown in there, asked) for endpoint in known}
    words = ("same", "differs", "there", "comes", "not")
    same, differ, uncompared, later, never = (sum(text.startswith(word) for text in states.values()) for word in words)
    out = [
        f"Of {len(known)} endpoints {same} answer the same, {differ} with the differences named, {uncompared} are there "
        f"without a comparison, {later} come later, {never} are not planned.",
        "", "### Everywhere", "", sentences(common["everywhere"]), "",
    ]
    families = list(dict.fromkeys(endpoint.family for endpoint in known))
    for family in families:
        members = [endpoint for endpoint in known if endpoint.family == family]
        out += [f"### {family}", "", "| Request | |", "|---|---|"]
        out += [f"| `{endpoint.shown}` | {states[endpoint.shown]} |" for endpoint in members]
        out.append("")
        # What several requests share is said once.
        groups = {}
        for endpoint in members:
            if states[endpoint.shown] == "differs":
                for reason in endpoint.differences:
                    sharing = tuple(e.shown for e in members if reason in e.differences)
                    shown = endpoint.differences[reason] if len(sharing) == 1 else ""
                    groups.setdefault(sharing, {})[reason] = shown
        for requests, group in groups.items():
            out += [", ".join(f"`{request}`" for request in requests) + ":", "", sentences(group), ""]
    out += ["### DNS", "", sentences(common["dns"]), "", "### Commands", "", sentences(common["commands"]), ""]
    out += ["### Only here", "", *(f"- `{request}`" for request in sorted(own))]
    return "\n".join(out)
