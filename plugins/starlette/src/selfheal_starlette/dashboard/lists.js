// Incidents, alerts and the audit trail: lists of what has happened.

import { get } from "./api.js";
import { button } from "./acts.js";
import { h } from "./dom.js";
import { badge, clock, icon, lasting, link, sentence, span, toneOf } from "./words.js";

const PAGE = 50;

const further = (name) => name && h("p", {}, h("button", { type: "button", "data-page": name, "data-key": `more ${name}` }, "Show more"));
const heading = (title, about) => [h("h1", { class: "title" }, title), about ? h("p", { class: "quiet" }, about) : ""];
const empty = (text) => h("p", { class: "quiet empty" }, text);
const asked = (pages, name) => Math.min(1000, PAGE * (pages.get(name) ?? 1));

/** Records as a list in words, newest first. `own` is the service whose page it is. */
export function records(some, { more = "", own = "" } = {}) {
  if (!some.length) return empty("Nothing is recorded.");
  return [
    h("ol", { class: "records" }, some.map((one, at) => h("li", { "data-key": one.seq, class: `is-${toneOf(one)}` }, icon(toneOf(one)),
      h("span", {}, h("span", { class: at && one.time.slice(0, 19) === some[at - 1].time.slice(0, 19) ? "unseen" : "" }, clock(one.time, true))),
      h("span", {}, one.service && one.service !== own ? [h("b", {}, link(one.service)), " "] : "", sentence(one))))),
    further(more),
  ];
}

const cell = (label, ...children) => h("td", { role: "cell", "data-label": label }, children);

function table(label, columns, rows) {
  return h("table", { class: "fleet list", role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((name) => h("th", { role: "columnheader", scope: "col" }, name)))),
    h("tbody", { role: "rowgroup" }, rows));
}

const names = (some) => some.slice(0, 6).flatMap((name, at) => [at ? ", " : "", link(name)]).concat(some.length > 6 ? ` and ${some.length - 6} more` : "");

/** What was done, each once, with how often. */
function tally(actions) {
  const times = new Map();
  for (const one of actions) times.set(one, (times.get(one) ?? 0) + 1);
  const words = [...times].map(([what, often]) => `${what.split(": ").reverse().join(" of ")}${often > 1 ? ` ×${often}` : ""}`);
  return words.length > 4 ? `${words.slice(0, 4).join(", ")} and more` : words.join(", ") || "nothing";
}

export const incidents = {
  title: "Incidents",
  load: ({ pages }) => get(`incidents?limit=${asked(pages, "incidents")}`),
  draw: ({ data }) => [
    heading("Incidents", "What failed together, newest first. What hangs on a failed service is part of its incident."),
    data.incidents.length ? table("Incidents", ["Incident", "State", "Began", "Lasted", "What was done", "Services"], data.incidents.map((one) =>
      h("tr", { role: "row", "data-key": one.incident, class: one.open ? "troubled" : "" },
        h("th", { role: "rowheader", scope: "row" }, h("a", { href: `#/incident/${one.incident}` }, `${one.incident} ${one.root}`)),
        cell("State", one.open ? badge("failed", "open") : one.merged_into ? badge("disabled", `part of ${one.merged_into}`) : badge("healthy", "over")),
        cell("Began", clock(one.opened)), cell("Lasted", one.open ? lasting(one.opened) : span(one.duration_seconds)),
        cell("Done", tally(one.actions)), cell("Services", names(one.members))))) : empty("No incident so far."),
    further(data.next !== null ? "incidents" : ""),
  ],
};

