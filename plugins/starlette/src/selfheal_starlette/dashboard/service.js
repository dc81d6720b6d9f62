// One service: how it is, why nothing (or something) is being done, its ladder, and what has happened to it.

import { get, seg } from "./api.js";
import { button } from "./acts.js";
import { h } from "./dom.js";
import { records } from "./lists.js";
import { draw, spells, timeline } from "./timeline.js";
import { DOWN, TROUBLE, ago, clock, downSince, icon, lasting, left, link, plan, span, timed } from "./words.js";

const KNOWN = 100; // records that are asked for, so that the states of the last hour are known too
const SHOWN = 25; // records that are listed, until more are asked for

function acts(line, status) {
  const about = { service: line.service };
  const paused = status.suppressions.some((one) => one.binds === "paused" && one.services.includes(line.service));
  return h("p", { class: "acts", role: "group", "aria-label": "What you may do" },
    line.state === "disabled" ? button("enable", about, { kind: "primary", key: "able" }) : [
      button("recover", about, { kind: line.state === "failed" ? "primary" : "" }),
      line.reason === "held:approval" ? ["approve", "refuse"].map((answer) => button(answer, { ...about, action: line.detail })) : "",
      line.incident !== null ? button("acknowledge", about) : "",
      button(paused ? "resume" : "pause", about, { key: "pause" }),
      button("maintenance", about), button("silence", about), button("disable", about, { key: "able" }),
    ]);
}

/** What holds, as a person would say it. */
const GUARDS = {
  journal: "decisions cannot be stored", paused: "it is paused", maintenance: "a maintenance window is open",
  observe: "it is only watched", doubt: "selfheal does not trust what it sees", canary: "no canary answers",
  storm: "too much failed at once", workload: "it is not certain what runs", cause: "no step cures this cause",
  flapping: "it failed too often", escalated: "all attempts are used", backoff: "it was tried a moment ago",
  budget: "it was repaired often enough for now", cooldown: "this step ran a moment ago",
  fleet_budget: "the fleet was repaired often enough for now", parents: "what it needs is not well yet",
  approval: "the next step asks a person first", slot: "enough repairs run at once",
};

function why(explain) {
  // What would hold back a step says nothing while there is none to take.
  const holding = explain.state === "failed" ? explain.guards.filter((guard) => guard.holds) : [];
  const title = holding.length ? "Why nothing is being done" : "Why selfheal does what it does";
  const others = holding.length > 1 ? ` ${holding.length === 2 ? "One more guard holds" : `${holding.length - 1} more guards hold`} it back; all must give way.` : "";
  const first = h("p", {}, holding.length ? `It is down, and nothing is done, because ${GUARDS[holding[0].guard] ?? holding[0].guard}.${others}` : explain.verdict);
  const lets = explain.guards.filter((guard) => !guard.holds);
  return h("section", { "data-key": "why", "aria-labelledby": "why" }, h("h2", { id: "why" }, title), first,
    holding.length ? h("ul", { class: "guards" }, holding.map((guard) => h("li", { "data-key": guard.guard },
      h("strong", {}, guard.guard.replaceAll("_", " ")), guard.detail ? `: ${timed(guard.detail)}` : "",
      guard.until ? ["; until ", clock(guard.until, true), " (", left(guard.until), ")"] : "", h("span", { class: "quiet" }, ` ${guard.about}`)))) : "",
    explain.next_step && explain.state !== "healthy" ? h("p", {}, "Next step: ", h("b", {}, explain.next_step), ".") : "",
    lets.length ? h("details", {}, h("summary", {}, holding.length ? `${lets.length} other guards let it act` : `${lets.length} guards let it act`),
      h("ul", { class: "quiet" }, lets.map((guard) => h("li", {}, h("b", {}, guard.guard.replaceAll("_", " ")), ` ${guard.about}`)))) : "");
}

function ladder(line, one, explain) {
  const { steps, max_retries: retries } = one.policy;
  const busy = line.state === "recovering";
  const cursor = busy ? (one.condition.cursor ?? 0) : line.state === "failed" ? steps.findIndex((step, at) => step.action === explain.next_step && at >= (one.condition.cursor ?? 0)) : -1;
  return h("section", { "data-key": "ladder", "aria-labelledby": "ladder" }, h("h2", { id: "ladder" }, "Ladder"),
    steps.length ? h("ol", { class: "ladder" }, steps.map((step, at) => {
      const here = at === cursor;
      const done = DOWN.has(line.state) && at < cursor;
      const word = here ? (busy ? (one.action ? "running" : "done, being verified") : "next") : done ? "tried" : "";
      return h("li", { class: here ? "here" : done ? "done" : "", "aria-current": here ? "step" : null },
        h("b", {}, step.action), h("span", { class: "quiet" }, ` ${[step.effect, step.approval || step.action === "manual_intervention" ? "asks a person" : "", step.from_attempt > 1 ? `from attempt ${step.from_attempt}` : ""].filter(Boolean).join(", ")}`),
        word ? h("em", {}, ` ${word}`) : "");
    })) : h("p", { class: "quiet" }, "It has no ladder: it is only watched."),
    steps.length && DOWN.has(line.state) ? h("p", { class: "quiet" }, `Attempt ${Math.max(1, line.attempt)} of ${retries}.`) : "");
}

