// The page: which view is shown, what is asked for it, and when.
//
// The server's answers are the only truth. A record that is heard is never counted here: it is the sign to ask again.

import * as api from "./api.js";
import { me, perform, signIn } from "./acts.js";
import days from "./days.js";
import { h, show } from "./dom.js";
import graph from "./graph.js";
import { alerts, audit, incident, incidents } from "./lists.js";
import overview, { headline } from "./overview.js";
import service from "./service.js";
import { agoText, clock, forText, leftText } from "./words.js";

const LEAST = 250; // ms between two askings, however much is heard; grows with what an answer takes
const POLL = 5000; // ms after which is asked without a record: results are not records
const PATIENCE = 1500; // ms before a lost connection is worth a word

const VIEWS = { "": overview, service, graph, incidents, incident, alerts, days, audit };
const NAVIGATION = [["", "Overview"], ["graph", "Graph"], ["incidents", "Incidents"], ["alerts", "Alerts"], ["days", "90 days"], ["audit", "Audit"]];
const HOME = { service: "", incident: "incidents" };

const state = {
  status: null, approvals: [], more: new Map(), filter: { text: "", state: "" }, pages: new Map(),
  view: overview, name: "", param: "", data: null, live: false, lostSince: null, problem: null,
};
const place = (id) => document.getElementById(id);
const main = place("main");

// -- which view -------------------------------------------------------------------------------------------------------

function locate() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  if (location.hash === "#main") return false;
  const known = VIEWS[name] ? name : "";
  let param = rest.join("/");
  try {
    param = decodeURIComponent(param);
  } catch {
    param = "";
  }
  const given = new URLSearchParams(query);
  state.filter.text = given.get("q") ?? "";
  state.filter.state = given.get("state") ?? "";
  const moved = known !== state.name || param !== state.param;
  Object.assign(state, { name: known, param, view: VIEWS[known] }, moved ? { data: null, problem: null } : {});
  return moved;
}

function remember() {
  const given = new URLSearchParams();
  if (state.filter.text) given.set("q", state.filter.text);
  if (state.filter.state) given.set("state", state.filter.state);
  history.replaceState(null, "", `#/${given.size ? `?${given}` : ""}`);
}

addEventListener("hashchange", () => {
  if (!locate()) return;
  state.pages.clear();
  show(main, h("p", { class: "quiet" }, "One moment …"));
  navigate();
  refresh().then(() => {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  });
});

// -- asking -----------------------------------------------------------------------------------------------------------

let asking = null;
let again = false;
let heard = false;
let due = 0;
let dueAt = Infinity;
let took = 0;

/** Ask for everything that is shown, and show it. While it is asked for, one more asking waits at most. */
function refresh() {
  if (asking) {
    again = true;
    return asking;
  }
  clearTimeout(due);
  dueAt = Infinity;
  heard = false;
  const began = performance.now();
  asking = load().finally(() => {
    asking = null;
    took = performance.now() - began;
    if (again) soon();
    else plan(POLL);
    again = false;
  });
  return asking;
}

/** Ask again after a pause, unless that is due sooner already. While nobody looks, only what was heard is asked for. */
function plan(pause) {
  const at = performance.now() + pause;
  if (state.problem?.status === 401 || at >= dueAt) return; // who is not let in says first who they are
  clearTimeout(due);
  dueAt = at;
  due = setTimeout(() => {
    dueAt = Infinity;
    if (document.hidden && !heard) plan(POLL);
    else refresh();
  }, pause);
}

function soon() {
  heard = true;
  if (asking) again = true;
  else plan(document.hidden ? POLL : Math.max(LEAST, 2 * took));
}

