/** DOM helpers that all views share. */

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with this id. @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element. Properties are set as properties, `aria-...`, `data-...` and `role` as attributes.
 * @param {string} tag @param {Record<string, any>} [props] @param {...(Node | string)} children
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  return dress(document.createElement(tag), props, children);
}

/** Make an SVG element; all properties are attributes. @returns {any} */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set a text only if it differs: an unchanged element is not laid out again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function dress(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const due = new Set();
let scheduled = false;

/** Call a function once before the next paint, however often it is requested. A hidden page waits for a second. */
export function beforePaint(callback) {
  due.add(callback);
  if (scheduled) return;
  scheduled = true;
  if (document.hidden) setTimeout(flush, 1000);
  else requestAnimationFrame(flush);
}

function flush() {
  scheduled = false;
  const callbacks = [...due];
  due.clear();
  for (const callback of callbacks) callback();
}
