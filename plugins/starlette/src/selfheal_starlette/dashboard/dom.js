// Making elements, and changing the page into what it should be. Text becomes text nodes and never markup.

const SVG = "http://www.w3.org/2000/svg";

/** A text in one line, with everything that does not print shown as an escape: it may come from anywhere. */
export function clean(text) {
  return String(text).replace(/[\p{C}\u2028\u2029]/gu, (c) => {
    const code = c.codePointAt(0).toString(16);
    return c === "\n" ? "\\n" : code.length < 3 ? `\\x${code.padStart(2, "0")}` : `\\u${code.padStart(4, "0")}`;
  });
}

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : clean(value));
  }
  for (const child of children.flat(4)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : clean(child));
  }
  return element;
}

/** An element with attributes and children. */
export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const s = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

function morph(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (!fresh.hasAttribute("data-keep")) fill(old, [...fresh.childNodes]);
}

function fill(parent, wanted) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child) !== null) keyed.set(keyOf(child), child);
  let at = parent.firstChild;
  for (const fresh of wanted) {
    let found = keyOf(fresh) !== null ? keyed.get(keyOf(fresh)) : at;
    if (found && alike(found, fresh)) {
      if (found === at) at = at.nextSibling;
      else parent.insertBefore(found, at);
      morph(found, fresh);
    } else {
      parent.insertBefore(fresh, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Make the children of `parent` what is wanted, changing no more than must be: what has the focus keeps it. */
export function show(parent, ...wanted) {
  const focused = document.activeElement;
  fill(parent, wanted.flat(4).filter((one) => one).map((one) => (one instanceof Node ? one : new Text(clean(one)))));
  // What has the focus keeps it, wherever it has moved to; where it is gone, the content has it.
  if (focused === document.activeElement || focused === document.body) return;
  const twin = focused.isConnected ? focused : [...parent.querySelectorAll(focused.nodeName)].find((one) => one.isEqualNode(focused));
  (twin ?? document.getElementById("main")).focus({ preventScroll: true });
}
