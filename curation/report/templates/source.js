for (const clip of S.clips) {
  clip.curve = clip.curve.map(v => v / 100);
  clip.signals = Object.fromEntries(SIGNALS.map((signal, i) => [signal.name, clip.signals[i]]));
}
const INKS = ["#4e79a7", "#b07aa1", "#2f8f9d", "#d0678a", "#7b6bc4", "#6baed6", "#a8982f", "#9c755f"];
const GUTTER = 112,
  EDGE = 8,
  LANES_OF_SPEAKERS = 6,
  LANES_OF_FACES = 4,
  SYNC_HEIGHT = 62;
const lanes = document.getElementById("lanes"),
  overview = document.getElementById("overview");
const view = { from: 0, to: Math.max(S.duration, 1) };
let chosen = -1,
  now = null,
  lastScale = 1;

const speakerLanes = Math.min(S.speakers.length, LANES_OF_SPEAKERS);
const faceRows = rowsOf(
  S.tracks.map(t => [t[1], t[2]]),
  LANES_OF_FACES,
);
const esc = text => String(text).replace(/[&<>"']/g, c => "&#" + c.charCodeAt(0) + ";");
const clock = seconds => {
  const s = Math.round(seconds * 10) / 10,
    h = Math.floor(s / 3600),
    m = Math.floor(s / 60) % 60,
    r = (s % 60).toFixed(1).padStart(4, "0");
  return h ? h + ":" + String(m).padStart(2, "0") + ":" + r : m + ":" + r;
};
const ink = speaker => (speaker < 0 ? "var(--faint)" : INKS[speaker % INKS.length]);

/* A row for each span, without overlaps within a row. Beyond the limit, spans share the last row. */
function rowsOf(spans, limit) {
  const ends = [],
    rows = [];
  for (const [from, to] of spans) {
    let row = ends.findIndex(end => end <= from);
    if (row < 0) row = Math.min(ends.length, limit - 1);
    ends[row] = Math.max(ends[row] ?? 0, to);
    rows.push(row);
  }
  return { rows, count: ends.length };
}

/* Merge spans less than a pixel apart: an hour draws as fast as ten seconds. */
function merged(spans, scale) {
  const out = [];
  for (const [from, to] of spans) {
    const last = out[out.length - 1];
    if (last && (from - last[1]) * scale < 1) last[1] = Math.max(last[1], to);
    else out.push([from, to]);
  }
  return out;
}

/* Join words less than 0.6 s apart. Words closer than two pixels are joined too, without text. */
function phrases(words) {
  const out = [];
  for (const [text, from, to, , , gap] of words) {
    const last = out[out.length - 1],
      apart = last ? from - last.to : Infinity;
    if (apart < Math.max(0.6, 2 / lastScale)) {
      last.to = to;
      last.text = apart < 0.6 ? last.text && last.text + gap + text : "";
    } else out.push({ from, to, text });
  }
  return out;
}

const rect = (x, y, w, h, cls, title, more = "") =>
  `<rect x="${x.toFixed(1)}" y="${y}" width="${Math.max(w, 1).toFixed(1)}" height="${h}" rx="${
    w > 6 ? 3 : 0}" class="${cls}" ${more}>${title ? "<title>" + esc(title) + "</title>" : ""}</rect>`;
const text = (x, y, words, cls = "", more = "") =>
  `<text x="${x.toFixed(1)}" y="${y}" class="${cls}" ${more}>${esc(words)}</text>`;
const fits = (words, width, size = 6.3) => words.length * size + 8 <= width;

function draw() {
  const width = lanes.clientWidth,
    scale = (width - GUTTER - EDGE) / (view.to - view.from),
    at = t => GUTTER + (t - view.from) * scale;
  lastScale = scale;
  const inside = (from, to) => to > view.from && from < view.to;
  let out = "",
    labels = "",
    y = 0;
  const lane = (name, height, hint) => {
    labels +=
      text(10, y + Math.min(height / 2 + 4, 20), name, "label") + (hint ? text(10, y + 34, hint) : "");
  };
  const end = height => {
    y += height;
    out += `<line class="rule" x1="0" x2="${width}" y1="${y + 0.5}" y2="${y + 0.5}"/>`;
  };

  const tick =
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find(t => t * scale >= 72) ||
    7200;
  for (let t = Math.ceil(view.from / tick) * tick; t <= view.to + 1e-6; t += tick)
    out +=
      `<line class="rule" x1="${at(t)}" x2="${at(t)}" y1="0" y2="9999"/>` +
      (at(t) > width - 46 ? "" : text(at(t) + 4, 16, tick < 1 ? clock(t) : clock(t).replace(/\.\d$/, "")));
  lane("time", 24);
  end(24);

  lane("shots", 24);
  S.shots.forEach(([from, to], i) => {
    if (!inside(from, to)) return;
    const w = (to - from) * scale;
    out += rect(
      at(from),
      y + 5,
      w - 1,
      14,
      "shot " + (i % 2 ? "odd" : ""),
      `shot ${i + 1}: ${clock(from)} to ${clock(to)}`,
    );
    if (fits("" + (i + 1), w)) out += text(at(from) + 5, y + 16, i + 1);
  });
  S.shots.forEach(([from]) => {
    if (from > view.from && from < view.to && scale > 4)
      out += `<line class="cutline" x1="${at(from)}" x2="${at(from)}" y1="24" y2="9999"/>`;
  });
  end(24);

  for (let row = 0; row < speakerLanes; row++) {
    const shared = row === LANES_OF_SPEAKERS - 1 && S.speakers.length > LANES_OF_SPEAKERS;
    const laneTurns = S.turns.filter(t => t[0] === row || (shared && t[0] > row));
    lane(
      shared ? `+ ${S.speakers.length - row} voices` : S.speakers[row].name.replace(/^SPEAKER_/, "voice "),
      20,
    );
    if (scale > 3)
      laneTurns.forEach(([s, from, to]) => {
        if (inside(from, to))
          out += rect(
            at(from),
            y + 4,
            (to - from) * scale,
            12,
            "",
            `${S.speakers[s].name}: ${clock(from)} to ${clock(to)}`,
            `fill="${ink(s)}"`,
          );
      });
    else
      merged(
        laneTurns.map(t => [t[1], t[2]]).filter(t => inside(...t)),
        scale,
      ).forEach(([from, to]) => {
        out += rect(at(from), y + 4, (to - from) * scale, 12, "", "", `fill="${ink(row)}"`);
      });
    end(20);
  }

  const heard = S.words.filter(w => inside(w[1], w[2])),
    ends = [0, 0, 0],
    placed = [];
  for (const word of heard) {
    const x = at(word[1]),
      row = ends.findIndex(e => e <= x);
    if (row >= 0 && word[1] >= view.from) {
      ends[row] = x + word[0].length * 6.3 + 7;
      placed.push([word, row]);
    }
  }
  const readable = heard.length && placed.length >= 0.9 * heard.length,
    tall = readable ? 62 : 22;
  lane("words", tall);
  if (readable) {
    heard.forEach(w => {
      out += rect(
        at(w[1]),
        y + 5,
        (w[2] - w[1]) * scale,
        4,
        "",
        `${w[0]}: ${w[1].toFixed(2)} to ${w[2].toFixed(2)} s, score ${w[4]}`,
        `fill="${ink(w[3])}" opacity="${0.35 + 0.65 * w[4]}"`,
      );
    });
    placed.forEach(([w, row]) => {
      out += text(at(w[1]), y + 24 + 15 * row, w[0], "ink");
    });
  } else
    phrases(heard).forEach(run => {
      const x = Math.max(at(run.from), GUTTER),
        w = at(run.to) - x,
        room = Math.floor((w - 8) / 6.3);
      out += rect(at(run.from), y + 4, (run.to - run.from) * scale, 14, "word", run.text, 'opacity=".55"');
      if (room > 5 && run.text)
        out += text(
          x + 5,
          y + 15,
          run.text.length > room ? run.text.slice(0, room - 1) + "…" : run.text,
          "ink",
        );
    });
  end(tall);

  const faceHeight = Math.max(1, faceRows.count) * 18 + 4;
  lane("faces", faceHeight, S.tracks.length ? "" : "none");
  S.tracks.forEach(([track, from, to, height], i) => {
    if (!inside(from, to)) return;
    const w = (to - from) * scale,
      top = y + 4 + 18 * faceRows.rows[i];
    out += rect(
      at(from),
      top,
      w - 1,
      14,
      "",
      `face ${track}: ${height} px high, ${clock(from)} to ${clock(to)}`,
      `fill="#5b8c85" opacity="${Math.min(0.8, 0.25 + height / 600)}"`,
    );
    const name = height + " px",
      left = Math.max(at(from), GUTTER);
    if (fits(name, at(to) - left)) out += text(left + 5, top + 11, name, "ink");
  });
  end(faceHeight);

  lane("lip sync", SYNC_HEIGHT, "audio late ↑");
  const middle = y + SYNC_HEIGHT / 2;
  let paints = "";
  const reach = Math.max(100, ...S.clips.map(c => ((c.curve.length - 1) / 2) * S.curve_step_ms)),
    high = ms => middle - (ms / reach) * (SYNC_HEIGHT / 2 - 5);
  labels += text(10, y + 50, `±${reach} ms`);
  S.clips.forEach((clip, i) => {
    if (!inside(clip.start, clip.end)) return;
    const x = at(clip.start),
      w = Math.max(2, (clip.end - clip.start) * scale),
      n = clip.curve.length;
    out += rect(x, y + 4, w, SYNC_HEIGHT - 8, "band", "", `data-clip="${i}"`);
    if (n > 1 && w > 3) {
      const stops = [],
        every = Math.max(1, Math.floor(n / 30)),
        top = Math.max(...clip.curve, 0.05);
      for (let k = n - 1; k >= 0; k -= every)
        stops.push(
          `<stop offset="${((n - 1 - k) / (n - 1)).toFixed(3)}" stop-color="var(--accent)" stop-opacity="${
            (Math.max(0, clip.curve[k] / top) ** 2 *
              Math.min(1, 0.25 + (clip.signals.sync_confidence || 0))).toFixed(2)}"/>`,
        );
      paints += `<linearGradient id="g${i}" x1="0" y1="0" x2="0" y2="1">${stops.join("")}</linearGradient>`;
      out += rect(x, y + 5, w - 1, SYNC_HEIGHT - 10, "", "", `fill="url(#g${i})" pointer-events="none"`);
    }
    const ms = clip.signals.sync_offset_ms,
      sure = clip.signals.sync_confidence >= 0.5;
    if (ms !== null)
      out += `<circle cx="${(x + w / 2).toFixed(1)}" cy="${
        high(Math.max(-reach, Math.min(reach, ms))).toFixed(1)}" r="${
        scale < 2 ? 1.6 : sure ? 3.5 : 3}" class="${sure ? "known" : "unknown"}"><title>${
        Math.round(ms)} ms, confidence ${clip.signals.sync_confidence}${
        sure ? "" : ": unknown"}</title></circle>`;
  });
  out += `<line class="zero" x1="${GUTTER}" x2="${width}" y1="${middle}" y2="${middle}"/>`;
  end(SYNC_HEIGHT);

  lane("clips", 30);
  S.clips.forEach((clip, i) => {
    if (!inside(clip.start, clip.end)) return;
    const x = at(clip.start),
      w = (clip.end - clip.start) * scale,
      name = clip.kept ? "kept" : clip.reason,
      left = Math.max(x, GUTTER);
    out += rect(
      x,
      y + 5,
      w - 1,
      20,
      `clip ${clip.kept ? "" : "rejected"} ${i === chosen ? "chosen" : ""}`,
      `${clock(clip.start)} to ${clock(clip.end)}: ${name}`,
      `data-clip="${i}"`,
    );
    if (fits(name, x + w - left)) out += text(left + 6, y + 19, name, "on");
  });
  end(30);

  const cursor = now === null ? "" : `<line class="now" x1="${at(now)}" x2="${at(now)}" y1="0" y2="${y}"/>`;
  lanes.setAttribute("height", y);
  lanes.innerHTML = `<defs>${paints}</defs>${out}${cursor}<rect class="gutter" x="0" y="0" width="${
    GUTTER}" height="${y}"/><line class="rule" x1="${GUTTER - 0.5}" x2="${GUTTER - 0.5}" y1="0" y2="${
    y}"/>${labels}`;
  document.getElementById("at").textContent = `${clock(view.from)} to ${clock(view.to)}`;
  drawOverview(width);
}

function drawOverview(width) {
  const scale = (width - GUTTER - EDGE) / Math.max(S.duration, 1),
    at = t => GUTTER + t * scale;
  let out = text(10, 27, "overview", "label");
  S.turns.length &&
    S.speakers.forEach((_, s) =>
      merged(
        S.turns.filter(t => t[0] === s).map(t => [t[1], t[2]]),
        scale,
      ).forEach(([from, to]) => {
        out += rect(at(from), 8, (to - from) * scale, 8, "", "", `fill="${ink(s)}"`);
      }),
    );
  for (const kept of [true, false])
    merged(
      S.clips.filter(c => c.kept === kept).map(c => [c.start, c.end]),
      scale,
    ).forEach(([from, to]) => {
      out += rect(at(from), 21, (to - from) * scale, 10, kept ? "clip" : "clip rejected");
    });
  merged(
    S.tracks.map(t => [t[1], t[2]]).sort((a, b) => a[0] - b[0]),
    scale,
  ).forEach(([from, to]) => {
    out += rect(at(from), 35, (to - from) * scale, 4, "", "", 'fill="#5b8c85"');
  });
  overview.innerHTML =
    out +
    `<rect class="window" x="${at(view.from).toFixed(1)}" y="3" width="${
      Math.max(3, (view.to - view.from) * scale).toFixed(1)}" height="40" rx="3"/>`;
}

function show(from, to) {
  const whole = Math.max(S.duration, 1),
    length = Math.max(Math.min(to - from, whole), Math.min(1, whole));
  view.from = Math.max(0, Math.min(from, whole - length));
  view.to = view.from + length;
  draw();
}
function zoom(factor, around = (view.from + view.to) / 2) {
  show(around - (around - view.from) * factor, around + (view.to - around) * factor);
}
const timeAt = (event, svg, from, to) => {
  const box = svg.getBoundingClientRect();
  return from + ((event.clientX - box.left - GUTTER) / (box.width - GUTTER - EDGE)) * (to - from);
};

function choose(index, move) {
  const clip = S.clips[index];
  if (!clip) return;
  chosen = index;
  now = null;
  document
    .querySelectorAll("tr[data-clip]")
    .forEach(row => row.classList.toggle("chosen", Number(row.dataset.clip) === index));
  if (move && (clip.start < view.from || clip.end > view.to)) {
    const half = Math.min(view.to - view.from, 60) / 2,
      middle = (clip.start + clip.end) / 2;
    show(middle - half, middle + half);
  } else draw();
  const failing = new Set(clip.failed.map(rule => RULES[rule] && RULES[rule].column));
  const says = clip.failed
    .map(
      (rule, i) =>
        `<span class="badge ${i ? "more" : ""}" title="${
          esc(RULES[rule] ? "the rule requires that " + RULES[rule].says : rule)}">${esc(rule)}</span>`,
    )
    .join("");
  document.getElementById("detail").innerHTML =
    `<h3>${clock(clip.start)} to ${clock(clip.end)} <span class="meta mono">${esc(clip.clip_id)}</span></h3>
    ${clip.kept ? `<span class="badge kept">kept · ${
      esc(clip.split)}</span>` : says || `<span class="badge">${esc(clip.reason)}</span>`}
    ${clip.plays ? `<video src="../clips/${
      encodeURIComponent(clip.clip_id)}.mp4#t=0.05" controls preload="metadata" playsinline></video>` : ""}
    <p class="words">${clip.transcript ? esc(clip.transcript) : '<span class="meta">no words</span>'}</p>
    <div class="meta">lip sync: correlation of lips and audio at every shift${
      clip.curve.length ? "" : " was not measured"}</div>${curve(clip)}
    <div class="signals">${SIGNALS.map(({ name, unit, text }) => {
      const value = clip.signals[name];
      return `<div class="${failing.has(name) ? "bad" : ""} ${value === null ? "none" : ""}" title="${
        esc(text + " (" + unit + ")")}"><span class="mono">${name}</span><b>${
        value === null ? "–" : value + (/^[a-zA-Z]+$/.test(unit) && unit.length < 7 ? " " + unit : "")
        }</b></div>`;
    }).join("")}</div>`;
  const video = document.querySelector("#detail video");
  if (video) {
    const follow = () => {
      now = clip.start + video.currentTime;
      draw();
      if (!video.paused && !video.ended) requestAnimationFrame(follow);
    };
    for (const event of ["play", "seeked", "pause"]) video.addEventListener(event, follow);
  }
}

function curve(clip) {
  const n = clip.curve.length;
  if (n < 2) return "";
  const W = 600,
    H = 130,
    half = ((n - 1) / 2) * S.curve_step_ms,
    low = Math.min(0, ...clip.curve),
    high = Math.max(0.3, ...clip.curve);
  const x = i => 12 + (i / (n - 1)) * (W - 24),
    y = v => H - 22 - ((v - low) / (high - low)) * (H - 34);
  const points = clip.curve
    .map((v, i) => (v === null ? "" : `${x(i).toFixed(1)},${y(v).toFixed(1)}`))
    .filter(Boolean)
    .join("L");
  const ms = clip.signals.sync_offset_ms,
    sure = clip.signals.sync_confidence >= 0.5,
    place = ms === null ? 0 : 12 + ((ms + half) / (2 * half)) * (W - 24);
  const marks = [-half, -half / 2, 0, half / 2, half]
    .map(
      v =>
        `<line class="rule" x1="${12 + ((v + half) / (2 * half)) * (W - 24)}" x2="${
          12 + ((v + half) / (2 * half)) * (W - 24)}" y1="6" y2="${H - 20}"/>` +
        text(
          12 + ((v + half) / (2 * half)) * (W - 24),
          H - 6,
          (v > 0 ? "+" : "") + v + (v === 0 ? " ms" : ""),
          "",
          `text-anchor="${v === -half ? "start" : v === half ? "end" : "middle"}"`,
        ),
    )
    .join("");
  const peak =
    ms === null
      ? ""
      : `<line class="${sure ? "now" : "zero"}" x1="${place}" x2="${place}" y1="6" y2="${H - 20}"/>` +
        text(
          place + (place > W - 170 ? -6 : 6),
          18,
          sure
            ? `audio ${Math.abs(Math.round(ms))} ms ${ms < 0 ? "early" : "late"}`
            : "unknown: no clear peak",
          "ink",
          `text-anchor="${place > W - 170 ? "end" : "start"}"`,
        );
  return `<svg id="curve" viewBox="0 0 ${W} ${H}" preserveAspectRatio="none">${
    marks}<line class="zero" x1="12" x2="${W - 12}" y1="${y(0)}" y2="${y(0)}"/><path class="area" d="M${
    x(0)},${y(0)}L${points}L${x(n - 1)},${y(0)}Z"/><path d="M${points}"/>${peak}</svg>`;
}

