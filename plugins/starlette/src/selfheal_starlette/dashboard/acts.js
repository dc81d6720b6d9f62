// The acts that people do: which there are, who may do them, and the dialog that asks for the reason.

import { forget, post, seg, token } from "./api.js";
import { h, show } from "./dom.js";

const ORDER = ["read", "operate", "admin"];

/** Who asks, as the API says: `scope`, and `services` for a token that is limited to some. */
export const me = { name: "", scope: null, services: null };

/** Whether the API would let us; what it does not say is left to it. */
export function may(scope, service) {
  if (me.scope === null) return true;
  if (ORDER.indexOf(me.scope) < ORDER.indexOf(scope)) return false;
  return service ? !me.services || me.services.includes(service) : true;
}

const of = (verb) => ({ service }) => `services/${seg(service)}/${verb}`;
const some = (about) => (about.service ? { services: [about.service] } : { everything: true });
// What somebody saw waiting: another step may wait by the time that the answer arrives, and is not meant.
const seen = ({ action }) => (action ? { action } : {});
const step = ({ action }) => (action ? `“${action}”` : "the next step");
const whom = ({ service }) => service ?? "the whole fleet";

const ACTS = {
  recover: { label: "Recover now", title: (a) => `Recover ${a.service} now?`, text: "The next step of its ladder runs at once, without waiting for backoff, budget or escalation.", path: of("recover"), strong: true },
  enable: { label: "Enable", title: (a) => `Watch ${a.service} again?`, text: "Its checks begin again, and what fails is repaired.", path: of("enable") },
  disable: { label: "Disable", title: (a) => `Stop watching ${a.service}?`, text: "Nothing is checked and nothing is repaired until somebody enables it again.", path: of("disable"), strong: true },
  pause: { label: "Pause", title: (a) => `Pause ${whom(a)}?`, text: "Checks go on, and people are told; nothing automatic is done.", path: () => "pause", body: some, lasts: true },
  resume: { label: "Resume", title: (a) => `End the pause of ${whom(a)}?`, text: "What fails is repaired again.", path: () => "resume", body: some },
  maintenance: { label: "Maintenance", title: (a) => `Maintenance of ${whom(a)}?`, text: "Checks go on; nothing is done and nobody is paged. It is not counted as downtime.", path: () => "maintenance", body: some, lasts: true },
  silence: { label: "Silence", title: (a) => `Silence ${whom(a)}?`, text: "Nobody is told of what fails; what is over is still told.", path: () => "silences", body: some, lasts: true },
  approve: { label: "Approve", title: (a) => `Let ${step(a)} of ${a.service} run?`, text: "The step that waits for a person runs.", path: of("approve"), body: seen, strong: true },
  refuse: { label: "Refuse", title: (a) => `Skip ${step(a)} of ${a.service}?`, text: "The step is passed over, and the ladder goes on after it.", path: of("refuse"), body: seen },
  acknowledge: { label: "Acknowledge", title: (a) => `Say that you see to ${a.service}?`, text: "Its alerts stay, but nobody is called again.", path: of("acknowledge") },
  lift: { label: "End it", title: () => "End this suppression?", text: "From now on things are done, or told, as usual.", path: () => "lift", body: (a) => ({ suppression: a.suppression }) },
  release: { label: "Release", title: (a) => `Release the hold “${a.hold}”?`, text: "selfheal acts again, by your word and against its own evidence.", path: () => "release", body: (a) => ({ hold: a.hold }), scope: "admin", strong: true },
};

const LASTS = [[900, "15 minutes"], [3600, "1 hour"], [14400, "4 hours"], [86400, "1 day"], [0, "until somebody ends it"]];

/** The button of an act; nothing where the caller may not. */
export function button(name, about, { kind = "", key = name } = {}) {
  const act = ACTS[name];
  if (!may(act.scope ?? "operate", about.service)) return "";
  if (me.services && !about.service) return "";
  const whole = about.service ? "" : { pause: " everything", maintenance: " of everything" }[name] ?? "";
  return h("button", { type: "button", class: kind, "data-key": `${key} ${Object.values(about).join(" ")}`, "data-act": name, "data-about": JSON.stringify(about), "aria-label": about.service ? `${act.label} ${about.service}` : null },
    `${act.label}${whole} …`);
}

const dialog = document.getElementById("dialog");
const toast = document.getElementById("toast");
let fading = 0;

/** Say something for a moment. */
export function say(text) {
  show(toast, h("p", {}, text));
  clearTimeout(fading);
  fading = setTimeout(() => show(toast), 6000);
}

function open(title, text, fields, confirm, submit, strong) {
  const problem = h("p", { class: "problem", role: "alert" });
  const yes = h("button", { type: "submit", class: strong ? "strong" : "primary" }, confirm);
  const no = h("button", { type: "button", "data-close": true }, "Cancel");
  const form = h("form", { novalidate: true }, h("h2", { id: "dialog-title" }, title), h("p", {}, text), fields, problem, h("p", { class: "choices" }, no, yes));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const missing = form.querySelector(":invalid");
    if (missing) {
      missing.setAttribute("aria-invalid", "true");
      show(problem, missing.getAttribute("data-missing"));
      missing.focus();
      return;
    }
    yes.disabled = true;
    show(problem);
    try {
      const said = await submit(form.elements);
      dialog.close();
      if (said) say(said);
    } catch (refused) {
      show(problem, refused.message);
    }
    yes.disabled = false;
  });
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
  (form.querySelector("input") ?? yes).focus();
}

/** Ask whether an act is meant, and why; then do it. */
export function perform(name, about, done) {
  const act = ACTS[name];
  const lasts = act.lasts && h("p", {}, h("label", { for: "lasts" }, "For how long"),
    h("select", { id: "lasts" }, LASTS.map(([seconds, words]) => h("option", { value: seconds, selected: seconds === 3600 }, words))));
  const reason = h("p", {}, h("label", { for: "reason" }, "Reason ", h("span", { class: "quiet" }, "(it is recorded with your name)")),
    h("input", { id: "reason", required: true, maxlength: 1000, autocomplete: "off", pattern: ".*\\S.*", "data-missing": "Say why: whoever reads the audit trail wants to know." }));
  open(act.title(about), act.text, [lasts || "", reason], act.label, async (fields) => {
    const body = { ...(act.body ? act.body(about) : {}), reason: fields.reason.value.trim() };
    if (act.lasts && Number(fields.lasts.value)) body.duration = Number(fields.lasts.value);
    const answer = await post(act.path(about), body).finally(done); // what was refused may tell that we are somebody else by now
    const said = answer.reason?.detail ?? "";
    return `${act.label}${about.service ? `, ${about.service}` : ""}: ${said.includes(" ") ? said : "done"}.`;
  }, act.strong);
}

/** Ask for a token; `why` is what the API said. */
export function signIn(why, done) {
  if (dialog.open) return;
  const field = h("p", {}, h("label", { for: "token" }, "Token"),
    h("input", { id: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false", "data-missing": "Paste the token here." }));
  const text = [why ? `${why[0].toUpperCase()}${why.slice(1)}. ` : "", "The token is kept in this tab only, until you close it."];
  open("Who are you?", text, field, "Sign in", async (fields) => {
    const before = token.get();
    token.set(fields.token.value.trim());
    forget();
    try {
      await done();
    } catch (refused) {
      token.set(before);
      throw refused;
    }
    return "";
  });
}

dialog.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) dialog.close();
});
