#!/usr/bin/env python3
"""Runs the ```sh blocks of the guide, page by page, and compares what they print with what the page shows.

A page's blocks run in one shell with errexit, in a fresh directory, with nothing of the user's environment. Where the
kernel allows it every page has a network and process namespace of its own, so that 127.0.0.1:8500 is free and nothing
outlives the page; elsewhere pages run one after the other on the host's loopback.

    ```sh            runs; a block that ends other than with 0 fails the page
    <!-- sh ... -->  runs too, but readers do not see it: what a page needs and another page explains
    <!-- output -->  before a ```text block: what the block above prints (standard output and error). `*` stands for
                     anything within a line, a line of `...` for any lines, blanks in a row for any blanks
"""

import concurrent.futures
import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "docs" / "src"
PAGE_SECONDS_MAX = 120
PAGES_AT_ONCE = 3

PIECE = re.compile(
    r"^```sh\n(?P<sh>.*?)^```$|^<!-- sh\n(?P<hidden>.*?)^-->$|^<!-- output -->\n+```text\n(?P<out>.*?)^```$",
    re.M | re.S,
)
# What bash says about background processes that a page has ended; a terminal shows it otherwise.
NEWS_OF_JOBS = re.compile(r"^\S+/page\.sh: line \d+: +\d+ (?:Killed|Terminated|Hangup) .*\n", re.M)


def pieces(text):
    """The page as [line, script, expected output or None]."""
    found = []
    for match in PIECE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["out"] is None:
            found.append([line, match["sh"] if match["sh"] is not None else match["hidden"], None])
        elif not found or found[-1][2] is not None:
            sys.exit(f"line {line}: an output block must follow an sh block")
        else:
            found[-1][2] = match["out"]
    return found


def squeeze(line):
    return re.sub(r"[ \t]+", " ", line).strip()


def matches(expected, actual):
    """Whether the lines of `actual` are those of `expected`, with its wildcards."""
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        line = squeeze(line)
        if line == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("*")) + r"\n"
    text = "".join(squeeze(line) + "\n" for line in actual.strip("\n").split("\n"))
    return re.fullmatch(pattern, text) is not None


def isolated():
    """The command that gives a page its own network and processes, if this machine can."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []


def raise_loopback():
    """In a new network namespace loopback is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags_up_running = 0x1 | 0x40
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", flags_up_running))  # SIOCSIFFLAGS


def script(blocks, out):
    lines = ["set -e -o pipefail"]
    for number, (_, text, _) in enumerate(blocks):
        lines += [f"echo {number} >{out}/at", f"exec >{out}/{number} 2>&1", text]
    return "\n".join([*lines, f"echo end >{out}/at", ""])


def run(page, weft, wrap):
    """Runs a page: None if all is well, else what went wrong."""
    blocks = pieces(page.read_text())
    if not blocks:
        return None
    with tempfile.TemporaryDirectory(prefix="weft-docs-") as top:
        top = pathlib.Path(top)
        for name in ("out", "work", "bin"):
            (top / name).mkdir()
        (top / "bin" / "weft").symlink_to(weft)
        (top / "page.sh").write_text(script(blocks, top / "out"))
        env = {
            "PATH": f"{top / 'bin'}:{os.environ['PATH']}",
            "HOME": str(top / "work"),
            "LC_ALL": "C.UTF-8",
            "PAGE": str(page),
            "REPOSITORY": str(ROOT),
        }
        command = [*wrap, sys.executable, __file__, "--inside", str(top / "page.sh"), "lo" if wrap else "host"]
        child = subprocess.Popen(command, cwd=top / "work", env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = child.wait(PAGE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            code = f"none after {PAGE_SECONDS_MAX} s"
        finally:
            # The page's session: its own processes, and those of its namespace end with it.
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(child.pid, sign)
                    time.sleep(0.1)
                except ProcessLookupError:
                    break
            child.wait()
        return verdict(blocks, top, code)


def verdict(blocks, top, code):
    at = (top / "out" / "at").read_text().strip() if (top / "out" / "at").exists() else "0"
    for number, (line, _, expected) in enumerate(blocks):
        printed = top / "out" / str(number)
        actual = printed.read_text(errors="replace") if printed.exists() else ""
        actual = NEWS_OF_JOBS.sub("", actual)
        if at == str(number):
            logs = "".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in (top / "work").glob("*.log"))
            return f"line {line}: exit code {code}\n{actual}{logs}"
        if expected is not None and not matches(expected, actual):
            return f"line {line}: expected\n{expected}--- but it printed\n{actual}"
    return None


def inside(script_path, place):
    if place == "lo":
        raise_loopback()
    # No trap of the page's may be needed: without a namespace its process group is ended by the parent.
    sys.exit(subprocess.run(["bash", script_path]).returncode)


def timed(page, weft, wrap):
    start = time.monotonic()
    try:
        problem = run(page, weft, wrap)
    except Exception as cause:  # one broken page must not hide the others
        problem = repr(cause)
    return problem, time.monotonic() - start


def main():
    if sys.argv[1] == "--inside":
        inside(*sys.argv[2:])
    weft, words = sys.argv[1], sys.argv[2:]
    pages = [p for p in sorted(SRC.rglob("*.md")) if not words or any(w in str(p.relative_to(SRC)) for w in words)]
    wrap = isolated()
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(PAGES_AT_ONCE if wrap else 1) as pool:
        for page, (problem, seconds) in zip(pages, pool.map(lambda p: timed(p, weft, wrap), pages)):
            blocks = len(pieces(page.read_text()))
            print(f"{'FAIL' if problem else 'ok  '}  {page.relative_to(SRC)}: {blocks} blocks, {seconds:.1f} s", flush=True)
            if problem:
                failed += 1
                print("      " + problem.replace("\n", "\n      "), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
