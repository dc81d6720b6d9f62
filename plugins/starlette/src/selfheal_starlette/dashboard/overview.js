// The fleet at a glance: one sentence, what needs a person, and every service with the troubled ones first.

import { get, seg } from "./api.js";
import { button, may } from "./acts.js";
import { h } from "./dom.js";
import { DOWN, HOLDS, STATES, TROUBLE, ago, badge, clock, count, downSince, icon, lasting, left, link, plan, span, timed } from "./words.js";

const TOLD = 4; // stories under the sentence

/** What a service that is not well goes back to: what it waits for, or what it went down with, as long as that is down. */
function headOf(line, lines) {
  const seen = new Set([line]);
  for (let at = line; ;) {
    const next = [lines.get(at.root), lines.get(/^waiting-for:(.*)/s.exec(at.reason)?.[1])].find((one) => one && DOWN.has(one.state) && !seen.has(one));
    if (!next) return at;
    seen.add(next);
    at = next;
  }
}

const byName = (services) => new Map(services.map((line) => [line.service, line]));

/** What is worst first, and under each service what went down with it. */
function byTrouble(services) {
  const lines = byName(services);
  const keyed = services.map((line) => {
    const head = headOf(line, lines);
    return { line, key: [DOWN.has(head.state) ? 0 : STATES.indexOf(head.state), head.service, line === head ? 0 : 1, STATES.indexOf(line.state), line.service] };
  });
  const order = (a, b) => {
    const at = a.key.findIndex((part, place) => part !== b.key[place]);
    return at < 0 ? 0 : a.key[at] < b.key[at] ? -1 : 1;
  };
  return keyed.sort(order).map(({ line }) => line);
}

/** Those that are down by themselves: what hangs on another is told with it. */
function roots(services) {
  const lines = byName(services);
  return services.filter((line) => DOWN.has(line.state) && headOf(line, lines) === line);
}

