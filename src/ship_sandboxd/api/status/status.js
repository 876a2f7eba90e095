// The status page of a sandbox host. It speaks the same REST API as every other client, with the key that a person gives.

const POLL_MS = 3000;
const LOG_MS = 2000;
const PAGE = 100;
const MAX_PAGES = 5;
const RESUME_S = 300;
const STORED = "sandbox-host-key";
const MIB = 1024 * 1024;

const $ = (id) => document.getElementById(id);
const rows = new Map();
let timer = 0;

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: {
      "X-API-KEY": sessionStorage.getItem(STORED) ?? "",
      ...(body ? { "Content-Type": "application/json" } : {}),
    },
    body: body ? JSON.stringify(body) : undefined,
    cache: "no-store",
  });
  const text = await answer.text();
  const value = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Refused(answer.status, value?.message ?? `the host answered ${answer.status}`);
  return { value, next: answer.headers.get("x-next-token") };
}

async function sandboxes() {
  const found = [];
  let next = "";
  for (let page = 0; page < MAX_PAGES; page++) {
    const query = new URLSearchParams({ state: "running,paused", limit: PAGE, ...(next && { nextToken: next }) });
    const answer = await call("GET", `/v2/sandboxes?${query}`);
    found.push(answer.value);
    next = answer.next;
    if (!next) break;
  }
  return found.filter((page) => page.length);
}

