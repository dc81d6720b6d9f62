// Answers in words: states, times, what selfheal is doing, and records as sentences.

import { h, s } from "./dom.js";

export const STATES = ["failed", "recovering", "unhealthy", "degraded", "unknown", "healthy", "disabled"];
export const DOWN = new Set(["failed", "recovering"]);
export const TROUBLE = new Set(["failed", "recovering", "unhealthy", "degraded"]);

const SHAPES = {
  healthy: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zm-1 9.3L4.2 8l1.1-1.1L7 8.6l3.7-3.7L11.8 6z",
  degraded: "M8 1.5 15.2 14.5H.8zM7.2 6v4.2h1.6V6zm0 5.2v1.6h1.6v-1.6z",
  unhealthy: "M8 .8 15.2 8 8 15.2.8 8zM7.2 4.5v4.3h1.6V4.5zm0 5.3v1.6h1.6V9.8z",
  failed: "M2 2h12v12H2zm3.6 2.5L4.5 5.6 6.9 8l-2.4 2.4 1.1 1.1L8 9.1l2.4 2.4 1.1-1.1L9.1 8l2.4-2.4-1.1-1.1L8 6.9z",
  recovering: "M8 2.2a5.8 5.8 0 0 1 4.9 2.7V2.5h1.6v5.2H9.3V6.1h2.5A4.2 4.2 0 0 0 3.9 8.6H2.2A5.8 5.8 0 0 1 8 2.2zm0 11.6a5.8 5.8 0 0 1-4.9-2.7v2.4H1.5V8.3h5.2v1.6H4.2a4.2 4.2 0 0 0 7.9-2.5h1.7A5.8 5.8 0 0 1 8 13.8z",
  unknown: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zm0 1.7a4.8 4.8 0 1 1 0 9.6 4.8 4.8 0 0 1 0-9.6z",
  disabled: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM4.5 7.2h7v1.6h-7z",
};

/** The shape of a state: it is never told by its colour alone. */
export const shape = (state) => s("path", { "fill-rule": "evenodd", d: SHAPES[state] ?? SHAPES.unknown });

export const icon = (state) => s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, shape(state));

/** A state as a shape, a colour and a word. */
export const badge = (state, word = state) => h("span", { class: `badge is-${state}` }, icon(state), word);

export const count = (number, thing) => {
  if (number === 1) return `1 ${thing}`;
  return `${number} ${/[^aeiou]y$/.test(thing) ? `${thing.slice(0, -1)}ies` : `${thing}s`}`;
};

// -- times ------------------------------------------------------------------------------------------------------------

let skew = 0; // what the server's clock is ahead of ours, in ms

/** Set our clock by the server's. */
export const setClock = (time) => {
  const ahead = Date.parse(time) - Date.now();
  if (Math.abs(ahead - skew) > 1500) skew = ahead;
};
export const now = () => Date.now() + skew;

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];

/** Seconds in at most two units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.001) return "<1 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  let left = Math.round(seconds);
  const parts = [];
  for (const [size, name] of UNITS) {
    if (left >= size) parts.push(`${Math.floor(left / size)} ${name}`);
    left %= size;
  }
  if (left) parts.push(`${left} s`);
  return parts.slice(0, 2).join(" ");
}

/** Seconds as a person says them who looks at a clock: from two minutes on without what ticks. */
const about = (seconds) => span(seconds < 120 ? Math.floor(seconds) : seconds < 86400 ? Math.floor(seconds / 60) * 60 : Math.floor(seconds / 3600) * 3600);

/** A detail of ours with its window said as a person says it: "3 in 3600 s" is 3 in 1 h. */
export const timed = (detail) => detail.replace(/\b(\d+) s$/, (_, seconds) => span(Number(seconds)));

const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
export const second = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

function local(iso, form) {
  const moment = new Date(iso);
  const today = new Date(now());
  if (moment.toDateString() === today.toDateString()) return form.format(moment);
  return `${(moment.getFullYear() === today.getFullYear() ? day : date).format(moment)}, ${form.format(moment)}`;
}

/** The hour at which a day of UTC begins by the reader's clock; "" where that is midnight. */
export function dayBegins(date) {
  const begin = hour.format(new Date(`${date}T00:00:00Z`));
  return begin === "00:00" ? "" : begin;
}

/** A day of UTC, as the reader's clock has it. */
export function dayText(date) {
  const begin = `${date}T00:00:00Z`;
  const end = new Date(Date.parse(begin) + 86400000).toISOString();
  return dayBegins(date) ? `${local(begin, hour)} to ${local(end, hour)}` : date;
}

