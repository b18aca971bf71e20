/* Movable thresholds: recompute what the rules keep, from the clips in the page's data
   (curation/report/threshold_sample.py). The code of a value is 2k + 2 at position k of its scale and 2k + 1
   just below it. Code 0 was not measured and fails. */

const T = DATA.thresholds,
  COMPARE = 0,
  PASSES = 1;
const byId = id => document.getElementById(id);
const strata = T.strata,
  stratum = typed(T.stratum);
const weight = Float64Array.from(stratum, s => strata[s].clips / strata[s].sampled);
const seconds = Float64Array.from(typed(T.seconds), (value, i) => value * strata[stratum[i]].seconds);
const fails = new Uint8Array(T.clips),
  last = new Uint16Array(T.clips);
const columns = Object.fromEntries(
  Object.entries(T.columns).map(([name, c]) => [name, { ...c, codes: typed(c.codes) }]),
);
const rules = T.rules.map((rule, i) => ({
  ...rule,
  ...DATA.rules[i],
  states: rule.states && typed(rule.states),
  policy: { min: rule.min, max: rule.max },
  enabled: true,
}));
const exact = T.clips === T.total;
/* decisions by hand, by clip id; they replace the rule `rejected-by-hand`. Where a clip is in the
   sample */
const BY_HAND = rules.findIndex(rule => rule.name === "rejected-by-hand");
const hand = new Map(DATA.hand.map(entry => [entry.clip, entry]));
const indexOfClip = new Map([
  ...DATA.catalog.id.map((id, i) => [id, i]),
  ...DATA.hand.filter(entry => entry.index !== null).map(entry => [entry.clip, entry.index]),
]);

/* What the enabled rules keep. Fills `fails` (rules that a clip fails) 
   and each rule's `rejects` and `alone`. */
function judge() {
  fails.fill(0);
  rules.forEach((rule, r) => {
    const codes = rule.column && columns[rule.column].codes,
      states = rule.states;
    const low = rule.min === undefined ? 1 : 2 * rule.min + 2,
      high = rule.max === undefined ? Infinity : 2 * rule.max + 2;
    rule.rejects = rule.alone = 0;
    if (r === BY_HAND) return;
    for (let i = 0; i < T.clips; i++) {
      const state = states ? states[i] : COMPARE;
      if (state === COMPARE ? codes[i] >= low && codes[i] <= high : state === PASSES) continue;
      rule.rejects += weight[i];
      if (rule.enabled) {
        fails[i]++;
        last[i] = r;
      }
    }
  });
  for (const { clip, decision } of hand.values()) {
    const i = indexOfClip.get(clip);
    if (i === undefined) continue;
    if (decision === "reject" && BY_HAND >= 0) rules[BY_HAND].rejects += weight[i];
    fails[i] = decision === "keep" ? 0 : 2;
  }
  const kept = { clips: 0, seconds: 0, error: 0 },
    passing = strata.map(() => 0);
  for (let i = 0; i < T.clips; i++) {
    if (!fails[i]) {
      kept.clips += weight[i];
      kept.seconds += seconds[i];
      passing[stratum[i]]++;
    } else if (fails[i] === 1) rules[last[i]].alone += weight[i];
  }
  /* the standard error of a stratified sample, in clips */
  kept.error = Math.sqrt(
    strata.reduce((sum, s, h) => {
      const p = s.sampled ? passing[h] / s.sampled : 0;
      return sum + (s.sampled ? (s.clips * (s.clips - s.sampled) * p * (1 - p)) / s.sampled : 0);
    }, 0),
  );
  return kept;
}

const count = value => Math.round(value).toLocaleString("en");
const span = s =>
  s < 100
    ? s.toFixed(0) + " s"
    : s < 6000
      ? (s / 60).toFixed(1) + " min"
      : (s / 3600).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 }) + " h";
