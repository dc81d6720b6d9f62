// How each day went, as the server divides it: a bar a day, and the share in words.

import { get } from "./api.js";
import { h } from "./dom.js";
import { count, dayBegins, dayText, link, span } from "./words.js";

const DAYS = 90;
const LEGEND = [["up", "up"], ["degraded", "with a warning"], ["down", "with an outage"], ["planned", "maintenance"], ["unobserved", "not watched"]];
const kept = { at: 0, answer: null };

/** The worst of a day, and how it is said. Nothing is added up here: these are the server's seconds. */
function kindOf(day) {
  if (!day.observed_seconds && day.planned_seconds) return ["planned", "maintenance"];
  if (!day.observed_seconds) return ["unobserved", "not watched"];
  if (day.down_seconds) return ["down", `down for ${span(day.down_seconds)}`];
  if (day.degraded_seconds) return ["degraded", `with a warning for ${span(day.degraded_seconds)}`];
  return ["up", "up"];
}

/** A share with two places, never rounded up to all. */
const percent = (number) => (number === null || number === undefined ? "no data" : `${(Math.floor(number * 100 + 1e-6) / 100).toFixed(2)} %`);

function bars(one) {
  const days = one.days.slice(-DAYS);
  const kinds = { up: 0, degraded: 0, down: 0, planned: 0, unobserved: 0 };
  const blocks = Array.from({ length: DAYS - days.length }, () => h("i", { class: "day unobserved" })).concat(days.map((day) => {
    const [kind, words] = kindOf(day);
    kinds[kind] += 1;
    const share = kind === "down" ? Math.max(1, Math.min(4, Math.ceil((day.down_seconds / day.observed_seconds) * 20))) : "";
    return h("i", { class: `day ${kind}`, "data-share": share, title: `${dayText(day.date)}: ${words}` });
  }));
  const words = [["up", "up"], ["degraded", "with a warning"], ["down", "with an outage"], ["planned", "in maintenance"]].filter(([kind]) => kinds[kind]).map(([kind, said]) => `${count(kinds[kind], "day")} ${said}`);
  return h("div", { class: "bars", role: "img", "aria-label": `Of the last ${DAYS} days: ${[...words, `${DAYS - days.length + kinds.unobserved} not watched`].join(", ")}` }, blocks);
}

export default {
  title: "90 days",
  async load() {
    if (!kept.answer || Date.now() - kept.at > 60000) Object.assign(kept, { answer: await get(`statistics?days=${DAYS}`), at: Date.now() });
    return kept.answer;
  },
  draw({ data, status }) {
    const known = status.services.map((line) => line.service).filter((name) => data.services[name]);
    const divided = known.some((name) => data.services[name].days);
    const begins = dayBegins(status.time.slice(0, 10));
    const worst = (name) => data.services[name].uptime_percentage ?? 101;
    known.sort((a, b) => worst(a) - worst(b) || (a < b ? -1 : 1));
    return [
      h("h1", { class: "title" }, divided ? "The last 90 days" : "Since recording began"),
      divided ? h("p", { class: "quiet legend" }, LEGEND.map(([kind, words]) => h("span", {}, h("i", { class: `day ${kind}`, "data-share": 4 }), words)), begins ? h("span", {}, `A day begins at ${begins} by your clock: midnight of UTC.`) : "")
        : h("p", { class: "quiet" }, "This server does not say how each day went; these are its numbers over all that is recorded."),
      divided && known.length ? h("p", { class: "quiet scale", "aria-hidden": "true" }, h("span", {}, `${DAYS} days ago`), h("span", {}, "today")) : "",
      h("ul", { class: "days" }, known.map((name) => {
        const one = data.services[name];
        return h("li", { "data-key": name }, h("b", {}, link(name)), one.days ? bars(one) : "",
          h("span", {}, h("b", { class: "share" }, percent(one.uptime_percentage)), h("span", { class: "quiet" }, [
            one.uptime_percentage === null ? "" : " up", `, ${count(one.incidents, "failure")}`,
            one.coverage !== null && one.coverage < 0.99 ? `, watched ${Math.floor(one.coverage * 100)} % of the time` : ""])));
      })),
      known.length ? "" : h("p", { class: "quiet" }, "Nothing is recorded yet."),
    ];
  },
};
