// What htmx leaves open: state of the page that survives a swap, what screen readers announce, lost connections.
"use strict";

const byId = (id) => document.getElementById(id);
const shown = {}; // what the service has sent last, by the id of the part
let kept = null;

// Somebody presses something in it, marks text in it, or is asked something about it.
const isInUse = (part) => {
  const marked = getSelection();
  return part.matches(":active") || (!marked.isCollapsed && part.contains(marked.anchorNode)) || document.querySelector("dialog[open]");
};

// A part that reads itself is replaced where it has changed, and keeps what a person has opened, ticked and scrolled to,
// and where the keyboard is.
document.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  if (!(part instanceof Element)) return;
  if (part.matches("[hx-trigger^=every]")) {
    const sent = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html").getElementById(part.id);
    if (isInUse(part) || sent?.outerHTML === shown[part.id]) event.detail.shouldSwap = false;
    if (!event.detail.shouldSwap) return;
    shown[part.id] = sent?.outerHTML;
  }
  const all = (selector) => [...part.querySelectorAll(selector)];
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  kept = {
    part: part.id,
    focused,
    open: all("details[id][open]").map((one) => one.id),
    ticked: all("input[type=checkbox][id]").map((one) => [one.id, one.checked]),
    scrolled: all("[data-keep-scroll][id]").map((one) => [
      one.id, one.scrollLeft, one.scrollTop, one.scrollTop + one.clientHeight >= one.scrollHeight - 4,
    ]),
  };
});

document.addEventListener("htmx:afterSwap", () => {
  if (!kept) return;
  const isSame = (one) => ["tagName", "textContent", "href"].every((name) => one[name] === kept.focused[name]);
  if (kept.focused && !kept.focused.id) [...byId(kept.part).querySelectorAll(kept.focused.tagName)].find(isSame)?.focus();
  kept.open.forEach((id) => byId(id)?.setAttribute("open", ""));
  kept.ticked.forEach(([id, ticked]) => { if (byId(id)) byId(id).checked = ticked; });
  kept.scrolled.forEach(([id, left, top, atEnd]) => {
    const one = byId(id);
    if (!one) return;
    one.scrollLeft = left;
    one.scrollTop = atEnd && one.dataset.keepScroll === "end" ? one.scrollHeight : top;
  });
  kept = null;
});

// Announced only when the text has changed: figures that move all the time are not.
const announce = () => {
  const news = document.querySelector("[data-announce]");
  const text = news ? news.dataset.announce : "";
  if (byId("announcer").textContent !== text) byId("announcer").textContent = text;
};

// An error beside a field belongs to the field, and is not hidden among those that nobody has opened.
const markInvalid = () => document.querySelectorAll(".error[id]").forEach((message) => {
  const field = byId(message.id.replace(/-error$/, ""));
  if (!field) return;
  if (!message.textContent.trim()) return field.removeAttribute("aria-invalid");
  field.setAttribute("aria-invalid", "true");
  field.closest("details")?.setAttribute("open", "");
});

const scrollToEnd = () => document.querySelectorAll("[data-keep-scroll=end]").forEach((one) => {
  one.scrollTop = one.scrollHeight;
});

document.addEventListener("htmx:afterSettle", () => { announce(); markInvalid(); });
document.addEventListener("DOMContentLoaded", () => {
  announce();
  scrollToEnd();
  document.querySelector("form [aria-invalid=true]")?.focus(); // a form that was refused
});

// Dialogs lie outside of the parts that are replaced; a text is copied, or marked where the browser does not allow that.
document.addEventListener("click", async (event) => {
  const { opens, closes, copies } = event.target.closest("button")?.dataset ?? {};
  if (opens) byId(opens).showModal();
  if (closes) byId(closes).close();
  if (!copies) return;
  try {
    await navigator.clipboard.writeText(byId(copies).textContent);
    byId("announcer").textContent = event.target.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId(copies));
    byId("announcer").textContent = "Marked; copy it with the keyboard";
  }
});

// Pressed twice while the service is slow, a form would make two keys or webhooks.
const SLOWEST = 30_000;
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.getAttribute("method") !== "post") return; // a field may have the name "method"
  if (form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => { delete form.dataset.sent; }, SLOWEST);
});
window.addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((one) => { delete one.dataset.sent; }));

let leaving = false; // a page that is left ends its requests, which is no error
window.addEventListener("pagehide", () => { leaving = true; });
window.addEventListener("pageshow", () => { leaving = false; });

const connection = (text) => {
  if (leaving || byId("connection").textContent === text) return;
  byId("connection").textContent = text;
  byId("connection").hidden = !text;
};
// A plan is asked for when the form changes, all else every few seconds.
const again = (event) => event.detail.elt.matches("#plan") ? "Change a field to try again." : "The page tries again by itself.";
document.addEventListener("htmx:sendError", (event) => connection(`The service does not answer. What you see may be old. ${again(event)}`));
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) connection(""); });
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  const next = status === 429 || status >= 500 ? again(event) : "Load the page again.";
  connection(status === 404 ? "This is not there any more." : `The service answers with an error (HTTP ${status}). ${next}`);
});