const utc = (iso) => `${iso.slice(0, 19).replace("T", " ")} UTC`;

/** A time by the reader's clock, with UTC beside it. */
export const clock = (iso, fine = false) => iso && h("time", { datetime: iso, title: utc(iso) }, local(iso, fine ? second : hour));

export const agoText = (iso) => {
  const seconds = (now() - Date.parse(iso)) / 1000;
  return seconds < 1.5 ? "just now" : `${about(seconds)} ago`;
};
export const leftText = (iso) => {
  const seconds = (Date.parse(iso) - now()) / 1000;
  return seconds < 1 ? "now" : `in ${about(seconds)}`;
};

export const forText = (iso) => about(Math.max(1, (now() - Date.parse(iso)) / 1000));

/** How long ago, kept right by the page's own tick; how long until; and for how long. */
export const ago = (iso) => iso && h("time", { class: "age", datetime: iso, title: utc(iso), "data-ago": iso }, agoText(iso));
export const lasting = (iso) => iso && h("time", { class: "age", datetime: iso, title: `since ${utc(iso)}`, "data-for": iso }, forText(iso));
export const left = (iso) => iso && h("time", { class: "age", datetime: iso, title: utc(iso), "data-left": iso }, leftText(iso));

// -- what is being done -----------------------------------------------------------------------------------------------

const DOING = {
  restart: "restarting", reconnect: "reconnecting", failover: "failing over", scale_up: "scaling up",
  clear_cache: "clearing its cache", manual_intervention: "waiting for a person", start: "starting",
};

const HELD = {
  storm: "held back, because too much failed at once",
  canary: "held back, because the network of this host is in doubt",
  doubt: "held back, because selfheal cannot trust what it sees",
  flapping: "held back, because it failed too often: a person has to look",
  paused: "nothing is done, because it is paused",
  maintenance: "nothing is done during maintenance",
  observe: "only watched: nothing is ever done",
  budget: "held back, because enough was repaired for now",
  slot: "waiting for its turn: enough repairs run at once",
  journal: "held back, because decisions cannot be stored",
  workload: "held back, because it is not certain what runs",
  cause: "held back, because no step of its ladder cures this",
  cooldown: "waiting, because this step ran a moment ago",
};

const DEGRADED = { slow: "serving, but slower than it should be", unsteady: "serving, but not steadily" };

/** Since when it is down: each attempt begins a state, but not what people call the outage. */
export function downSince(line, { incidents }, more) {
  if (!DOWN.has(line.state)) return line.since;
  const own = line.root === line.service ? incidents.find((one) => one.incident === line.incident) : null;
  return (own ?? more?.alerts.find((one) => one.rule === "failed"))?.since ?? line.since;
}

/** What selfheal is doing about a service, in a few words. `more` is the long answer about it, if there is one. */
export function plan(line, more) {
  switch (line.state) {
    case "disabled": return "switched off, not watched";
    case "unknown": return "no result yet";
    case "degraded": return DEGRADED[line.reason] ?? "serving, with a warning";
    case "unhealthy": return "failing, not confirmed yet: checking again";
    case "recovering": return repairing(line, more);
    case "failed": return waiting(line, more);
  }
  if (!line.watched) return "not watched any more";
  return line.probation ? "well again, and watched closely for a while" : "";
}

function repairing(line, more) {
  const busy = line.under_way;
  if (!busy) return `attempt ${line.attempt}: repairing`;
  const place = busy.steps > 1 ? `, step ${busy.step + 1} of ${busy.steps}` : "";
  const again = line.attempt > 1 ? `, attempt ${line.attempt}${more ? ` of ${more.policy.max_retries}` : ""}` : "";
  if (busy.phase === "acting") return [DOING[busy.action] ?? `running ${busy.action}`, " for ", lasting(busy.since), place, again];
  return `${busy.action} done, checking whether it helped${place}${again}`;
}

