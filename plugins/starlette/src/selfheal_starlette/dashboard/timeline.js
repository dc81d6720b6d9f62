// What the checks of a service found and how long each took, over the states it was in: drawn, and in words.

import { h } from "./dom.js";
import { clock, second, span } from "./words.js";

const TALL = 170;
const STRIP = 6; // px at the foot of the drawing in which the states are told in full colour
const SEEN = [["failing", "failed"], ["warning", "degraded"], ["inconclusive", "unknown"]];
const KINDS = [["failed", "down"], ["recovering", "being repaired"], ["unhealthy", "failing, not confirmed"], ["degraded", "with a warning"], ["disabled", "not watched"]];

/** The states of a service from `begin` to `end` as [state, from, to], as far as its records reach back. */
export function spells(records, { state, since }, begin, end) {
  const moves = records.filter((one) => one.kind === "moved").map((one) => ({ at: Date.parse(one.time) / 1000, from: one.from, to: one.to }));
  const found = [];
  let until = end;
  let at = state;
  for (const move of moves) {
    if (move.at < until) found.push([move.to, Math.max(begin, move.at), until]);
    until = Math.min(until, move.at);
    at = move.from;
    if (move.at <= begin) return found;
  }
  // Before the oldest that is known it was what that one says; without any it has been so since it says.
  const oldest = moves.length ? begin : Math.max(begin, Date.parse(since) / 1000);
  if (oldest < until) found.push([at, oldest, until]);
  return found;
}

function summary(samples) {
  if (!samples.length) return ["No result within the last hour."];
  const count = new Map();
  for (const one of samples) count.set(one.verdict, (count.get(one.verdict) ?? 0) + 1);
  const words = [...count].sort((a, b) => b[1] - a[1]).map(([verdict, number]) => `${number} ${verdict}`).join(", ");
  return [samples.length === 1 ? "1 result" : `${samples.length} results`, " since ", clock(samples[0].time), `: ${words}. The last took ${span(samples.at(-1).latency_seconds)}.`];
}

/** The section, in which `draw` puts the drawing. */
export function timeline({ samples, states }) {
  const shown = new Set(states.map(([state]) => state));
  const seen = new Set(samples.map((one) => one.verdict));
  const key = [
    ...SEEN.filter(([verdict]) => seen.has(verdict)).map(([verdict, tone]) => h("span", { class: `dot is-${tone}`, "data-key": verdict }, verdict)),
    ...KINDS.filter(([state]) => shown.has(state)).map(([state, words]) => h("span", { class: `block is-${state}`, "data-key": state }, words)),
  ];
  return h("section", { class: "timeline", "data-key": "chart", "aria-labelledby": "latency" }, h("h2", { id: "latency" }, "Results, latency and states"),
    h("div", { class: "plot", "data-key": "plot", hidden: !samples.length },
      h("p", { id: "reading", class: "quiet", "data-keep": true, "data-key": "reading", "aria-hidden": "true" }),
      h("div", { id: "chart", "data-keep": true, "data-key": "chart", role: "img", "aria-label": "Latency of each check over time, over the states of the service" })),
    key.length ? h("p", { class: "quiet legend", "data-key": "key" }, key) : "",
    h("p", { class: "quiet", "data-key": "said" }, summary(samples)));
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

let plot = null;
let plotted = null;
let shown = { samples: [], states: [] };

/** Behind the line: which states it was in. */
function paint({ ctx, bbox, valToPos }) {
  const [begin, end] = [bbox.left, bbox.left + bbox.width];
  ctx.save();
  for (const [state, from, to] of shown.states) {
    const left = Math.max(begin, valToPos(from, "x", true));
    const wide = Math.min(end, valToPos(to, "x", true)) - left;
    if (wide <= 0) continue;
    ctx.fillStyle = colour(`tint-${state}`);
    if (state !== "healthy") ctx.fillRect(left, bbox.top, wide, bbox.height);
    ctx.fillStyle = colour(state);
    ctx.fillRect(left, bbox.top + bbox.height - STRIP * devicePixelRatio, Math.max(1, wide), STRIP * devicePixelRatio);
  }
  ctx.restore();
}

function read({ cursor }) {
  const room = document.getElementById("reading");
  const one = cursor.idx === null || cursor.left < 0 ? null : shown.samples[cursor.idx];
  if (!room || !one) return room?.replaceChildren();
  const at = Date.parse(one.time) / 1000;
  const state = shown.states.find(([, from, to]) => from <= at && at <= to)?.[0];
  return room.replaceChildren(`${second.format(at * 1000)}: ${one.verdict}, ${span(one.latency_seconds)}${state ? `; ${state}` : ""}`);
}

/** Draw it, or what is new of it. */
export function draw(data) {
  const room = document.getElementById("chart");
  if (!room || !window.uPlot || !data.samples.length) return;
  const last = shown;
  shown = data;
  const took = data.samples.map((one) => one.latency_seconds * 1000);
  const columns = [data.samples.map((one) => Date.parse(one.time) / 1000), took, ...SEEN.map(([verdict]) => data.samples.map((one, at) => (one.verdict === verdict ? took[at] : null)))];
  if (plotted === room) {
    if (plot.width !== room.clientWidth) plot.setSize({ width: room.clientWidth, height: TALL });
    const same = last.samples.length === data.samples.length && last.samples.at(-1).time === data.samples.at(-1).time;
    if (!same || JSON.stringify(last.states) !== JSON.stringify(data.states)) plot.setData(columns);
    return;
  }
  const axis = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  plot?.destroy();
  plotted = room;
  plot = new window.uPlot({
    width: room.clientWidth, height: TALL, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: { y: { range: (_, low, high) => [-0.15 * (high || 1), (high || 1) * 1.15] } },
    axes: [
      { ...axis, space: 90, size: 28, values: (_, ticks) => ticks.map((tick) => second.format(tick * 1000)) },
      { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick < 0 ? "" : tick >= 1000 ? `${tick / 1000} s` : `${tick} ms`)) },
    ],
    series: [{}, { stroke: () => colour("accent"), width: 1.5, points: { show: data.samples.length < 60, size: 4 } },
      ...SEEN.map(([, tone]) => ({ stroke: () => colour(tone), paths: () => null, points: { show: true, size: data.samples.length > 100 ? 4 : 6, stroke: () => colour(tone), fill: () => colour(tone) } }))],
    hooks: { drawClear: [paint], setCursor: [read] },
  }, columns, room);
}

addEventListener("resize", () => plotted?.isConnected && plot.setSize({ width: plotted.clientWidth, height: TALL }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plotted?.isConnected && plot.redraw());
