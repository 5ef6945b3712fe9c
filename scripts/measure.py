"""What the benchmark scripts share: the works, one run of a server and the tool, medians with their spread."""

import contextlib
import json
import os
import pathlib
import re
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BIN = TARGET / "release"
ANTIPHON = str(BIN / "antiphon")

BODY = ["--body-bytes", "128", "--warmup", "2"]
# name: (what it is, arguments of antiphon-load)
WORKS = {
    "chat": ("200 rooms of 10, 4 in flight each",
             ["chat", "--clients", "2000", "--rooms-of", "10", "--in-flight", "4", "--duration", "8", *BODY]),
    "fanout100": ("one room of 100, 8 in flight", ["fanout", "--clients", "100", "--in-flight", "8", "--duration", "6", *BODY]),
    "fanout1000": ("one room of 1,000, 8 in flight",
                   ["fanout", "--clients", "1000", "--in-flight", "8", "--duration", "6", *BODY]),
    "single100": ("one room of 100, 1 in flight", ["fanout", "--clients", "100", "--in-flight", "1", "--duration", "6", *BODY]),
    "rate2000": ("200 rooms of 10 at 2,000 messages/s",
                 ["chat", "--clients", "2000", "--rooms-of", "10", "--rate", "2000", "--duration", "8", *BODY]),
    "hot2000": ("one room of 100 at 2,000 messages/s", ["fanout", "--clients", "100", "--rate", "2000", "--duration", "8", *BODY]),
    "hot100": ("one room of 100 at 100 messages/s", ["fanout", "--clients", "100", "--rate", "100", "--duration", "8", *BODY]),
    "connect": ("5,000 connect, authenticate and join rooms of 10", ["connect", "--clients", "5000", "--rooms-of", "10"]),
    "echo": ("echo, 100 users alone in their rooms", ["echo", "--clients", "100", "--duration", "6", *BODY]),
}


def antiphon(data, shards=1, server=ANTIPHON, extra=()):
    """The command that starts Antiphon on an empty folder, on free ports."""
    return [str(server), "serve", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--data-dir", f"{data}/db",
            "--shards", str(shards), "--rate-limits", "off", *extra]


@contextlib.contextmanager
def folder():
    """An empty folder for a run, gone after it. On the disk of the build: where the system keeps temporary files may be memory."""
    TARGET.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(tempfile.mkdtemp(prefix="antiphon-bench-", dir=TARGET))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment():
    """A secret that server and tool share; no other setting comes from outside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    return clean | {"ANTIPHON_JWT_SECRET": secrets.token_hex(32)}


def allow_many_files():
    """Thousands of connections, where a shell starts with 1,024 descriptors: what is started here inherits this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def serving(command, env, data, cores="0"):
    """A server, Antiphon or a peer, until the end of the block: its address, its control address (none: a peer), its process's number.
    It runs in the run's folder, so that it reads no `config.toml` of wherever this was started."""
    program, *arguments = command
    if os.sep in program:
        program = os.path.abspath(program)
    # `taskset` becomes the server: its process is the one that is measured.
    process = subprocess.Popen(["taskset", "-c", cores, program, *arguments], env=env, cwd=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = control = None
        for line in process.stdout:
            if found := re.match(r"\s+listen\s+(ws://[^/]+)", line):
                url = found[1]
            if found := re.match(r"listening (\d+)", line):
                url = f"ws://127.0.0.1:{found[1]}"
                break
            if found := re.match(r"\s+control\s+(\S+?)/?$", line):
                control = found[1]
                break
        if url is None:
            sys.exit(f"{' '.join(command)} did not start")
        yield url, control, process.pid
    finally:
        process.terminate()
        process.wait(timeout=120)


def load(arguments, env, url, pid, data, cores="1", polling=True):
    """One run of the tool: its report. It polls unless told not to: waking it costs the server a third of a send
    on a virtual machine, and says nothing of the server."""
    report = data / "report.json"
    tool = subprocess.run(
        ["taskset", "-c", cores, str(BIN / "antiphon-load"), *arguments, *(["--busy-poll"] if polling else []), "--url", url,
         "--server-pid", str(pid), "--json", str(report), "--progress", "false"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)
    if tool.returncode != 0:
        sys.exit(f"antiphon-load {' '.join(arguments)} ended with {tool.returncode}\n{tool.stdout[-2000:]}{tool.stderr[-2000:]}")
    return json.loads(report.read_text())


def figures(report):
    """The figures of one run, by name; `None` where the work has no such figure."""
    traffic, server = report["traffic"], report["server"]
    window = traffic["windows"][0] if traffic and traffic["windows"] else None
    return {
        "cost": server["cpu_s_per_million_deliveries"],
        "rate": traffic and traffic["acked_per_second"],
        "ack p50": window and window["ack"]["p50_ms"],
        "ack p99": window and window["ack"]["p99_ms"],
        "p50": window and window["delivery"]["p50_ms"],
        "p99": window and window["delivery"]["p99_ms"],
        "connect": server["connect_cpu_us_each"],
        "rss": server["rss_per_connection"],
        "limited": report["tool"]["was_the_limit"],
    }


#: What a table calls a figure, and its digits. What a connection costs includes its join in the work `connect` only: in
#: the others rooms are made, and entered, after everybody is connected.
TITLES = {
    "cost": ("CPU s/M deliveries", 2),
    "rate": ("messages/s", 0),
    "ack p50": ("ack p50 ms", 2),
    "ack p99": ("ack p99 ms", 2),
    "p50": ("delivery p50 ms", 2),
    "p99": ("delivery p99 ms", 2),
    "connect": ("CPU µs a connection", 0),
    "rss": ("RSS B/connection", 0),
}


def spread(values, digits=2):
    """Median, and the lowest and highest in brackets; a dash when there is none."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    middle, low, high = (f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


#: Figures that say something of the tool where it was the limit.
OF_THE_PACE = {"rate", "ack p50", "ack p99", "p50", "p99"}
MARK = "†"


def cell(runs, name):
    """A figure of some runs for a table, marked where the tool set the pace in any of them."""
    text = spread([run[name] for run in runs], TITLES[name][1])
    has_value = any(run[name] is not None for run in runs)
    return text + MARK if has_value and name in OF_THE_PACE and any(run["limited"] for run in runs) else text


def footnote(is_marked):
    """What the mark means, under tables in which it stands."""
    if is_marked:
        print(f"\n{MARK} in some run the tool, not the server, set the pace: the server can do more; its cost per delivery still holds.")


def ratios(runs, ours, name):
    """Each run to the one of ours beside it in time: what the machine did to both falls out."""
    pairs = [theirs[name] / mine[name] for theirs, mine in zip(runs, ours) if mine[name]]
    return f"{spread(pairs)}×" if pairs else "–"


def table(head, rows):
    """A table as Markdown. True when a cell of it is marked."""
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    return any(MARK in str(value) for row in rows for value in row)
