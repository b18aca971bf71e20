/* Players: face outline, waveform cursor and spoken word follow the video.
   A click on a word or the waveform seeks. */

function unpack(oval) {
  if (!oval || !oval.points) return [];
  const points = typed(["Uint16Array", oval.data]),
    frames = [];
  for (let f = 0; f < points.length; f += 2 * oval.points) {
    let text = "";
    for (let p = f; p < f + 2 * oval.points; p += 2)
      if (points[p] !== 65535)
        text += (points[p] / 65534).toFixed(4) + "," + (points[p + 1] / 65534).toFixed(4) + " ";
    frames.push(text);
  }
  return frames;
}

function player(card) {
  const video = card.querySelector("video"),
    track = DATA.players[card.dataset.clip];
  if (!video || !track) return;
  const polygon = card.querySelector("polygon"),
    wave = card.querySelector(".wave"),
    head = wave.querySelector("u");
  const words = [...card.querySelectorAll(".words span")],
    seconds = Number(card.dataset.seconds);
  let frames = null;
  function show() {
    const now = video.currentTime;
    frames ??= unpack(track.oval);
    if (frames.length)
      polygon.setAttribute("points", frames[Math.min(frames.length - 1, Math.floor(now * DATA.fps + 1e-3))]);
    head.style.left = 100 * Math.min(1, now / seconds) + "%";
    wave.setAttribute("aria-valuenow", now.toFixed(1));
    words.forEach((word, i) =>
      word.classList.toggle("on", now > 0 && now >= track.words[i].start && now < track.words[i].end),
    );
    if (!video.paused && !video.ended) requestAnimationFrame(show);
  }
  const toggle = () => (video.paused ? video.play().catch(() => {}) : video.pause());
  const seek = to => {
    video.currentTime = Math.max(0, Math.min(seconds, to));
  };
  video.addEventListener("click", toggle);
  card.querySelector(".play").addEventListener("click", toggle);
  for (const event of ["play", "pause", "ended"])
    video.addEventListener(event, () => card.classList.toggle("playing", !video.paused && !video.ended));
  for (const event of ["play", "pause", "seeked", "loadedmetadata", "ended"])
    video.addEventListener(event, show);
  video.addEventListener("play", () =>
    document.querySelectorAll("video").forEach(other => other !== video && other.pause()),
  );
  wave.addEventListener("click", event => {
    const box = wave.getBoundingClientRect();
    seek((seconds * (event.clientX - box.left)) / box.width);
  });
  wave.addEventListener("keydown", event => {
    const to = {
      ArrowLeft: video.currentTime - 0.5,
      ArrowRight: video.currentTime + 0.5,
      ArrowDown: video.currentTime - 0.5,
      ArrowUp: video.currentTime + 0.5,
      Home: 0,
      End: seconds,
    }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      seek(to);
    }
    if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      toggle();
    }
  });
  words.forEach((word, i) =>
    word.addEventListener("click", () => {
      seek(track.words[i].start + 0.001);
      video.play().catch(() => {});
    }),
  );
  show();
}

/* Filter: rejected clips that fail one rule, and the values that this rule read of the kept clips. */
const FOLDED_CARDS = 6,
  unfolded = new Set();
let filter = "";

function listClips() {
  for (const list of document.querySelectorAll("[data-list]")) {
    const cards = [...list.querySelectorAll(".clip")],
      all = unfolded.has(list);
    const matching = cards.filter(
      card => !filter || list.dataset.list === "kept" || card.dataset.failed.split("|").includes(filter),
    );
    matching.sort(
      (a, b) =>
        (b.dataset.reason === filter) - (a.dataset.reason === filter) || cards.indexOf(a) - cards.indexOf(b),
    );
    cards.forEach(card => {
      card.hidden = !(all ? matching : matching.slice(0, FOLDED_CARDS)).includes(card);
    });
    const more = list.querySelector(".unfold");
    more.hidden = matching.length <= FOLDED_CARDS;
    more.textContent = all ? "show fewer" : `show all ${matching.length}`;
  }
  for (const card of document.querySelectorAll("[data-list=kept] .clip")) {
    const readings = (DATA.players[card.dataset.clip] || {}).readings || {};
    card.querySelector(".why").textContent = readings[filter] || "";
  }
  document
    .querySelectorAll("[data-filter]")
    .forEach(chip => chip.setAttribute("aria-pressed", String(chip.dataset.filter === filter)));
}

document.querySelectorAll(".clip").forEach(player);
document.querySelectorAll("[data-filter]").forEach(chip =>
  chip.addEventListener("click", () => {
    filter = filter === chip.dataset.filter ? "" : chip.dataset.filter;
    listClips();
  }),
);
document.querySelectorAll("[data-list] .unfold").forEach(more =>
  more.addEventListener("click", () => {
    const list = more.closest("[data-list]");
    unfolded.has(list) ? unfolded.delete(list) : unfolded.add(list);
    listClips();
  }),
);
listClips();