/** The state of the whole fleet in one sentence. */
export function headline({ counts, services }) {
  const all = services.length;
  const down = counts.failed + counts.recovering;
  if (!all) return { tone: "unknown", text: "No service is watched yet." };
  const parts = [];
  const tell = (number, one, many) => {
    if (number) parts.push(`${number}${parts.length ? "" : ` of ${count(all, "service")}`} ${number === 1 ? one : many}`);
  };
  const busy = counts.recovering && !counts.failed ? " and being repaired" : "";
  tell(down, `is down${busy}`, `are down${busy}`);
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

const IS = { failed: "down", recovering: "down", unhealthy: "failing", degraded: "with a warning" };

/** The buttons for who is asked about a service; nothing where nobody is. */
function choices(asked) {
  const about = { service: asked.service };
  if (asked.action === "manual_intervention") return button("acknowledge", about);
  return ["approve", "refuse"].map((answer) => button(answer, { ...about, action: asked.action }));
}

/** Who has taken it on, as far as people said so. */
function hands(more) {
  const who = [...new Set((more?.alerts ?? []).map((one) => one.acknowledged_by).filter(Boolean))];
  return who.length ? `${who.join(" and ")} ${who.length === 1 ? "sees" : "see"} to it` : "";
}

function followers(line, services) {
  const lines = byName(services);
  const with_ = services.filter((one) => one !== line && one.state !== "healthy" && headOf(one, lines) === line);
  if (!with_.length) return "";
  const names = with_.slice(0, 3).flatMap((one, place) => [place ? ", " : "", link(one.service)]);
  const others = with_.length > 3 ? ` and ${with_.length - 3} more` : "";
  const waits = with_.some((one) => one.reason.startsWith("waiting-for:"));
  return [names, others, waits ? (with_.length === 1 ? " waits for it" : " wait for it") : " went down with it"];
}

/** One trouble: what it is and since when, what it says, and beside it what selfheal does and who is asked. */
function story(line, { status, more, approvals }) {
  const long = more.get(line.service);
  const since = downSince(line, status, long);
  const asked = approvals.find((one) => one.service === line.service);
  const skipped = asked?.skipped_at ? ["passed over ", left(asked.skipped_at), " if nobody answers"] : "";
  const notes = [followers(line, status.services), skipped, hands(long)].filter((one) => one.length);
  return h("li", { "data-key": line.service, class: `is-${line.state}` }, icon(line.state),
    h("p", { class: "what" }, h("strong", {}, link(line.service)), ` ${IS[line.state] ?? line.state} since `, clock(since), ", for ", lasting(since),
      line.summary ? h("span", { class: "why" }, line.summary) : ""),
    h("p", { class: "does" }, h("span", { class: "unseen" }, "selfheal: "), plan(line, long),
      notes.length ? h("span", { class: "why" }, notes.flatMap((one, place) => [place ? "; " : "", one])) : ""),
    asked ? h("p", { class: "choices" }, choices(asked)) : "");
}

/** Which services have a story: those that are down by themselves, or else whatever is not well. */
function told({ services }) {
  const down = byTrouble(roots(services));
  return down.length ? down : byTrouble(services.filter((line) => TROUBLE.has(line.state)));
}

function verdict(state) {
  const { tone, text } = headline(state.status);
  const some = told(state.status);
  const rest = some.length - TOLD;
  return h("section", { class: `verdict is-${tone}`, "aria-label": "How the fleet is" },
    h("h1", {}, icon(tone), h("span", {}, text)),
    holds(state.status),
    some.length ? h("ul", { class: "stories" }, some.slice(0, TOLD).map((line) => story(line, state))) : "",
    rest > 0 ? h("p", { class: "quiet" }, `and ${rest} more below.`) : "");
}

/** What holds back everything comes before what each service does. */
function holds(status) {
  const found = status.holds.map((one) => h("li", { class: "is-unhealthy", "data-key": `hold ${one.hold}` }, icon("unhealthy"),
    h("p", {}, h("strong", {}, `Nothing automatic happens (${one.hold}). `), `${HOLDS[one.hold] ?? one.hold}. `, h("span", { class: "quiet" }, one.evidence)),
    one.hold === "journal" ? "" : button("release", { hold: one.hold })));
  return found.length ? h("ul", { class: "notices" }, found) : "";
}

function notices({ status, approvals }) {
  const found = [];
  const above = new Set(told(status).slice(0, TOLD).map((line) => line.service));
  for (const one of approvals.filter(({ service }) => !above.has(service))) {
    found.push(h("li", { class: "is-degraded", "data-key": `approval ${one.service}` }, icon("degraded"),
      h("p", {}, h("strong", {}, link(one.service), one.action === "manual_intervention" ? " needs a person. " : ` asks whether to ${one.action ?? "go on"}. `),
        "Asked ", ago(one.asked), one.skipped_at ? ["; skipped ", left(one.skipped_at)] : "", "."),
      choices(one)));
  }
  for (const one of status.suppressions) {
    const about = one.everything ? "the whole fleet" : one.services.flatMap((name, place) => [place ? ", " : "", link(name)]);
    found.push(h("li", { class: "is-disabled", "data-key": one.suppression }, icon("disabled"),
      h("p", {}, h("strong", {}, `${{ paused: "Paused", maintenance: "Maintenance", observe: "Only watched", silence: "Silenced" }[one.binds] ?? one.binds}: `, about),
        one.until ? [", until ", clock(one.until)] : ", until somebody ends it", ". ", h("span", { class: "quiet" }, `${one.actor}: ${one.reason}`)),
      button("lift", { suppression: one.suppression })));
  }
  return found.length ? h("section", { "aria-label": "What waits, or is left alone" }, h("ul", { class: "notices" }, found)) : "";
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

/** What its last check said, and what else there is to say of the reason, each once. */
function because(line) {
  const known = line.state === "failed" ? /^(waiting-for:|held:approval|escalated|backoff)/.test(line.reason) : line.state === "recovering";
  return [line.summary, known || line.detail === line.summary || line.reason === `held:${line.detail}` ? "" : timed(line.detail)].filter(Boolean).join(" · ");
}

function row(line, status, more, next) {
  const why = because(line);
  const open = TROUBLE.has(line.state);
  const since = downSince(line, status, more);
  const cell = (label, ...children) => h("td", { role: "cell", "data-label": label }, children);
  return h("tr", { role: "row", "data-key": line.service, class: open ? "troubled" : line.state === "unknown" ? "open" : "" },
    h("th", { role: "rowheader", scope: "row" }, link(line.service)),
    cell("State", badge(line.state)),
    cell("Since", clock(since), open ? h("span", { class: "why" }, lasting(since)) : ""),
    cell("Doing", plan(line, more), why ? h("span", { class: "why" }, why) : ""),
    cell("Last result", line.last_check ? [h("span", { class: "found" }, line.last_verdict ?? "undecided"), " ", h("span", { class: "took" }, h("span", {}, span(line.latency_seconds)), " ", ago(line.last_check))] : "none yet"),
    next ? cell("Next check", line.next_check ? left(line.next_check) : line.under_way?.phase === "acting" ? "after that" : "none") : "");
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
      titled ? h("tr", { role: "row", class: "group", "data-key": "" }, h("th", { role: "columnheader", colspan: COLUMNS.length, scope: "rowgroup" }, `${title} (${some.length})`), next ? h("td", { role: "cell" }) : "") : "",
      some.map((line) => row(line, status, more.get(line.service), next))));
  return [
    h("table", { class: "fleet", role: "table", "aria-label": "Services" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((name) => h("th", { role: "columnheader", scope: "col" }, name)))), bodies),
    lines.length ? "" : h("p", { class: "quiet empty" }, status.services.length ? "No service fits this filter." : "Nothing is configured yet."),
  ];
}

/** The long answer about a service, with the time until which what is held is held. */
async function longer(line) {
  const at = `services/${seg(line.service)}`;
  try {
    const held = /^held:(budget|cooldown|flapping|maintenance|paused)$/.test(line.reason);
    const [one, explain] = await Promise.all([get(at), held ? get(`${at}/explain`) : null]);
    const ends = (explain?.guards ?? []).filter((guard) => guard.holds && guard.reason === line.reason && guard.until).map((guard) => guard.until);
    return { ...one, until: ends.sort().at(-1) ?? null };
  } catch (problem) {
    if (problem.status === undefined) throw problem;
    return null; // it says less then
  }
}

export default {
  title: "Overview",
  async load({ status, more }) {
    const wanted = told(status).slice(0, TOLD).filter((line) => DOWN.has(line.state));
    const found = await Promise.all(wanted.map(longer));
    more.clear();
    for (const one of found) if (one) more.set(one.service, one);
  },
  draw: (state) => [
    verdict(state), notices(state), h("h2", { class: "unseen" }, "Services"), filters(state), table(state),
    may("operate") ? h("p", { class: "acts" }, button("pause", {}), button("maintenance", {})) : "",
  ],
};
