"use strict";
// Asks for the numbers every two seconds and shows totals and rates. The token stays in memory.
const $ = (id) => document.getElementById(id);
const columns = [
  ["shard", (s) => s.shard],
  ["connections", (s) => number(s.connections)],
  ["sessions", (s) => number(s.sessions)],
  ["rooms", (s) => number(s.rooms_loaded)],
  ["commands/s", (s, r) => number(r("frames_in"))],
  ["messages/s", (s, r) => number(r("messages_submitted"))],
  ["deliveries/s", (s, r) => number(r("deliveries"))],
  ["sends/s", (s, r) => number(r("sends"))],
  ["outbox", (s) => bytes(s.outbox_bytes)],
  ["slow closed", (s) => number(s.slow_closed)],
  ["turn p99 µs", (s) => number(s.turn_time.p99_us)],
  ["wake p99 µs", (s) => number(s.wake_latency.p99_us)],
];
let token = "", last = null, timer = 0;

function number(n) { return Number.isFinite(n) ? Math.round(n).toLocaleString("en") : "–"; }
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${at && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}
function say(text, bad) { $("state").textContent = text; $("state").className = bad ? "bad" : ""; }
function cell(kind, text) { const element = document.createElement(kind); element.textContent = text; return element; }
function sum(shards, key) { return shards.reduce((all, s) => all + (s.answered ? s[key] : 0), 0); }

function show(now) {
  const seconds = last ? (now.uptime_ms - last.uptime_ms) / 1000 : 0;
  const before = (shard) => last && last.shards.find((s) => s.shard === shard && s.answered);
  const rate = (s) => (key) => { const b = before(s.shard); return b && seconds > 0 ? (s[key] - b[key]) / seconds : NaN; };
  const answered = now.shards.filter((s) => s.answered);
  const total = (key) => answered.reduce((all, s) => all + rate(s)(key), 0);
  const commits = last && seconds > 0 ? (now.store.batches - last.store.batches) / seconds : NaN;
  const tiles = [
    ["connections", number(sum(now.shards, "connections"))],
    ["messages/s", number(total("messages_submitted"))],
    ["deliveries/s", number(total("deliveries"))],
    ["commits/s", number(commits)],
    ["commit p99", `${number(now.store.commit_time.p99_us)} µs`],
    ["log position", number(now.store.position)],
    ["memory", bytes(now.process.resident_bytes)],
    ["up", `${number(now.uptime_ms / 1000)} s`],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => {
    const tile = document.createElement("div");
    tile.append(cell("dt", name), cell("dd", value));
    return tile;
  }));
  $("heads").replaceChildren(...columns.map(([name]) => cell("th", name)));
  $("rows").replaceChildren(...now.shards.map((s) => {
    const row = document.createElement("tr");
    row.className = s.answered ? "" : "down";
    row.append(...columns.map(([, value], at) => cell("td", s.answered ? value(s, rate(s)) : at ? "–" : `${s.shard} (no answer)`)));
    return row;
  }));
  const merged = (key) => {
    const counts = {};
    for (const s of answered) for (const [name, n] of Object.entries(s[key])) counts[name] = (counts[name] || 0) + n;
    const lines = Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, n]) => `${name}  ${number(n)}`);
    return `${key}\n${lines.join("\n") || "none"}`;
  };
  $("tables").replaceChildren(...["commands", "errors", "closes"].map((key) => cell("pre", merged(key))));
  $("live").hidden = false;
  say(now.draining ? "draining" : now.store.degraded ? "store degraded" : now.ready ? "ready" : "not ready", !now.ready || now.store.degraded);
  last = now;
}

async function poll() {
  clearTimeout(timer);
  try {
    const response = await fetch("admin/stats", { headers: { Authorization: `Bearer ${token}` } });
    if (response.status === 401) { say("the token is wrong", true); return; }
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
  } catch (error) {
    say(`no numbers: ${error.message}`, true);
  }
  timer = setTimeout(poll, 2000);
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  last = null;
  poll();
});