const plural = (value, word) => count(value) + " " + word + (Math.round(value) === 1 ? "" : "s");
const unit = (rule, value) =>
  value === 1 ? DATA.histograms[rule.column].after.replace(/s$/, "") : DATA.histograms[rule.column].after;
const at = (rule, bound) => columns[rule.column].positions[rule[bound]];
const bounds = rule => ["min", "max"].filter(bound => rule.policy[bound] !== undefined);
const moved = rule => (rule.column ? bounds(rule).filter(bound => rule[bound] !== rule.policy[bound]) : []);
const changed = () => rules.filter(rule => !rule.enabled || moved(rule).length);
const boundsText = rule =>
  !rule.column
    ? rule.bounds
    : bounds(rule).length === 2
      ? `${at(rule, "min")} to ${at(rule, "max")}${unit(rule, at(rule, "max"))}`
      : rule.policy.min !== undefined
        ? `at least ${at(rule, "min")}${unit(rule, at(rule, "min"))}`
        : `at most ${at(rule, "max")}${unit(rule, at(rule, "max"))}`;

/* The changes as a policy file. JSON is valid YAML. */
function policyText() {
  const lines = [`name: ${JSON.stringify(DATA.policy + "-moved")}`],
    dropped = rules.filter(rule => !rule.enabled).map(rule => rule.name);
  const written = DATA.extends
    ? rules.filter(rule => rule.enabled && moved(rule).length)
    : rules.filter(rule => rule.enabled && rule.name !== "rejected-by-hand");
  if (DATA.extends) {
    lines.push(`extends: ${DATA.extends}`);
    if (dropped.length) lines.push(`drop: ${JSON.stringify(dropped)}`);
  }
  for (const decision of ["keep", "reject"]) {
    const entries = [...hand.values()].filter(entry => entry.decision === decision);
    if (entries.length) lines.push(`${decision}:`);
    for (const { clip, who, why } of entries) lines.push("  - " + JSON.stringify({ clip, who, why }));
  }
  lines.push(written.length ? "rules:" : "rules: []");
  for (const rule of written) {
    const entry = { ...rule.document };
    for (const bound of moved(rule)) entry[bound] = at(rule, bound);
    if (moved(rule).length)
      Object.assign(entry, {
        says: `${rule.column} is ${boundsText(rule)}`,
        source: `changed on the report page; before: ${rule.bounds}`,
      });
    lines.push(
      "  - " +
        Object.entries(entry)
          .map(([key, value]) => `${key}: ${JSON.stringify(value)}`)
          .join("\n    "),
    );
  }
  return lines.join("\n") + "\n";
}

/* The same as a command line, which cannot switch a rule off. */
function commandText() {
  const parts = rules
    .filter(rule => rule.enabled)
    .flatMap(rule => moved(rule).map(bound => `--what-if ${rule.name}.${bound}=${at(rule, bound)}`));
  return "uniavgen curate --corpus " + DATA.root + parts.map(part => " \\\n  " + part).join("");
}

const base = { ...judge() };
rules.forEach(rule => {
  rule.before = { rejects: rule.rejects, alone: rule.alone };
});
const about = exact ? "" : "≈ ";
const totalSeconds = seconds.reduce((sum, s) => sum + s, 0);

function placeHandles(rule) {
  const { edges } = DATA.histograms[rule.column],
    pad = (edges.at(-1) - edges[0]) * EDGE_SHARE,
    low = edges[0] - pad,
    high = edges.at(-1) + pad;
  const shareOf = value => (value - low) / (high - low),
    left = share => `calc(${MARGIN.l}px + (100% - ${MARGIN.l + MARGIN.r}px) * ${share.toFixed(5)})`;
  for (const bound of bounds(rule)) {
    const handle = document.querySelector(`.handle[data-rule="${rules.indexOf(rule)}"][data-bound=${bound}]`),
      cut = handle.previousElementSibling,
      share = shareOf(at(rule, bound));
    handle.style.left = left(share);
    cut.style.left = left(bound === "min" ? 0 : share);
    cut.style.width = `calc((100% - ${MARGIN.l + MARGIN.r}px) * ${
      (bound === "min" ? share : 1 - share).toFixed(5)})`;
    handle.setAttribute("aria-valuenow", at(rule, bound));
    handle.setAttribute(
      "aria-valuetext",
      `${at(rule, bound)}${unit(rule, at(rule, bound))}; policy: ${columns[rule.column].positions[rule.policy[bound]]}`,
    );
  }
}