async function load() {
  const { view, param } = state;
  try {
    state.status = await api.get("status");
    const asks = state.status.services.some((line) => line.reason === "held:approval");
    state.approvals = asks ? (await api.get("approvals")).approvals : [];
    const data = await view.load(state);
    if (view !== state.view || param !== state.param) {
      again = true;
      return;
    }
    Object.assign(state, { data, problem: null });
    if (!state.live) lost(null);
  } catch (problem) {
    if (!(problem instanceof api.Refused)) throw problem;
    state.problem = problem;
    if (problem.status === 401 && problem.bearer) signIn(api.token.get() ? problem.message : "selfheal answers only to who has a token", begin);
    if (problem.status === 0) lost(problem);
  }
  draw();
}

/** Who are we? An API that does not say leaves it to each act. */
async function identify() {
  Object.assign(me, { name: "", scope: null, services: null });
  try {
    Object.assign(me, await api.get("whoami"));
  } catch (problem) {
    if (!(problem instanceof api.Refused)) throw problem;
  }
}

/** Ask again after somebody may have logged in elsewhere. */
function readmit() {
  api.forget();
  return begin().catch((problem) => {
    if (!(problem instanceof api.Refused)) throw problem;
    state.problem = problem;
    draw();
  });
}

/** Begin as who has just signed in, or out. Throws `Refused` for a token that is none. */
async function begin() {
  await api.get("status");
  state.problem = null;
  await identify();
  stream.restart();
  await refresh();
}

// -- showing ----------------------------------------------------------------------------------------------------------

function draw() {
  const { status, view, problem } = state;
  document.body.classList.toggle("stale", state.lostSince !== null);
  place("fleet").textContent = status?.fleet || "selfheal";
  navigate();
  show(place("who"), who());
  show(place("connection"), connection());
  if (problem?.status === 401) {
    show(main, stranger(problem));
  } else if (problem && problem.status !== 0 && (problem.status !== 404 || !state.data)) {
    show(main, h("section", { class: "verdict is-unhealthy" }, h("h1", {}, problem.status === 404 ? "There is no such thing" : "selfheal cannot say how it is"), h("p", {}, problem.message)));
  } else if (status && (state.data !== null || view === overview)) {
    show(main, view.draw(state));
    view.after?.(state);
  } else if (problem) {
    show(main, h("p", { class: "quiet" }, "selfheal does not answer; this page goes on trying."));
  }
  tell(status, view.named?.(state) ?? view.title);
  place("text") && document.activeElement !== place("text") && (place("text").value = state.filter.text);
  if (status) announce(headline(status).text);
}

let marked = null;
/** Show where we are; on a phone the one that is marked is moved into sight. */
function navigate() {
  const current = HOME[state.name] ?? state.name;
  show(place("views"), NAVIGATION.map(([name, title]) =>
    h("li", {}, h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, title))));
  if (marked === current) return;
  marked = current;
  const box = place("views").parentElement;
  const here = box.querySelector("[aria-current]");
  box.scrollLeft = here.offsetLeft - box.offsetLeft - (box.clientWidth - here.offsetWidth) / 2;
}

/** What the tab tells while nobody looks at the page: how many are sick, and by its icon how badly. */
function tell(status, title) {
  const { failed = 0, recovering = 0, unhealthy = 0, degraded = 0 } = status?.counts ?? {};
  const down = failed + recovering;
  const lost = state.lostSince !== null;
  const sick = lost ? "(?) " : down ? `(${down} down) ` : unhealthy ? `(${unhealthy} failing) ` : "";
  document.title = `${sick}${title} – ${status?.fleet || "selfheal"}`;
  const icon = lost ? "icon-lost.svg" : down ? "icon-down.svg" : unhealthy || degraded ? "icon-warn.svg" : "icon.svg";
  if (place("icon").getAttribute("href") !== icon) place("icon").setAttribute("href", icon);
}

