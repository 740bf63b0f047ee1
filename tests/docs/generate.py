#!/usr/bin/env python3
"""Writes the parts of the reference that the code knows better, so that they cannot go stale.

    tests/docs/generate.py WEFT            writes docs/src/reference anew
    tests/docs/generate.py --check WEFT    fails when a page differs from what it would write

Commands come from `weft <verb> -h`, routes from agent/src/http/table.rs, configuration keys from
agent/src/config/schema.rs, the compatibility page from the routes and tests/differential/differences.conf. They stand between `<!-- generated: NAME -->` and `<!-- end generated -->`.
"""

import os
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
import compatibility

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/src/reference"


def help_of(weft, verb):
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "CONSUL_"))}, "COLUMNS": "100"}
    return subprocess.run([weft, *verb, "-h"], env=env, check=True, capture_output=True, text=True).stdout.rstrip()


def section(text, name):
    """The lines below `name:` in a help text."""
    match = re.search(rf"^{name}:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    return match[1].rstrip() if match else ""


def commands(weft):
    """Every verb's help; the flags that all of them share once at the end."""
    shared = ""
    pages = []

    def walk(verb):
        nonlocal shared
        text = help_of(weft, verb)
        agent = section(text, "Agent")
        shared = shared or agent
        note = "(and the [flags to reach the agent](#flags-to-reach-the-agent))"
        # One with flags of its own among them (debug) is shown whole.
        if agent == shared:
            text = re.sub(r"^Agent:\n.*?(?=^\S|\Z)", "", text, flags=re.M | re.S).rstrip()
        children = re.findall(r"^  ([a-z][a-z-]*) ", section(text, "Commands"), re.M)
        if verb:
            folded = agent and agent == shared
            pages.append(f"## weft {' '.join(verb)}\n\n```text\n{text}\n```" + (f"\n\n{note}" if folded else ""))
        else:
            pages.append(f"```text\n{text}\n```")
        for child in children:
            walk([*verb, child])

    walk([])
    pages.append(f"## Flags to reach the agent\n\n```text\n{shared}\n```")
    return "\n\n".join(pages)


def route_table():
    """(position, method, path, names of parameters, summary) of every route, and (position, name) of every family."""
    text = (ROOT / "agent/src/http/table.rs").read_text()
    lists = {
        name: re.findall(r'"([^"]*)"', body)
        for name, body in re.findall(r"^const (\w+): &\[&str\] = &\[(.*?)\];", text, re.M | re.S)
    }
    entry = re.compile(
        r'route\((\w+), "([^"]+)",\s*(?:Need::\w+\((?:[^()]|\((?:[^()])*\))*\)|\w+),\s*(\w+|&\[[^\]]*\]),\s*to!\([^)]*\),\s*"([^"]+)"',
        re.S,
    )
    table = text[text.index("TABLE: &[Route]"):]
    found = [(m.start(), m) for m in entry.finditer(table)]
    if len(found) != table.count("route("):
        sys.exit(f"routes: understood {len(found)} of {table.count('route(')}")
    families = [(m.start(), m[1]) for m in re.finditer(r"^    // (.*)$", table, re.M)]
    rows = []
    for at, m in found:
        names = lists[m[3]] if m[3] in lists else re.findall(r'"([^"]*)"', m[3])
        rows.append((at, m[1], m[2] + ("…" if m[2].endswith("/") else ""), names, m[4]))
    return rows, families


def routes(_weft):
    """The table of routes, one table a family."""
    rows, families = route_table()
    out = []
    for number, (start, family) in enumerate(families):
        end = families[number + 1][0] if number + 1 < len(families) else float("inf")
        out += [f"### {family}", "", "| Request | What it does | Parameters |", "|---|---|---|"]
        for at, method, path, names, summary in rows:
            if start < at < end:
                out.append(f"| `{method} {path}` | {summary} | {' '.join(f'`{n}`' for n in names) or '–'} |")
        out.append("")
    return "\n".join(out).rstrip()


def keys():
    """Every configuration key outside definitions as (dotted path, effect, reloadable, new name)."""
    text = (ROOT / "agent/src/config/schema.rs").read_text()
    tables = dict(re.findall(r"^(?:pub\(super\) )?const ([A-Z_]+): &\[Key\] = &\[\n(.*?)^\];", text, re.M | re.S))

    def items(body):
        """Splits a table at the commas of its own level."""
        depth, start, out = 0, 0, []
        for at, char in enumerate(body):
            depth += char in "([" and 1 or char in ")]" and -1 or 0
            if char == "," and depth == 0:
                out.append(body[start:at])
                start = at + 1
        return [re.sub(r"//[^\n]*", "", item).strip() for item in [*out, body[start:]] if re.search(r"\w+\(", item)]

    def walk(body, path):
        for item in items(body):
            how, name = re.match(r'(\w+)\(\s*"([^"]+)"', item).groups()
            full = path + name
            live = ".live()" in item
            inner = re.search(r"Section\((?:([A-Z_]+)\)|&\[(.*)\]\))", item, re.S)
            if inner and how != "inert":
                yield from ((p, e, l or live, n) for p, e, l, n in walk(tables[inner[1]] if inner[1] else inner[2], full + "."))
            else:
                new = re.search(r'"([^"]+)"\s*,?\s*\)(?:\.live\(\))?$', item)[1] if how == "old" else None
                yield full, how, live, new

    return list(walk(tables["TOP"], ""))


def listed(how):
    names = sorted(f"`{path}`" for path, effect, _, _ in keys() if effect == how)
    return ", ".join(names) + "."


def renamed(_weft):
    rows = [f"| `{path}` | `{new}` |" for path, effect, _, new in keys() if effect == "old"]
    return "\n".join(["| Old name | Name |", "|---|---|", *rows])


def reloadable(_weft):
    tops = sorted({path.split(".")[0] for path, effect, live, _ in keys() if live and effect == "key"})
    definitions = {"service", "services", "check", "checks"}
    return ", ".join(f"`{top}`" for top in tops if top not in definitions) + "; `service`, `services`, `check`, `checks`."


PARTS = {
    "commands": commands,
    "routes": routes,
    "compatibility": lambda _: compatibility.tables([(method, path) for _, method, path, _, _ in route_table()[0]]),
    "inert": lambda _: listed("inert"),
    "silent": lambda _: listed("silent"),
    "renamed": renamed,
    "reloadable": reloadable,
}
PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end generated -->)", re.S)


def undocumented(text):
    """Keys with an effect that the page by hand does not name."""
    text = PART.sub("", text)
    # The four parts of `tls` take the same keys.
    shown = lambda path: re.sub(r"^tls\.\w+\.", "tls.*.", path)
    return [path for path, effect, _, _ in keys() if effect == "key" and f"`{shown(path)}`" not in text]


def main():
    check = "--check" in sys.argv
    weft = sys.argv[-1]
    stale = []
    for page in sorted(REFERENCE.glob("*.md")):
        old = page.read_text()
        new = PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]](weft)}\n\n{m[4]}", old)
        if new != old and not check:
            page.write_text(new)
        elif new != old:
            stale.append(f"{page.name} is stale: run tests/docs/generate.py WEFT")
        if page.name == "configuration.md":
            stale += [f"configuration.md does not describe `{path}`" for path in undocumented(new)]
    print("\n      ".join(["FAIL  generated reference", *stale]) if stale else "ok    generated reference")
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