function showYield() {
  const kept = judge(),
    gain = kept.clips - base.clips,
    share = base.clips ? (100 * gain) / base.clips : 0;
  const now = byId("kept-now");
  now.textContent = `${about}${plural(kept.clips, "clip")} · ${span(kept.seconds)}`;
  Object.assign(now.dataset, { clips: kept.clips, seconds: kept.seconds });
  const error = exact || !changed().length ? "" : ` · standard error ${count(kept.error)} clips`;
  byId("kept-change").textContent = changed().length
    ? `${gain < 0 ? "−" : "+"}${count(Math.abs(gain))} clips (${gain < 0 ? "−" : "+"}${
      Math.abs(share).toFixed(1)} %) against ${count(base.clips)} with the policy · ${span(base.seconds)}${
      error}`
    : `policy without changes${exact ? "" : ", from " + count(T.clips) + " of " + count(T.total) + " clips"}`;
  byId("meter-now").style.width = (100 * kept.seconds) / (totalSeconds || 1) + "%";
  byId("meter-policy").style.left = (100 * base.seconds) / (totalSeconds || 1) + "%";
  byId("reset").disabled = !changed().length;
  showChanged();
  byId("yaml").textContent = changed().length || hand.size ? policyText() : "# no changes yet";
  byId("command").textContent = changed().length ? commandText() : "# no changes yet";
  rules.forEach((rule, r) => {
    const line = document.querySelector(`[data-requirement="${r}"]`),
      output = line.querySelector("output");
    if (output) {
      output.textContent = boundsText(rule);
      output.classList.toggle("changed", moved(rule).length > 0);
    }
    line.querySelector("small").textContent = r === BY_HAND ? plural(rule.rejects, "clip") : rule.enabled
      ? `rejects ${about}${count(rule.rejects)}, ${count(rule.alone)} of them alone`
      : `off; would reject ${about}${count(rule.rejects)}`;
    line.querySelector("input").checked = rule.enabled;
    const plot = line.closest(".plot");
    if (plot) {
      plot.classList.toggle(
        "changed",
        rules.some(other => other.column === rule.column && (moved(other).length || !other.enabled)),
      );
      line.classList.toggle("off", !rule.enabled);
    }
  });
}

/* Histogram bars after the changes: each bin of the corpus with the sample's share of passing clips. */
function recount(name) {
  const h = DATA.histograms[name],
    column = columns[name];
  if (!column || !changed().length) return [h.passing, h.failing];
  const all = h.passing.map(() => 0),
    good = h.passing.map(() => 0);
  for (let i = 0; i < T.clips; i++) {
    const code = column.codes[i];
    if (code) {
      const bin = column.bins[code - 1];
      all[bin] += weight[i];
      if (!fails[i]) good[bin] += weight[i];
    }
  }
  const total = h.passing.map((n, bin) => n + h.failing[bin]),
    passing = total.map((n, bin) => (all[bin] ? (n * good[bin]) / all[bin] : 0));
  return [passing, total.map((n, bin) => n - passing[bin])];
}

/* The clips in the page's data that the changes turn around; unknown for all others. */
const before = Uint8Array.from(fails, count => (count ? 0 : 1));
function change(id) {
  const i = indexOfClip.get(id);
  return i === undefined || Boolean(before[i]) === !fails[i] ? "" : fails[i] ? "now fails" : "now passes";
}

