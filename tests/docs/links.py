#!/usr/bin/env python3
"""Checks that every relative link and heading of the guide is there, and that every page is in SUMMARY.md."""

import pathlib
import re
import sys

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def anchors(path):
    """The ids mdBook gives to a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.M):
        text = re.sub(r"[^\w\- ]", "", heading.lower()).strip()
        found.add(re.sub(r"\s", "-", text))
    return found


def main():
    src = pathlib.Path(sys.argv[1]).resolve()
    problems = []
    listed = {src / "SUMMARY.md"}
    for page in sorted(src.rglob("*.md")):
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            other = (page.parent / file).resolve() if file else page
            if not other.exists():
                problems.append(f"{page.relative_to(src)}: {target}: no such file")
            elif anchor and anchor not in anchors(other):
                problems.append(f"{page.relative_to(src)}: {target}: no such heading")
            if page.name == "SUMMARY.md":
                listed.add(other)
    problems += [f"{page.relative_to(src)}: not in SUMMARY.md" for page in src.rglob("*.md") if page not in listed]
    print("\n".join(problems) and "FAIL  links\n      " + "\n      ".join(problems) or "ok    links")
    sys.exit(1 if problems else 0)


main()
