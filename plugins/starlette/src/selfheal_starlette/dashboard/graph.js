// Who depends on whom, drawn: what everything stands on is at the left, and what is down stands out.

import { get } from "./api.js";
import { h, s } from "./dom.js";
import { DOWN, TROUBLE, link, shape } from "./words.js";

const LETTER = 8.6; // px of a letter of a name, which may be bold, at most on average
const ROOM = 44; // px beside a name
const LEAST = 120; // px of a box
const MOST = 300;
const TALL = 34;
const GAP = 12;
const LANE = 76;

/** Put each service in the column after the last of those it needs; a soft circle ends where it began. */
function layers(names, needs) {
  const depth = new Map();
  const of = (name, path) => {
    if (depth.has(name)) return depth.get(name);
    if (path.has(name)) return -1;
    const found = 1 + Math.max(-1, ...(needs.get(name) ?? []).map((one) => of(one, new Set([...path, name]))));
    depth.set(name, found);
    return found;
  };
  const columns = [];
  for (const name of names) (columns[of(name, new Set())] ??= []).push(name);
  return columns;
}

/** Order each column by where its neighbours stand, there and back, so that fewer lines cross. */
function untangle(columns, needs, needed) {
  const place = new Map();
  const put = (column) => column.forEach((name, at) => place.set(name, at - column.length / 2));
  const middle = (name, of) => {
    const some = (of.get(name) ?? []).filter((one) => place.has(one)).map((one) => place.get(one));
    return some.length ? some.reduce((a, b) => a + b, 0) / some.length : place.get(name);
  };
  columns.forEach(put);
  for (let round = 0; round < 4; round += 1) {
    const [order, of] = round % 2 ? [[...columns].reverse(), needed] : [columns, needs];
    for (const column of order) {
      const wish = new Map(column.map((name) => [name, middle(name, of)]));
      column.sort((a, b) => wish.get(a) - wish.get(b));
      put(column);
    }
  }
}

