// The fleet at a glance: one sentence, what needs a person, and every service with the troubled ones first.

import { get, seg } from "./api.js";
import { button, may } from "./acts.js";
import { h } from "./dom.js";
import { DOWN, HOLDS, STATES, TROUBLE, ago, badge, clock, count, icon, left, link, plan, span } from "./words.js";

const TOLD = 4; // stories under the sentence

/** What is worst first, and under each service what went down with it. */
function byTrouble(services) {
  const lines = new Map(services.map((line) => [line.service, line]));
  const keyed = services.map((line) => {
    const head = lines.get(line.root) ?? line;
    return { line, key: [DOWN.has(head.state) ? 0 : STATES.indexOf(head.state), head.service, line === head ? 0 : 1, STATES.indexOf(line.state), line.service] };
  });
  const order = (a, b) => {
    const at = a.key.findIndex((part, place) => part !== b.key[place]);
    return at < 0 ? 0 : a.key[at] < b.key[at] ? -1 : 1;
  };
  return keyed.sort(order).map(({ line }) => line);
}

/** Those that are down by themselves: what hangs on another is told with it. */
const roots = (services) => services.filter((line) => DOWN.has(line.state) && (!line.root || line.root === line.service));

/** The state of the whole fleet in one sentence. */
export function headline({ counts, services }) {
  const all = services.length;
  const down = counts.failed + counts.recovering;
  if (!all) return { tone: "unknown", text: "No service is watched yet." };
  const parts = [];
  const tell = (number, one, many) => {
    if (number) parts.push(`${number}${parts.length ? "" : ` of ${count(all, "service")}`} ${number === 1 ? one : many}`);
  };
  tell(down, "is down", "are down");
  tell(counts.unhealthy, "is failing, not confirmed yet", "are failing, not confirmed yet");
  tell(counts.degraded, "serves with a warning", "serve with a warning");
  if (parts.length) {
    const tone = counts.failed ? "failed" : down ? "recovering" : counts.unhealthy ? "unhealthy" : "degraded";
    return { tone, text: `${parts.join("; ")}.` };
  }
  const rest = [counts.unknown && `${counts.unknown} not looked at yet`, counts.disabled && `${counts.disabled} switched off`].filter(Boolean);
  if (!rest.length) return { tone: "healthy", text: all === 1 ? "The one service is healthy." : `All ${all} services are healthy.` };
  return { tone: counts.healthy ? "healthy" : "unknown", text: `${counts.healthy} of ${count(all, "service")} ${counts.healthy === 1 ? "is" : "are"} healthy; ${rest.join(", ")}.` };
}

function story(line, services, more) {
  const with_ = services.filter((one) => one.root === line.service && one.service !== line.service && one.state !== "healthy");
  const names = with_.slice(0, 3).flatMap((one, place) => [place ? ", " : "", link(one.service)]);
  const others = with_.length > 3 ? ` and ${with_.length - 3} more` : "";
  const waits = with_.some((one) => one.reason.startsWith("waiting-for:"));
  return h("li", { "data-key": line.service },
    h("span", { class: `is-${line.state}` }, icon(line.state)), " ",
    h("strong", {}, link(line.service)), ": ", plan(line, more), ", since ", clock(line.since),
    names.length ? ["; ", names, others, waits ? (with_.length === 1 ? " waits for it" : " wait for it") : " went down with it"] : "", ".",
    line.summary ? h("span", { class: "why" }, line.summary) : "");
}

function verdict(state) {
  const { status, more } = state;
  const { tone, text } = headline(status);
  let told = byTrouble(roots(status.services));
  if (!told.length) told = byTrouble(status.services.filter((line) => TROUBLE.has(line.state)));
  const rest = told.length - TOLD;
  return h("section", { class: `verdict is-${tone}`, "aria-label": "How the fleet is" },
    h("h1", {}, icon(tone), h("span", {}, text)),
    told.length ? h("ul", { class: "stories" }, told.slice(0, TOLD).map((line) => story(line, status.services, more.get(line.service)))) : "",
    rest > 0 ? h("p", { class: "quiet" }, `and ${rest} more below.`) : "");
}