function showChanged() {
  const totals = { "now fails": 0, "now passes": 0 };
  for (let i = 0; i < T.clips; i++)
    if (Boolean(before[i]) === Boolean(fails[i])) totals[fails[i] ? "now fails" : "now passes"] += weight[i];
  const parts = Object.entries(totals).filter(([, clips]) => clips);
  const button = byId("show-changed");
  button.disabled = parts.length === 0;
  button.textContent = parts.length
    ? `show the ${parts.map(([side, clips]) => `${about}${count(clips)} that ${
        side === "now fails" ? "now fail" : "now pass"}`).join(" and ")}`
    : "no clip changes";
  dispatchEvent(new Event("thresholds"));
}

let waiting = 0,
  settled = 0;
function update(rule) {
  if (rule && rule.column) placeHandles(rule);
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    showYield();
    if (rule && rule.column) redraw(rule.column);
    clearTimeout(settled);
    settled = setTimeout(() => Object.keys(columns).forEach(redraw), 180);
  });
}

function move(rule, bound, index) {
  const other = bound === "min" ? rule.max : rule.min,
    end = columns[rule.column].positions.length - 1;
  let to = Math.max(0, Math.min(end, index));
  if (other !== undefined) to = bound === "min" ? Math.min(to, other) : Math.max(to, other);
  if (to !== rule[bound]) {
    rule[bound] = to;
    update(rule);
  }
}

function control(handle) {
  const rule = rules[handle.dataset.rule],
    bound = handle.dataset.bound,
    { positions } = columns[rule.column];
  const nearest = event => {
    const box = handle.parentElement.getBoundingClientRect(),
      { edges } = DATA.histograms[rule.column],
      pad = (edges.at(-1) - edges[0]) * EDGE_SHARE;
    const value =
      edges[0] -
      pad +
      ((event.clientX - box.left - MARGIN.l) / (box.width - MARGIN.l - MARGIN.r)) *
        (edges.at(-1) - edges[0] + 2 * pad);
    return positions.reduce(
      (best, position, i) => (Math.abs(position - value) < Math.abs(positions[best] - value) ? i : best),
      0,
    );
  };
  handle.setAttribute("aria-valuemin", positions[0]);
  handle.setAttribute("aria-valuemax", positions.at(-1));
  handle.addEventListener("pointerdown", event => {
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    handle.classList.add("held");
  });
  handle.addEventListener("pointermove", event => {
    if (handle.hasPointerCapture(event.pointerId)) move(rule, bound, nearest(event));
  });
  for (const event of ["pointerup", "pointercancel"])
    handle.addEventListener(event, () => handle.classList.remove("held"));
  handle.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[
      event.key
    ];
    const to =
      by !== undefined
        ? rule[bound] + by
        : { Home: 0, End: positions.length - 1, Escape: rule.policy[bound], Delete: rule.policy[bound] }[
            event.key
          ];
    if (to !== undefined) {
      event.preventDefault();
      move(rule, bound, to);
    }
  });
}

function reset() {
  for (const rule of rules) {
    Object.assign(
      rule,
      rule.column ? Object.fromEntries(bounds(rule).map(bound => [bound, rule.policy[bound]])) : {},
      { enabled: true },
    );
    if (rule.column) placeHandles(rule);
  }
  update();
}

async function copy(button) {
  const source = byId(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  button.textContent = "copied";
  setTimeout(() => {
    button.textContent = "copy";
  }, 1500);
}

document.querySelectorAll(".handle").forEach(control);
document.querySelectorAll("[data-requirement] input").forEach(box =>
  box.addEventListener("change", () => {
    const rule = rules[box.closest("[data-requirement]").dataset.requirement];
    rule.enabled = box.checked;
    update(rule);
  }),
);
document
  .querySelectorAll("[data-copy]")
  .forEach(button => button.addEventListener("click", () => copy(button)));
byId("reset").addEventListener("click", reset);
rules.filter(rule => rule.column).forEach(placeHandles);
showYield();
