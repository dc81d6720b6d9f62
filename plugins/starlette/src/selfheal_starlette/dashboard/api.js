// The API: questions, acts, and the stream of records. The token stays in this tab, and never in an address.

import { setClock } from "./words.js";

const KEPT = "selfheal-token";
const SILENCE = 25000; // ms: a stream gives a sign of life every 10 s
const LONGEST = 15000; // ms between two attempts to connect

const base = new URL("../", location.href);
const answers = new Map();

export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (text) => (text ? sessionStorage.setItem(KEPT, text) : sessionStorage.removeItem(KEPT)),
};

/** What the API has refused, in its own words; `status` 0 is that nobody answered, `bearer` that a token would help. */
export class Refused extends Error {
  constructor(status, problem, wait = 0, bearer = false) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.status = status;
    this.code = problem.code ?? "";
    this.wait = wait;
    this.bearer = bearer;
  }
}

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, base), { cache: "no-store", credentials: "same-origin", ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refused(0, { detail: "selfheal does not answer" });
  }
  if (response.ok || response.status === 304) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    problem = { detail: `the server answered ${response.status}` };
  }
  const bearer = (response.headers.get("www-authenticate") ?? "").startsWith("Bearer");
  throw new Refused(response.status, problem, Number(response.headers.get("retry-after")) || 0, bearer);
}

/** Ask a question; what has not changed is not sent again. */
export async function get(path) {
  const known = answers.get(path);
  const response = await ask(path, known ? { headers: { "If-None-Match": known.etag } } : {});
  if (response.status === 304) {
    await response.text();
    return known.answer;
  }
  const answer = await response.json();
  if (answer.time) setClock(answer.time); // not of an answer that was kept: its time has passed
  if (answers.size > 200) answers.clear();
  if (response.headers.get("etag")) answers.set(path, { etag: response.headers.get("etag"), answer });
  return answer;
}

/** Do an act. */
export async function post(path, body) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-") };
  const response = await ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  return response.status === 204 ? {} : response.json();
}

/** Forget what was answered to somebody else. */
export const forget = () => answers.clear();

/** One segment of a path. */
export const seg = (name) => encodeURIComponent(name);

/** Hear every record, for ever: resumes where it was. `on` has `open`, `lost` (with what was wrong) and `record`. */
export function listen(on) {
  let last = null;
  let failures = 0;
  let controller = null;
  let wake = () => {};

  async function once() {
    controller = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (last !== null) headers["Last-Event-ID"] = last;
    let watchdog = setTimeout(() => controller.abort(), SILENCE);
    try {
      const response = await ask("events", { headers, signal: controller.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      on.open();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        failures = 0;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => controller.abort(), SILENCE);
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        frames.forEach(take);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  function take(frame) {
    let data = "";
    for (const line of frame.split("\n")) {
      if (line.startsWith("id: ")) last = line.slice(4);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (data) on.record(JSON.parse(data));
  }

  (async () => {
    for (;;) {
      let wrong = null;
      try {
        await once();
      } catch (problem) {
        wrong = problem instanceof Refused ? problem : new Refused(0, { detail: "the connection was lost" });
      }
      on.lost(wrong);
      failures += 1;
      // Who is not let in waits until they have said who they are.
      const pause = wrong?.status === 401 ? 2 ** 31 - 1 : Math.max((wrong?.wait ?? 0) * 1000, Math.min(LONGEST, 300 * 2 ** Math.min(failures, 6)));
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(2 ** 31 - 1, pause * (0.8 + 0.4 * Math.random())));
        wake = () => (clearTimeout(timer), resolve());
      });
    }
  })();

  return {
    /** Try again now: the network is back, somebody looks again, or there is another token. */
    again() {
      failures = 0;
      wake();
    },
    /** Begin anew, as somebody else. */
    restart() {
      failures = 0;
      controller?.abort();
      wake();
    },
  };
}