function drawing({ services, edges }, status) {
  const lines = new Map(status.services.map((line) => [line.service, line]));
  const states = new Map(services.map((one) => [one.service, lines.get(one.service)?.state ?? one.state]));
  const needs = new Map();
  const needed = new Map();
  for (const edge of edges) {
    for (const one of edge.needs) {
      needs.set(edge.service, [...(needs.get(edge.service) ?? []), one]);
      needed.set(one, [...(needed.get(one) ?? []), edge.service]);
    }
  }
  // A line over several columns goes through a place of its own in each, so that it does not pass behind a service.
  const tied = services.map((one) => one.service).filter((name) => needs.has(name) || needed.has(name));
  const alone = services.map((one) => one.service).filter((name) => !needs.has(name) && !needed.has(name));
  const columns = layers(tied, needs);
  const column = new Map(columns.flatMap((some, x) => some.map((name) => [name, x])));
  const [before, after] = [new Map(), new Map()];
  const paths = edges.flatMap((edge) => edge.needs.map((parent) => {
    const chain = [parent];
    for (let x = column.get(parent) + 1; x < column.get(edge.service); x += 1) {
      chain.push(`${parent} ${edge.service} ${x}`);
      columns[x].push(chain.at(-1));
    }
    chain.push(edge.service);
    chain.slice(1).forEach((name, place) => {
      before.set(name, [...(before.get(name) ?? []), chain[place]]);
      after.set(chain[place], [...(after.get(chain[place]) ?? []), name]);
    });
    return { edge, parent, chain, hurt: DOWN.has(states.get(parent)) };
  }));
  untangle(columns, before, after);
  const tall = (name) => (column.has(name) ? TALL : TALL / 3) + GAP;
  const heights = columns.map((some) => some.reduce((sum, name) => sum + tall(name), 0));
  const height = Math.max(0, ...heights) + GAP;
  const wide = columns.map((some) => {
    const longest = Math.max(...some.filter((name) => column.has(name)).map((name) => name.length));
    return Math.round(Math.min(MOST, Math.max(LEAST, longest * LETTER + ROOM)));
  });
  const lefts = wide.map((_, x) => GAP + wide.slice(0, x).reduce((sum, one) => sum + one + LANE, 0));
  const width = lefts.at(-1) + wide.at(-1) + GAP;
  const at = new Map();
  columns.forEach((some, x) => {
    let y = GAP + (height - GAP - heights[x]) / 2;
    for (const name of some) {
      at.set(name, { x: lefts[x], wide: wide[x], y, middle: y + (tall(name) - GAP) / 2 });
      y += tall(name);
    }
  });
  paths.sort((a, b) => Number(a.hurt) - Number(b.hurt));
  return [tied.length ? s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": "Dependencies; the table below says the same", role: "group" },
    paths.map(({ edge, parent, chain, hurt }) => {
      const kind = edge.needs.length > 1 ? "any" : edge.kind;
      const d = chain.slice(1).map((name, place) => {
        const [from, to] = [at.get(chain[place]), at.get(name)];
        const [x1, x2, bend] = [from.x + from.wide, to.x, Math.max(LANE / 2, (to.x - from.x - from.wide) / 2)];
        return `${place ? "L" : "M"}${x1} ${from.middle}C${x1 + bend} ${from.middle} ${x2 - bend} ${to.middle} ${x2} ${to.middle}`;
      });
      return s("path", { "data-key": `${parent} ${edge.service}`, class: `edge ${kind}${hurt ? " hurt" : ""}`, d: d.join("") });
    }),
    [...at].filter(([name]) => column.has(name)).map(([name, { x, y, wide: width }]) => {
      const state = states.get(name);
      const hangs = lines.get(name)?.root && lines.get(name).root !== name;
      const letters = Math.floor((width - ROOM) / LETTER);
      const words = name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
      return s("a", { href: `#/service/${encodeURIComponent(name)}`, "data-key": name, class: `node is-${state}${TROUBLE.has(state) || hangs ? " troubled" : ""}`, "aria-label": `${name}: ${state}` },
        s("title", {}, `${name}: ${state}`), s("rect", { x, y, width, height: TALL, rx: 7 }),
        s("svg", { x: x + 9, y: y + 9, width: 16, height: 16, viewBox: "0 0 16 16", class: "icon" }, shape(state)), s("text", { x: x + 32, y: y + 22 }, words));
    })) : "", alone];
}

export default {
  title: "Graph",
  load: () => get("graph"),
  draw({ data, status }) {
    const [picture, alone] = drawing(data, status);
    const rows = data.edges.map((edge) => h("tr", {}, h("th", { scope: "row" }, link(edge.service)), h("td", {}, edge.needs.flatMap((name, at) => [at ? " or " : "", link(name)])), h("td", {}, edge.needs.length > 1 ? `any of these, ${edge.kind}` : edge.kind)));
    return [
      h("h1", { class: "title" }, "Who depends on whom"),
      picture ? h("p", { class: "quiet legend" }, "What is needed is at the left, and what needs it at the right. ", h("span", { class: "key hard" }, "hard"), h("span", { class: "key soft" }, "soft"), h("span", { class: "key any" }, "any of several"), h("span", { class: "key hurt" }, "what it needs is down")) : h("p", { class: "quiet" }, "No service says what it needs."),
      picture ? h("div", { class: "graph", tabindex: 0, role: "region", "aria-label": "The drawing; it scrolls" }, picture) : "",
      alone.length && picture ? h("p", {}, h("span", { class: "quiet" }, "By themselves: "), alone.flatMap((name, at) => [at ? ", " : "", link(name)])) : "",
      rows.length ? h("details", {}, h("summary", {}, "The same as a table"), h("table", { class: "small" }, h("thead", {}, h("tr", {}, ["Service", "Needs", "Kind"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))) : "",
    ];
  },
};