lanes.addEventListener(
  "wheel",
  event => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(Math.exp(event.deltaY * 0.004), timeAt(event, lanes, view.from, view.to));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = ((event.deltaX || event.deltaY) / 900) * (view.to - view.from);
      show(view.from + by, view.to + by);
    }
  },
  { passive: false },
);
let held = null;
lanes.addEventListener("pointerdown", event => {
  held = { x: event.clientX, from: view.from, to: view.to, moved: false, clip: event.target.dataset.clip };
});
addEventListener("pointermove", event => {
  if (!held) return;
  const by = event.clientX - held.x;
  if (Math.abs(by) > 3) held.moved = true;
  if (held.moved) {
    lanes.classList.add("held");
    const shift = (-by / (lanes.clientWidth - GUTTER - EDGE)) * (held.to - held.from);
    show(held.from + shift, held.to + shift);
  }
});
addEventListener("pointerup", () => {
  if (held && !held.moved && held.clip !== undefined) choose(Number(held.clip), false);
  held = null;
  lanes.classList.remove("held");
});
let brushing = false;
const brush = event => {
  const middle = timeAt(event, overview, 0, Math.max(S.duration, 1));
  const whole = view.to - view.from >= S.duration * 0.98,
    half = (whole ? Math.min(60, S.duration / 4) : view.to - view.from) / 2;
  show(middle - half, middle + half);
};
overview.addEventListener("pointerdown", event => {
  brushing = true;
  overview.setPointerCapture(event.pointerId);
  brush(event);
});
overview.addEventListener("pointermove", event => brushing && brush(event));
overview.addEventListener("pointerup", () => {
  brushing = false;
});
document
  .querySelectorAll("[data-zoom]")
  .forEach(button =>
    button.addEventListener("click", () =>
      button.dataset.zoom === "all" ? show(0, S.duration) : zoom(Number(button.dataset.zoom)),
    ),
  );
addEventListener("keydown", event => {
  if (event.target.closest("video") || event.ctrlKey || event.metaKey) return;
  const step = (view.to - view.from) / 4,
    act = {
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => show(0, S.duration),
      ArrowLeft: () => show(view.from - step, view.to - step),
      ArrowRight: () => show(view.from + step, view.to + step),
    }[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
document
  .querySelectorAll("tr[data-clip]")
  .forEach(row => row.addEventListener("click", () => choose(Number(row.dataset.clip), true)));
addEventListener("resize", draw);

/* Open a long source on two minutes around its first clip; the overview above shows all of it. */
const wanted = S.clips.findIndex(clip => "#" + clip.clip_id === location.hash),
  first = Math.max(wanted, 0),
  start = S.clips.length ? S.clips[first].start : 0;
if (S.duration > 180) show(start - 10, start + 110);
else draw();
choose(first, wanted >= 0);
if (wanted >= 0) document.querySelector("tr.chosen").scrollIntoView({ block: "nearest" });
document.documentElement.dataset.ready = "yes";