async function metricsOf(pages) {
  const asked = pages.map((page) => call("GET", `/sandboxes/metrics?sandbox_ids=${page.map((one) => one.sandboxID)}`));
  return Object.assign({}, ...(await Promise.all(asked)).map((answer) => answer.value.sandboxes));
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

function size(bytes) {
  return bytes < 1024 * MIB ? `${Math.round(bytes / MIB)} MiB` : `${(bytes / 1024 / MIB).toFixed(1)} GiB`;
}

class Meter {
  constructor(name) {
    this.root = element("div", "meter");
    this.value = element("span");
    this.of = element("em");
    const line = element("span");
    line.append(this.value, this.of);
    this.bar = element("meter");
    Object.assign(this.bar, { min: 0, max: 1, low: 0.75, high: 0.92, optimum: 0 });
    this.bar.setAttribute("aria-label", name);
    this.root.append(line, this.bar);
  }

  show(share, value, of) {
    this.bar.value = share;
    this.value.textContent = value;
    this.of.textContent = of;
  }
}

class Row {
  constructor(sandbox) {
    this.path = `/sandboxes/${encodeURIComponent(sandbox.sandboxID)}`;
    this.root = element("li");
    const row = element("div", "row");
    const who = element("div", "who");
    this.sub = element("div", "sub");
    who.append(element("div", "id", sandbox.sandboxID), this.sub);
    this.pill = element("span", "pill");
    const when = element("div", "when");
    this.age = element("div");
    this.end = element("div", "sub");
    when.append(this.age, this.end);
    this.cpu = new Meter("Processors");
    this.memory = new Meter("Memory");
    const does = element("div", "does");
    this.logs = this.button("Log", () => this.toggleLog());
    this.logs.setAttribute("aria-expanded", "false");
    this.pause = this.button("Pause", () => this.pauseOrResume());
    this.kill = this.button("Kill", () => this.killWhenSure());
    does.append(this.logs, this.pause, this.kill);
    row.append(who, this.pill, when, this.cpu.root, this.memory.root, does);
    this.root.append(row);
  }

  button(text, act) {
    const made = element("button", "quiet", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  update(sandbox, metric) {
    this.sandbox = sandbox;
    const running = sandbox.state === "running";
    const metadata = Object.entries(sandbox.metadata ?? {}).map(([key, value]) => `${key}=${value}`);
    const name = sandbox.alias || sandbox.templateID;
    this.sub.textContent = [name, ...metadata].join(" · ");
    this.sub.title = this.sub.textContent;
    this.text = [sandbox.sandboxID, sandbox.templateID, name, ...metadata].join(" ").toLowerCase();
    this.pill.className = `pill ${sandbox.state}`;
    this.pill.textContent = sandbox.state;
    this.age.textContent = duration(Date.now() - Date.parse(sandbox.startedAt));
    this.end.textContent = running ? `${duration(Date.parse(sandbox.endAt) - Date.now())} left` : `keeps ${sandbox.memoryKept ? "memory and files" : "its files"}`;
    this.pause.textContent = running ? "Pause" : "Resume";
    const cores = `${sandbox.cpuCount} ${sandbox.cpuCount === 1 ? "core" : "cores"}`;
    if (metric && running) {
      this.cpu.show(metric.cpuUsedPct / 100, `${metric.cpuUsedPct.toFixed(1)} %`, cores);
      this.memory.show(metric.memUsed / metric.memTotal, size(metric.memUsed), size(metric.memTotal));
    } else {
      this.cpu.show(0, "–", cores);
      this.memory.show(0, "–", size(sandbox.memoryMB * MIB));
    }
  }

  async act(method, path, body) {
    this.root.querySelectorAll(".does button").forEach((button) => (button.disabled = true));
    try {
      await call(method, path, body);
      trouble("");
    } catch (error) {
      failed(error);
    }
    this.root.querySelectorAll(".does button").forEach((button) => (button.disabled = false));
    poll();
  }

  pauseOrResume() {
    if (this.sandbox.state === "running") return this.act("POST", `${this.path}/pause`);
    return this.act("POST", `/v2${this.path}/connect`, { timeout: RESUME_S });
  }

  killWhenSure() {
    if (this.kill.classList.contains("sure")) return this.act("DELETE", this.path);
    const calm = () => {
      this.kill.classList.remove("sure");
      this.kill.textContent = "Kill";
    };
    this.kill.classList.add("sure");
    this.kill.textContent = "Really kill";
    setTimeout(calm, 4000);
  }

  toggleLog() {
    const open = !this.log;
    this.logs.setAttribute("aria-expanded", String(open));
    this.logs.textContent = open ? "Hide log" : "Log";
    if (!open) {
      clearInterval(this.tail);
      this.log.remove();
      this.log = null;
      return;
    }
    this.log = element("div", "log");
    this.log.tabIndex = 0;
    this.log.setAttribute("aria-label", "Log");
    this.root.append(this.log);
    this.readLog();
    this.tail = setInterval(() => document.hidden || this.readLog(), LOG_MS);
  }

  async readLog() {
    let answer;
    try {
      answer = await call("GET", `/v2${this.path}/logs?direction=backward&limit=200`);
    } catch (error) {
      return failed(error);
    }
    const log = this.log;
    if (!log) return;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.replaceChildren(...answer.value.logs.reverse().map(logLine));
    if (!log.childElementCount) log.textContent = "Nothing yet.";
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  remove() {
    clearInterval(this.tail);
    this.root.remove();
  }
}

function logLine(entry) {
  const line = element("div", entry.level);
  const time = element("time", "", new Date(entry.timestamp).toLocaleTimeString([], { hour12: false }));
  time.dateTime = entry.timestamp;
  const { logger, ...facts } = entry.fields;
  const message = element("span", "", entry.message);
  const shown = Object.entries(facts).map(([key, value]) => `${key}=${value}`);
  if (shown.length) message.append(" ", element("em", "", shown.join(" ")));
  line.append(time, element("b", "", entry.level), message);
  return line;
}

function show(pages, metrics) {
  const found = pages.flat();
  const known = new Set(found.map((sandbox) => sandbox.sandboxID));
  for (const [id, row] of rows) {
    if (known.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  found.forEach((sandbox, index) => {
    let row = rows.get(sandbox.sandboxID);
    if (!row) rows.set(sandbox.sandboxID, (row = new Row(sandbox)));
    row.update(sandbox, metrics[sandbox.sandboxID]);
    if ($("list").children[index] !== row.root) $("list").insertBefore(row.root, $("list").children[index] ?? null);
  });
  filter();
  const running = found.filter((sandbox) => sandbox.state === "running");
  const used = running.map((sandbox) => [sandbox, metrics[sandbox.sandboxID]]).filter(([, metric]) => metric);
  const cores = used.reduce((sum, [sandbox, metric]) => sum + (sandbox.cpuCount * metric.cpuUsedPct) / 100, 0);
  $("running").textContent = running.length;
  $("paused").textContent = found.length - running.length;
  $("cpu").textContent = `${cores.toFixed(1)} cores`;
  $("memory").textContent = size(used.reduce((sum, [, metric]) => sum + metric.memUsed, 0));
  $("none").hidden = found.length > 0;
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const row of rows.values()) row.root.hidden = !row.text.includes(wanted);
}

function trouble(message) {
  $("trouble").textContent = message;
  $("trouble").hidden = !message;
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return askForKey("This key is not known here.");
  trouble(error instanceof Refused ? error.message : "The host does not answer. This page tries again by itself.");
}

async function poll() {
  clearTimeout(timer);
  if (!sessionStorage.getItem(STORED)) return;
  if (!document.hidden) {
    try {
      const pages = await sandboxes();
      show(pages, await metricsOf(pages));
      $("live").classList.remove("lost");
      $("live").lastElementChild.textContent = "live";
      if ($("trouble").textContent.startsWith("The host does not answer")) trouble("");
    } catch (error) {
      $("live").classList.add("lost");
      $("live").lastElementChild.textContent = "no contact";
      failed(error);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

function askForKey(message = "") {
  sessionStorage.removeItem(STORED);
  clearTimeout(timer);
  for (const row of rows.values()) row.remove();
  rows.clear();
  trouble("");
  $("wrong").textContent = message;
  $("view").hidden = $("leave").hidden = $("live").hidden = true;
  $("enter").hidden = false;
  $("key").focus();
}

async function open() {
  $("enter").hidden = true;
  $("view").hidden = $("leave").hidden = $("live").hidden = false;
  poll();
  const about = (await (await fetch("/health")).json()) ?? {};
  const limits = Object.entries(about.limits ?? {}).filter(([, held]) => held === true);
  const facts = [about.backend, about.isolation, limits.length && `limits of ${limits.map(([name]) => name).join(", ")}`];
  $("facts").textContent = facts.filter(Boolean).join(" · ");
}

$("sample").textContent = `pip install e2b
export E2B_API_URL=${location.origin} E2B_SANDBOX_URL=${location.origin} E2B_API_KEY=…
python3 -c 'from e2b import Sandbox; print(Sandbox.create().sandbox_id)'`;
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED, $("key").value.trim());
  $("key").value = "";
  open();
});
$("leave").addEventListener("click", () => askForKey());
$("filter").addEventListener("input", filter);
document.addEventListener("visibilitychange", () => document.hidden || poll());
sessionStorage.getItem(STORED) ? open() : askForKey();