function notices({ status, approvals }) {
  const found = [];
  for (const one of status.holds) {
    found.push(h("li", { class: "is-unhealthy", "data-key": `hold ${one.hold}` }, icon("unhealthy"),
      h("p", {}, h("strong", {}, `Nothing automatic happens (${one.hold}). `), `${HOLDS[one.hold] ?? one.hold}. `, h("span", { class: "quiet" }, one.evidence)),
      one.hold === "journal" ? "" : button("release", { hold: one.hold })));
  }
  for (const one of approvals) {
    found.push(h("li", { class: "is-degraded", "data-key": `approval ${one.service}` }, icon("degraded"),
      h("p", {}, h("strong", {}, link(one.service), one.action === "manual_intervention" ? " needs a person. " : ` asks whether to ${one.action ?? "go on"}. `),
        "Asked ", ago(one.asked), one.skipped_at ? ["; skipped ", left(one.skipped_at)] : "", "."),
      one.action === "manual_intervention" ? button("acknowledge", { service: one.service }) : [button("approve", { service: one.service }), button("refuse", { service: one.service })]));
  }
  for (const one of status.suppressions) {
    const about = one.everything ? "the whole fleet" : one.services.flatMap((name, place) => [place ? ", " : "", link(name)]);
    found.push(h("li", { class: "is-disabled", "data-key": one.suppression }, icon("disabled"),
      h("p", {}, h("strong", {}, `${{ paused: "Paused", maintenance: "Maintenance", observe: "Only watched", silence: "Silenced" }[one.binds] ?? one.binds}: `, about),
        one.until ? [", until ", clock(one.until)] : ", until somebody ends it", ". ", h("span", { class: "quiet" }, `${one.actor}: ${one.reason}`)),
      button("lift", { suppression: one.suppression })));
  }
  return found.length ? h("section", { "aria-label": "What is held back or waits" }, h("ul", { class: "notices" }, found)) : "";
}

function filters({ status, filter }) {
  const chips = STATES.filter((state) => status.counts[state] || filter.state === state).map((state) =>
    h("button", { type: "button", class: `chip is-${state}`, "data-key": state, "data-filter": state, "aria-pressed": String(filter.state === state) },
      icon(state), h("b", {}, status.counts[state]), ` ${state}`));
  return h("div", { class: "filters", role: "search" },
    h("label", { class: "unseen", for: "text" }, "Show only services whose name or summary has this text"),
    h("input", { id: "text", type: "search", placeholder: "Filter services", autocomplete: "off", spellcheck: "false" }),
    h("div", { class: "chips", role: "group", "aria-label": "Show only services that are" }, chips));
}

const COLUMNS = ["Service", "State", "Since", "What selfheal is doing", "Last result"];

function row(line, more, next) {
  const words = plan(line, more);
  const why = line.detail !== line.summary && !line.reason.startsWith("waiting-for:") ? line.detail : "";
  const cell = (label, ...children) => h("td", { role: "cell", "data-label": label }, children);
  return h("tr", { role: "row", "data-key": line.service, class: TROUBLE.has(line.state) ? "troubled" : "" },
    h("th", { role: "rowheader", scope: "row" }, link(line.service)),
    cell("State", badge(line.state)),
    cell("Since", clock(line.since)),
    cell("Doing", words, line.summary || why ? h("span", { class: "why" }, [line.summary, why].filter(Boolean).join(" · ")) : ""),
    cell("Last result", line.last_check ? [line.last_verdict ?? "", line.latency_seconds !== null ? h("span", { class: "took" }, `, ${span(line.latency_seconds)}, `) : ", ", ago(line.last_check)] : "none yet"),
    next ? cell("Next check", line.next_check ? left(line.next_check) : "none") : "");
}

function table({ status, filter, more }) {
  const wanted = filter.text.toLowerCase();
  const next = status.services.some((line) => "next_check" in line);
  const columns = next ? [...COLUMNS, "Next check"] : COLUMNS;
  const fits = (line) => (!filter.state || line.state === filter.state) && (!wanted || `${line.service} ${line.summary} ${line.reason}`.toLowerCase().includes(wanted));
  const lines = byTrouble(status.services).filter(fits);
  const groups = [["Needs attention", lines.filter((line) => TROUBLE.has(line.state))], ["Everything else", lines.filter((line) => !TROUBLE.has(line.state))]];
  const titled = groups.every(([, some]) => some.length);
  const bodies = groups.filter(([, some]) => some.length).map(([title, some]) =>
    h("tbody", { role: "rowgroup", "data-key": title },
      titled ? h("tr", { role: "row", class: "group", "data-key": "" }, h("th", { role: "columnheader", colspan: columns.length, scope: "rowgroup" }, `${title} (${some.length})`)) : "",
      some.map((line) => row(line, more.get(line.service), next))));
  return [
    h("table", { class: "fleet", role: "table", "aria-label": "Services" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((name) => h("th", { role: "columnheader", scope: "col" }, name)))), bodies),
    lines.length ? "" : h("p", { class: "quiet empty" }, status.services.length ? "No service fits this filter." : "Nothing is configured yet."),
  ];
}

export default {
  title: "Overview",
  async load({ status, more }) {
    const wanted = byTrouble(roots(status.services)).slice(0, TOLD);
    const found = await Promise.all(wanted.map((line) => get(`services/${seg(line.service)}`).catch(() => null)));
    more.clear();
    for (const one of found) if (one) more.set(one.service, one);
  },
  draw: (state) => [
    verdict(state), notices(state), h("h2", { class: "unseen" }, "Services"), filters(state), table(state),
    may("operate") ? h("p", { class: "acts" }, button("pause", {}), button("maintenance", {})) : "",
  ],
};
