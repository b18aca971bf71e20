/* Find clips: search, filter and sort the clips of the page's catalog, or all clips if a server answers
   (curation/report/catalog.py). Decide clips by hand; the decisions become a part of the policy file. */

const PAGE_SIZE = 12;
const FILTERS = ["language", "speaker", "person", "source", "reason"];
const found = { rows: [], total: 0, shown: PAGE_SIZE, request: 0 };

/* --- decisions by hand, kept in this browser until they are copied into a policy file --- */

const HAND_KEY = `hand:${DATA.root}:${DATA.policy}`;
let decider = "";
try {
  for (const entry of JSON.parse(localStorage.getItem(HAND_KEY) || "[]")) hand.set(entry.clip, entry);
  decider = localStorage.getItem("hand-who") || "";
} catch {
  /* storage is off in some views: decisions then last as long as the page */
}

/* Sets or, without a decision, removes the decision on a clip. */
function decide(clip, decision, why) {
  if (decision) hand.set(clip, { clip, decision, who: decider, why });
  else hand.delete(clip);
  try {
    localStorage.setItem(HAND_KEY, JSON.stringify([...hand.values()]));
    localStorage.setItem("hand-who", decider);
  } catch {
    /* see above */
  }
  document.querySelectorAll(`[data-actions="${clip}"]`).forEach(showActions);
  showYield();
  showHandCount();
}

function showHandCount() {
  byId("hand-count").textContent = hand.size
    ? ` · ${plural(hand.size, "clip")} decided by hand: see the policy file above`
    : "";
}

/* Asks on a card who decides and why. */
function askWhy(bar, decision) {
  const who = element("input", { placeholder: "your name", value: decider, ariaLabel: "your name" }),
    why = element("input", { placeholder: `why ${decision} it?`, ariaLabel: "why" }),
    save = element("button", { textContent: `save: ${decision}` });
  const saveBoth = () => {
    const empty = [who, why].find(input => !input.value.trim());
    if (empty) return empty.focus();
    decider = who.value.trim();
    decide(bar.dataset.actions, decision, why.value.trim());
  };
  save.addEventListener("click", saveBoth);
  for (const input of [who, why])
    input.addEventListener("keydown", event => event.key === "Enter" && saveBoth());
  showActions(bar);
  bar.append(element("div", { className: "ask" }, who, why, save));
  (decider ? why : who).focus();
}

/* --- buttons on every card --- */