export const incident = {
  title: "Incident",
  named: ({ param }) => `Incident ${param}`,
  load: ({ param }) => get(`incidents/${encodeURIComponent(param)}`),
  draw: ({ data }) => [
    h("section", { class: `verdict is-${data.open ? "failed" : "healthy"}`, "aria-label": "The incident" },
      h("h1", {}, icon(data.open ? "failed" : "healthy"), h("span", {}, `Incident ${data.incident}: ${data.root}`)),
      h("p", { class: "lead" }, data.open ? "Open since " : "Began ", clock(data.opened, true), data.open ? [", for ", lasting(data.opened), "."] : data.merged_into ? `, and is part of incident ${data.merged_into}.` : [`, over after ${span(data.duration_seconds)}`, data.because ? ` (${data.because})` : "", "."],
        data.detection_seconds === null ? "" : data.detection_seconds < 1 ? " It was confirmed at once." : ` It was confirmed ${span(data.detection_seconds)} after the first failing check.`,
        data.relapses ? ` It relapsed ${data.relapses === 1 ? "once" : `${data.relapses} times`}.` : ""),
      h("p", {}, "Services: ", names(data.members), ". Done: ", tally(data.actions), "."),
      data.open ? h("p", { class: "acts" }, button("acknowledge", { service: data.root })) : ""),
    h("h2", {}, "What happened, in order"),
    records(data.timeline),
  ],
};

const RANK = ["critical", "high", "medium", "low"];
const SEVERITY = { critical: "failed", high: "unhealthy", medium: "degraded", low: "unknown" };

export const alerts = {
  title: "Alerts",
  async load({ pages }) {
    const [open, all] = await Promise.all([get("alerts?state=open&limit=200"), get(`alerts?state=all&limit=${asked(pages, "alerts")}`)]);
    open.alerts.sort((a, b) => RANK.indexOf(a.severity) - RANK.indexOf(b.severity)); // within one severity as they come
    return { alerts: [...open.alerts, ...all.alerts.filter((one) => !one.open)], next: all.next };
  },
  draw({ data }) {
    const some = data.alerts;
    const offered = new Set(); // an acknowledgement is about a service, whatever it has alerts of
    const offer = (one) => {
      if (!one.open || !one.service || one.acknowledged_by || offered.has(one.service)) return "";
      offered.add(one.service);
      return button("acknowledge", { service: one.service });
    };
    return [
      heading("Alerts", "What people were told, or would have been. Open ones first."),
      some.length ? table("Alerts", ["About", "Severity", "What", "Opened", "State", "What you may do"], some.map((one) =>
        h("tr", { role: "row", "data-key": one.alert, class: one.open ? "troubled" : "" },
          h("th", { role: "rowheader", scope: "row" }, one.service ? link(one.service) : "the fleet"),
          cell("Severity", badge(one.open ? SEVERITY[one.severity] : "disabled", one.severity)), cell("What", one.text, h("span", { class: "why" }, one.rule)), cell("Opened", clock(one.opened)),
          cell("State", one.resolved ? ["resolved ", clock(one.resolved)] : one.acknowledged_by ? `acknowledged by ${one.acknowledged_by}` : "open"),
          cell("You", offer(one))))) : empty("No alert so far."),
      further(data.next !== null ? "alerts" : ""),
    ];
  },
};

export const audit = {
  title: "Audit",
  load: ({ pages }) => get(`audit?limit=${asked(pages, "audit")}`),
  draw: ({ data }) => [
    heading("Audit", "What people asked for, why, and what they were answered."),
    data.records.length ? table("Acts of people", ["Act", "When", "Who", "Why", "Answer"], data.records.map((one) => {
      const about = one.service ?? (one.arguments.everything ? "everything" : one.arguments.services ?? one.arguments.hold ?? "");
      return h("tr", { role: "row", "data-key": one.seq },
        h("th", { role: "rowheader", scope: "row" }, one.action, about ? [" ", one.service ? link(about) : about] : ""), cell("When", clock(one.time, true)),
        cell("Who", one.actor), cell("Why", one.asked_because),
        cell("Answer", badge(one.accepted ? "healthy" : "disabled", one.accepted ? "accepted" : "refused"), one.reason.detail ? h("span", { class: "quiet" }, ` ${one.reason.detail}`) : ""));
    })) : empty("Nobody has asked for anything so far."),
    further(data.next !== null ? "audit" : ""),
  ],
};