function result(line, evidence) {
  const facts = [
    ["Verdict", evidence?.last_verdict], ["Cause", line.cause ?? evidence?.cause], ["Checked", ago(line.last_check)],
    ["Latency", span(evidence?.latency_seconds)], ["Summary", evidence?.summary], ["Failing since", DOWN.has(line.state) ? "" : clock(evidence?.failing_since, true)],
    ["Runs as", evidence?.instance ? `${evidence.instance.id} (${evidence.instance.run})` : ""],
    ...Object.entries(evidence?.details ?? {}),
  ];
  return h("section", { "data-key": "result", "aria-labelledby": "result" }, h("h2", { id: "result" }, "Last result"),
    h("dl", {}, facts.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) =>
      h("div", { "data-key": name }, h("dt", {}, name), h("dd", {}, value)))));
}

const percent = (number) => (number === null || number === undefined ? "no data" : `${number.toFixed(number > 99.9 && number < 100 ? 3 : 1)} %`);

function numbers(one) {
  if (!one) return "";
  const facts = [
    ["Uptime", percent(one.uptime_percentage)], ["Watched", percent(one.coverage === null ? null : one.coverage * 100)],
    ["Failures", one.incidents], ["Repaired", `${one.recovered}, and ${one.healed_by_itself} healed by themselves`],
    ["Median repair", span(one.median_recovery_seconds) || "no data"], ["90 % within", span(one.p90_recovery_seconds) || "no data"],
    ["Reliability", one.reliability_score === null ? "no data" : one.reliability_score.toFixed(0)],
  ];
  return h("section", { "data-key": "numbers", "aria-labelledby": "numbers" }, h("h2", { id: "numbers" }, "Since recording began"),
    h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

const numbered = { service: "", at: 0, answer: null };

/** Statistics read the whole journal: not at every record. */
async function statistics(name) {
  if (numbered.service !== name || Date.now() - numbered.at > 20000) {
    const answer = await get(`statistics?service=${seg(name)}`);
    Object.assign(numbered, { service: name, at: Date.now(), answer: answer.services[name] ?? null });
  }
  return numbered.answer;
}

export default {
  title: "Service",
  named: ({ param }) => param,
  async load({ param, pages }) {
    const at = `services/${seg(param)}`;
    const most = Math.min(1000, SHOWN * (pages.get("history") ?? 1));
    const limit = Math.max(KNOWN, most);
    const [one, explain, history, incidents, stats, results] = await Promise.all([
      get(at), get(`${at}/explain`), get(`${at}/history?limit=${limit}`), get(`incidents?service=${seg(param)}&limit=10`), statistics(param), get(`${at}/results?limit=1000`)]);
    const samples = results.results.filter((each) => each.latency_seconds !== null).reverse();
    const [begin, end] = [samples[0], samples.at(-1)].map((each) => (each ? Date.parse(each.time) / 1000 : 0));
    const drawn = { samples, states: spells(history.records, one, begin, end) };
    const more = history.next !== null || history.records.length > most;
    return { drawn, one, explain, history: history.records.slice(0, most), more, incidents: incidents.incidents, stats };
  },
  draw(state) {
    const { one, explain, history, more, incidents, stats } = state.data;
    const line = one;
    const words = plan(line, { ...one, until: null });
    const since = downSince(line, state.status, one);
    const summary = line.summary || (line.detail && !words.includes?.(line.detail) ? line.detail : "");
    const needs = one.policy.depends_on.map((each) => each.services.flatMap((name, at) => [at ? " or " : "", link(name)]));
    return [
      h("section", { class: `verdict is-${line.state}`, "data-key": "verdict", "aria-label": "How it is" },
        h("h1", {}, icon(line.state), h("span", {}, line.service)),
        h("p", { class: "lead" }, h("strong", { class: `badge is-${line.state}` }, line.state), " since ", clock(since, true), TROUBLE.has(line.state) ? [", for ", lasting(since)] : "", summary ? `: ${summary}` : ""),
        words ? h("p", { class: "lead does" }, words) : "",
        h("p", { class: "quiet" }, `${one.policy.priority} priority, checked every ${span(one.policy.interval)} by ${one.check ?? "a check"}`,
          needs.length ? ["; needs ", needs.flatMap((each, at) => [at ? ", " : "", each])] : "",
          line.next_check ? ["; next check ", left(line.next_check)] : "", "."),
        acts(line, state.status)),
      h("div", { class: "halves", "data-key": "halves" },
        h("div", {}, why(explain), ladder(line, one, explain), timeline(state.data.drawn)),
        h("div", {}, result(line, one.evidence), numbers(stats),
          h("section", { "data-key": "incidents", "aria-labelledby": "its" }, h("h2", { id: "its" }, "Incidents"),
            incidents.length ? h("ul", { class: "plain" }, incidents.map((each) => h("li", { "data-key": each.incident },
              icon(each.open ? "failed" : "healthy"), " ", h("a", { href: `#/incident/${each.incident}` }, `Incident ${each.incident}`), each.root !== state.param ? [" of ", link(each.root)] : "", ", ", clock(each.opened), ", ",
              each.open ? "open" : `over after ${span(each.duration_seconds)}`))) : h("p", { class: "quiet" }, "None so far.")))),
      h("section", { "data-key": "history", "aria-labelledby": "history" }, h("h2", { id: "history" }, "What has happened"), records(history, { more: more ? "history" : "", own: state.param })),
    ];
  },
  after: ({ data }) => draw(data.drawn),
};