/** What is shown to who is not let in: a token helps, or else the application knows its users and let this one go. */
function stranger({ bearer, message }) {
  const sign = bearer ? { "data-sign": "in" } : { "data-sign": "again" };
  return h("section", { class: "verdict is-unknown" }, h("h1", {}, bearer ? "Who are you?" : "You are not logged in"), h("p", {}, `${message[0].toUpperCase()}${message.slice(1)}.`),
    h("p", { class: "acts" }, h("button", { type: "button", ...sign }, bearer ? "Sign in" : "Try again")));
}

function who() {
  if (state.problem?.status === 401) return [];
  const known = me.scope !== null && me.name !== "loopback" && !api.token.get(); // by the application: there it is that one logs out
  if (known) return [h("span", { class: "quiet" }, `${me.name}, ${me.scope}`)];
  if (api.token.get()) return [h("span", { class: "quiet" }, me.name ? `${me.name}, ${me.scope} ` : ""), h("button", { type: "button", "data-sign": "out" }, "Sign out")];
  const wanted = me.scope === null || me.scope === "admin" ? "" : h("button", { type: "button", "data-sign": "in" }, "Sign in");
  return [h("span", { class: "quiet" }, me.scope === "read" ? "read only " : ""), wanted];
}

function connection() {
  if (state.lostSince !== null) return h("span", { class: "off" }, "Connection lost. Last heard at ", clock(state.lostSince, true), "; trying again …");
  if (state.live) return h("span", { class: "on" }, "Live");
  return h("span", { class: "off" }, state.status ? "Asking every few seconds" : "Connecting …");
}

let waiting = 0;
function lost(problem) {
  clearTimeout(waiting);
  if (!problem) {
    state.lostSince = null;
    return;
  }
  if (state.lostSince !== null) return;
  const since = new Date().toISOString();
  waiting = setTimeout(() => {
    state.lostSince = since;
    draw();
  }, PATIENCE);
}

let said = "";
let saying = 0;
/** Say to a screen reader how the fleet is: only when it has changed, and not each step of the way. */
function announce(text) {
  if (text === said) return;
  said = text;
  clearTimeout(saying);
  saying = setTimeout(() => (place("news").textContent = said), 1500);
}

setInterval(() => {
  if (document.hidden || state.lostSince !== null) return;
  for (const one of document.querySelectorAll("[data-ago]")) one.textContent = agoText(one.dataset.ago);
  for (const one of document.querySelectorAll("[data-left]")) one.textContent = leftText(one.dataset.left);
  for (const one of document.querySelectorAll("[data-for]")) one.textContent = forText(one.dataset.for);
}, 1000);

// -- what people do ---------------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a.skip");
  if (!target) return;
  const { act, about, filter, sign, page } = target.dataset;
  if (target.matches("a.skip")) {
    event.preventDefault();
    main.focus();
  } else if (act) {
    perform(act, JSON.parse(about), refresh);
  } else if (filter) {
    state.filter.state = state.filter.state === filter ? "" : filter;
    remember();
    draw();
  } else if (page) {
    state.pages.set(page, (state.pages.get(page) ?? 1) + 1);
    refresh();
  } else if (sign === "again") {
    readmit();
  } else if (sign === "in") {
    signIn("", begin);
  } else if (sign === "out") {
    api.token.set("");
    api.forget();
    Object.assign(state, { status: null, data: null });
    stream.restart();
    identify().then(refresh);
  }
});

document.addEventListener("input", (event) => {
  if (event.target.id !== "text") return;
  state.filter.text = event.target.value;
  remember();
  draw();
});

// -- the beginning ----------------------------------------------------------------------------------------------------

locate();
const stream = api.listen({
  open() {
    state.live = true;
    lost(null);
    refresh();
  },
  lost(problem) {
    state.live = false;
    if (problem?.status === 0) lost(problem);
    else if (problem?.status === 401) refresh();
  },
  record: soon,
});
addEventListener("online", () => stream.again());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (state.problem?.status === 401 && !state.problem.bearer) {
    readmit();
    return;
  }
  stream.again();
  refresh();
});
identify().then(refresh);