function waiting(line, more) {
  const [kind, what] = line.reason.split(/:(.*)/s);
  const due = more?.condition.not_before;
  const later = due && Date.parse(due) > now() ? due : null;
  if (kind === "waiting-for") return ["waiting for ", link(what), line.detail && line.detail !== "not well" ? `: ${line.detail}` : ""];
  if (what === "approval") return line.detail === "manual_intervention" ? "a person has to see to it" : `waiting for a person to approve: ${line.detail || "the next step"}`;
  if (kind === "held") return [HELD[what] ?? `held back: ${what}`, more?.until ? [", until ", clock(more.until)] : ""];
  if (kind === "escalated") return [`${line.detail ? `${line.detail}, it` : "it"} did not help: a person is needed`, later ? ["; one more try ", left(later)] : ""];
  if (kind === "backoff") {
    const vain = line.attempt ? `attempt ${line.attempt} did not help; ` : "";
    if (!more) return `${vain}trying again soon`;
    return later ? [vain, "trying again ", left(later)] : `${vain}about to try again`;
  }
  return "about to be repaired";
}

/** Why a hold on the whole fleet is there. */
export const HOLDS = {
  storm: "Too much failed at once, so nothing is repaired until the share of failing services falls",
  canary: "No canary answers: the trouble may be the network of this host, so nothing is repaired",
  doubt: "selfheal woke late or cannot run its checks, so it does not trust what it sees",
  fleet: "A change that drops many services waits for confirmation",
  journal: "Decisions cannot be stored, so nothing is repaired",
};

export const link = (service) => h("a", { href: `#/service/${encodeURIComponent(service)}` }, service);

// -- records ----------------------------------------------------------------------------------------------------------

const because = (record) => (record.reason.detail ? `: ${record.reason.detail}` : "");

/** A state that goes on, and why it does. */
function stayed({ to, reason }) {
  const [kind, what] = reason.code.split(/:(.*)/s);
  if (to === "recovering") return reason.detail === "done" ? "checking whether it helped" : `recovering: ${reason.detail || reason.code}`;
  if (kind === "backoff") return "waits before the next attempt";
  if (kind === "escalated") return "all attempts are used: a person is needed";
  if (kind === "waiting-for") return `waits for ${what}`;
  if (what === "approval") return "waits for a person";
  if (kind === "held") return HELD[what] ?? `held back: ${what}`;
  return `${to}${reason.code !== to ? `, ${reason.code}` : ""}${reason.detail === "held" || !reason.detail ? "" : `: ${reason.detail}`}`;
}

const SAID = {
  moved: (r) => (r.from === r.to ? stayed(r) : `${r.from} → ${r.to}${r.reason.code !== r.to ? `, ${r.reason.code}` : ""}${r.reason.detail === "held" ? "" : because(r)}`),
  intended: (r) => `${r.action} begins, step ${r.step + 1} of attempt ${r.attempt}${r.actor ? `, for ${r.actor}` : ""}`,
  ended: (r) => `${r.action ?? "the action"} ended: ${r.reason.code}${r.duration_seconds ? ` after ${span(r.duration_seconds)}` : ""}${because(r)}`,
  answered: (r) => `${r.actor} asked for ${r.action} (“${r.asked_because}”): ${r.accepted ? "" : "refused: "}${r.reason.detail || r.reason.code}`,
  incident_opened: (r) => `incident ${r.incident} ${r.reason.code}`,
  incident_merged: (r) => `incident ${r.incident} ${r.reason.detail}`,
  incident_closed: (r) => `incident ${r.incident} closed after ${span(r.duration_seconds)}${because(r)}`,
  alert_changed: (r) => `${r.open ? (r.acknowledged_by ? `alert acknowledged by ${r.acknowledged_by}` : "alert") : "alert resolved"}, ${r.severity}${r.open ? because(r) : ` (${r.rule})`}`,
  suppression_changed: (r) => `${r.reason.code} ${r.on ? "begins" : "ends"} for ${r.everything ? "everything" : r.services.join(", ")}${because(r)}`,
  hold_changed: (r) => `hold ${r.hold} ${r.on ? "begins" : "ends"}${because(r)}`,
  resumed: (r) => (r.away_seconds ? `selfheal runs again, after ${span(r.away_seconds)}` : "selfheal begins"),
  fleet_set: (r) => `the fleet has ${count(r.services.length, "service")}`,
  delivered: (r) => `told ${r.notifier ?? "a notifier"}${because(r)}`,
};

/** A record in words. */
export const sentence = (record) => SAID[record.kind]?.(record) ?? `${record.kind.replaceAll("_", " ")}${because(record)}`;

/** Which state a record is coloured by. */
export function toneOf(record) {
  if (record.kind === "moved") return record.to;
  if (record.kind === "intended" || record.kind === "ended") return "recovering";
  if (record.kind === "alert_changed") return record.open ? "unhealthy" : "healthy";
  if (record.kind === "incident_opened") return "failed";
  if (record.kind === "incident_closed") return "healthy";
  return "disabled";
}