const explainCommand = clip => `uniavgen curate --corpus ${DATA.root} --explain ${clip}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function showActions(bar) {
  const clip = bar.dataset.actions,
    known = hand.get(clip);
  const copyButton = (label, text, title) => {
    const button = element("button", { textContent: label, title });
    button.addEventListener("click", () => copyText(text, button));
    return button;
  };
  const decideButton = decision => {
    const button = element("button", { textContent: decision, title: `${decision} this clip by hand` });
    button.setAttribute("aria-pressed", String(Boolean(known) && known.decision === decision));
    button.addEventListener("click", () =>
      known && known.decision === decision ? decide(clip, "") : askWhy(bar, decision),
    );
    return button;
  };
  bar.replaceChildren(
    element("code", { textContent: clip }),
    copyButton("copy id", clip, "copy the clip id"),
    element("br"),
    copyButton("copy command", explainCommand(clip), explainCommand(clip)),
    decideButton("keep"),
    decideButton("reject"),
  );
  if (known) bar.append(element("small", { textContent: `${known.decision} by ${known.who}: ${known.why}` }));
}

async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = label), 1200);
}

/* --- the query --- */

const choice = name => byId(`find-${name}`).value;
const rowsOf = catalog =>
  catalog.id.map((id, i) => ({
    index: i,
    ...Object.fromEntries(
      Object.keys(catalog).flatMap(key => (Array.isArray(catalog[key]) ? [[key, catalog[key][i]]] : [])),
    ),
    signals: Object.fromEntries(Object.entries(catalog.signals).map(([name, values]) => [name, values[i]])),
  }));
const local = rowsOf(DATA.catalog);

function matches(row) {
  const words = choice("text").toLowerCase().split(/\s+/).filter(Boolean),
    text = row.text.toLowerCase();
  if (!words.every(word => text.includes(word) || row.id.startsWith(word))) return false;
  const decision = choice("decision");
  if (decision === "kept" && !row.kept) return false;
  if (decision === "rejected" && row.kept) return false;
  if (decision === "changed" && !change(row.id)) return false;
  if (decision === "hand" && !hand.has(row.id)) return false;
  if (decision === "only-here" && !(row.kept && row.other !== "kept")) return false;
  if (decision === "only-there" && !(!row.kept && row.other === "kept")) return false;
  return FILTERS.every(name => {
    const wanted = choice(name);
    return !wanted || (name === "reason" ? row.failed.includes(wanted) : row[name] === wanted);
  });
}

function sorted(rows) {
  const signal = choice("sort"),
    sign = choice("order") === "up" ? 1 : -1;
  if (!signal) return rows;
  const value = row => row.signals[signal];
  return rows.sort((a, b) => {
    if (value(a) === null || value(b) === null) return (value(a) === null) - (value(b) === null);
    return sign * (value(a) - value(b));
  });
}

/* what a browser alone knows */
const onlyLocal = () => !DATA.server || choice("decision") === "hand";

async function find() {
  found.shown = PAGE_SIZE;
  if (onlyLocal()) {
    found.rows = sorted(local.filter(matches));
    found.total = found.rows.length;
  } else await fetchRows(0);
  showFound();
}

const changesAsQuery = () => [
  [
    "set",
    rules
      .filter(rule => rule.enabled)
      .flatMap(rule => moved(rule).map(bound => `${rule.name}.${bound}=${at(rule, bound)}`))
      .join(" "),
  ],
  [
    "drop",
    rules
      .filter(rule => !rule.enabled)
      .map(rule => rule.name)
      .join(" "),
  ],
];

async function fetchRows(offset) {
  const request = ++found.request;
  const names = ["text", "decision", "sort", "order", ...FILTERS];
  const query = new URLSearchParams([
    ...names.map(name => [name, choice(name)]),
    ["offset", offset],
    ["limit", PAGE_SIZE],
    ...(choice("decision") === "changed" ? changesAsQuery() : []),
  ]);
  const answer = await (await fetch(`api/clips?${query}`)).json();
  if (request !== found.request) return;
  found.rows = offset ? [...found.rows, ...rowsOf(answer)] : rowsOf(answer);
  found.total = answer.total;
}

/* --- cards --- */

function showFound() {
  const listed = found.rows.slice(0, found.shown);
  byId("find-clips").replaceChildren(...listed.map(foundCard));
  const everywhere =
    onlyLocal() && DATA.catalog.id.length < T.total
      ? ` of the ${count(DATA.catalog.id.length)} in this page`
      : "";
  byId("find-count").textContent = `${plural(found.total, "clip")}${everywhere}`;
  byId("find-more").hidden = found.shown >= found.total;
}

function foundCard(row) {
  const signal = choice("sort"),
    side = row.now || change(row.id);
  const card = element("article", { className: `clip card ${row.kept ? "kept" : "rejected"}` });
  const body = element("div", { className: "body" });
  body.append(element("p", { className: "words", textContent: row.text || "no words" }));
  if (side) body.append(element("p", { className: "why", textContent: `${side} with the thresholds above` }));
  else if (!row.kept)
    body.append(element("p", { className: "why", textContent: DATA.explanations[row.reason] || row.reason }));
  body.append(
    element("span", {
      className: `badge ${row.kept ? "kept" : ""}`,
      textContent: row.kept ? `kept · ${row.split}` : row.reason,
    }),
  );
  if (signal) {
    const value = row.signals[signal];
    body.append(
      element("span", {
        className: "badge more",
        textContent: `${signal} ${value === null ? "not measured" : value + DATA.histograms[signal].after}`,
      }),
    );
  }
  if (row.other)
    body.append(
      element("span", { className: "badge more", textContent: `${row.other} by ${DATA.other}` }),
    );
  const person = row.person && row.person !== row.speaker ? ` · person ${row.person}` : "";
  const file = row.source.split("/").at(-1);
  const place = `${file} · ${row.start.toFixed(2)} s, ${row.seconds.toFixed(1)} s long`;
  body.append(
    element("div", {
      className: "meta",
      title: row.source,
      textContent: `${place} · ${row.speaker || "no speaker"}${person} · ${row.language || "no language"}`,
    }),
  );
  const actions = element("div", { className: "actions" });
  actions.dataset.actions = row.id;
  showActions(actions);
  body.append(actions);
  card.append(viewer(row.id), body);
  return card;
}

/* The preview in the page's folder, else the corpus's own files: video and audio are separate there. */
function viewer(id) {
  const box = element("div", { className: "viewer" });
  const folder = `../media/${id.slice(0, 2)}/${id}`;
  const single = DATA.server ? `media/${id}.mp4` : DATA.players[id] ? `clips/${id}.mp4` : "";
  const video = element("video", {
    src: (single || `${folder}.mp4`) + "#t=0.01", // shows the first frame before it plays
    preload: "metadata",
    controls: true,
    playsInline: true,
  });
  if (!single) {
    const sound = new Audio();
    sound.preload = "none";
    sound.src = `${folder}.flac`;
    const follow = () =>
      Math.abs(sound.currentTime - video.currentTime) > 0.1 && (sound.currentTime = video.currentTime);
    video.addEventListener("play", () => {
      follow();
      sound.play().catch(() => {});
    });
    video.addEventListener("pause", () => sound.pause());
    video.addEventListener("seeking", follow);
    video.addEventListener("timeupdate", follow);
  }
  video.addEventListener("play", () =>
    document.querySelectorAll("video").forEach(other => other !== video && other.pause()),
  );
  video.addEventListener("error", () => {
    box.replaceChildren(element("span", { className: "none", textContent: "cannot be played here" }));
    byId("elsewhere").hidden = false;
  });
  box.append(video);
  return box;
}

/* --- start --- */

function fillChoices(name, values) {
  const select = byId(`find-${name}`);
  const short = value => (name === "source" ? value.split("/").at(-1) : value);
  select.append(
    ...values.map(([value, clips]) =>
      element("option", { value, textContent: `${short(value)} (${count(clips)})` }),
    ),
  );
  select.hidden = values.length === 0;
}

for (const name of FILTERS) fillChoices(name, DATA.choices[name]);
for (const name of Object.keys(DATA.histograms))
  byId("find-sort").append(element("option", { value: name, textContent: name }));
let typing = 0;
byId("find-text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(find, 150);
});
for (const name of ["decision", "sort", "order", ...FILTERS])
  byId(`find-${name}`).addEventListener("change", find);
byId("find-more").addEventListener("click", async () => {
  found.shown += PAGE_SIZE;
  if (!onlyLocal() && found.rows.length < found.shown) await fetchRows(found.rows.length);
  showFound();
});
/* the list of changed clips follows the thresholds */
addEventListener("thresholds", () => {
  if (choice("decision") !== "changed") return;
  clearTimeout(typing);
  typing = setTimeout(find, 250);
});
byId("show-changed").addEventListener("click", () => {
  byId("find-decision").value = "changed";
  find();
  byId("find").scrollIntoView();
});
document.querySelectorAll("[data-actions]").forEach(showActions);
document
  .querySelectorAll(".clip video")
  .forEach(video => video.addEventListener("error", () => (byId("elsewhere").hidden = false)));
showHandCount();
showYield();
find();
